"""The documentation site: it builds without a warning, knows every name, and no link of it leads nowhere."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import robustkd
from robustkd import contracts, plugins
from robustkd.campaigns.file import presets
from robustkd.cli import COMMANDS

ROOT = Path(__file__).parents[2]
# Modules and the version have no entry of their own.
CALLABLE = {f"robustkd.{name}" for name in robustkd.__all__ if callable(getattr(robustkd, name))}
PUBLIC = CALLABLE | {f"robustkd.contracts.{name}" for name in contracts.__all__}


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") == "stylesheet":
            self.loads.add(found["href"])
        elif "src" in found:
            self.loads.add(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("furo", reason="the site needs: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "--doctree-dir",
        out / "doctrees",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    built = subprocess.run(
        [*command, ROOT / "docs", out / "html"], capture_output=True, text=True, env=environment, check=False
    )
    assert not built.returncode, built.stderr
    return {path: Page(path) for path in sorted((out / "html").rglob("*.html"))}, out / "html"


@pytest.mark.slow
def test_the_reference_has_every_plugin_command_and_public_name(site):
    pages, folder = site
    for group in plugins.GROUPS:
        for info in plugins.listing(group):
            if info.package == "robustkd":
                assert folder / "reference" / group / f"{info.name}.html" in pages
    for name in presets.names():
        assert folder / "reference" / "presets" / f"{name}.html" in pages
    commands = pages[folder / "reference" / "commands.html"].anchors
    assert {f"robustkd-{name}" for name in COMMANDS} <= commands
    assert pages[folder / "reference" / "api.html"].anchors >= PUBLIC


@pytest.mark.slow
def test_every_link_inside_the_site_leads_to_a_page_and_a_place_on_it(site):
    pages, _ = site
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme:
                assert to.scheme in {"https", "http"}, link
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            assert target.exists(), (path.name, link)
            if to.fragment and target in pages:
                assert unquote(to.fragment) in pages[target].anchors, (path.name, link)
            followed += 1
    assert followed > 1000


@pytest.mark.slow
def test_the_site_needs_no_network(site):
    pages, _ = site
    schemes = {urlsplit(load).scheme for page in pages.values() for load in page.loads}
    assert schemes <= {"", "data"}  # the latter are pictures in the reports of the gallery
