"""The gallery of the site: its campaigns can be run, and what is written of them is there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from robustkd.campaigns.file import spec

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    place = importlib.util.spec_from_file_location("site_gallery", DOCS / "gallery.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module


def test_its_campaigns_are_valid_and_named_as_they_are_addressed(gallery, tmp_path):
    for name, shown in gallery.CAMPAIGNS.items():
        assert spec.from_text(shown.text, name, tmp_path).name == name


def test_a_site_without_it_says_how_to_make_it(gallery, tmp_path):
    assert "make gallery" in gallery.listing(tmp_path)


@pytest.mark.slow
def test_every_link_of_it_leads_to_a_page(gallery, tmp_path):
    gallery.build(tmp_path / "made")
    text = gallery.listing(tmp_path / "made")
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == 2 * len(gallery.CAMPAIGNS) + 1
    assert [link for link in links if not (tmp_path / "made" / link).is_file()] == []
    assert "not credible" in text  # a number that must not be believed is among them
