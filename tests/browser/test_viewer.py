"""The viewer as a browser shows it: accessible on a desk and a phone, by day and by night, and usable by keyboard."""

from __future__ import annotations

import pytest
from viewer.conftest import IMAGES, finished, served

import robustkd
from robustkd.campaigns.execution import live

pytestmark = pytest.mark.slow
__all__ = ["finished"]  # a fixture

PAGES = {
    "leaderboard": "/",
    "campaign": "/campaign?run=pictures",
    "samples": "/samples?run=pictures&defense=plain&seed=0",
    "sample": "/sample?run=pictures&defense=plain&seed=0&n=1",
    "conversation": "/sample?run=cupboards&defense=short-sighted&seed=0&n=1",
    "drawings": "/sample?run=squares&defense=unlearnt&seed=0&n=1",
    "compare": "/compare?a=pictures/0/plain&b=pictures/0/robust",
    "side-by-side": "/compare?a=pictures/0/plain&b=pictures/0/robust&n=1",
}


@pytest.fixture(scope="module")
def address(finished):
    with served(finished) as get:
        yield f"http://{get.place}"


@pytest.mark.parametrize("name", PAGES)
def test_no_finding_of_axe(node, screenshots, address, name):
    for item in node("accessibility.mjs", address + PAGES[name], screenshots, f"viewer-{name}"):
        where = f"{item['width']} px, {item['scheme']}"
        assert item["passes"] > 15, where
        assert item["violations"] == [], where
        assert item["wide"] <= 0, f"{where}: the page scrolls sideways"
        assert item["complaints"] == [], where


def test_a_running_campaign_has_no_finding_of_axe(node, screenshots, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PAUSE", 0.0)
    found = []
    with served(tmp_path / "runs") as get:

        def look(event):
            if (event.event, event.defense, event.epoch) == ("epoch", "robust", 3):
                found.extend(node("accessibility.mjs", f"http://{get.place}/campaign?run=going", screenshots, "viewer-live"))

        (tmp_path / "runs").mkdir()
        robustkd.run(IMAGES, tmp_path / "runs/going", workers=0, device="cpu", track=False, progress=look)
    assert found
    for item in found:
        where = f"{item['width']} px, {item['scheme']}"
        assert item["violations"] == [], where
        assert item["wide"] <= 0, f"{where}: the page scrolls sideways"
        assert item["complaints"] == [], where


def test_a_reader_finds_failures_walks_and_compares(node, screenshots, address):
    told = node("viewer.mjs", address + "/", screenshots)
    assert {number == answer for number, answer in told["colours"]} == {True}  # what does not hold is not green
    assert "q=pictures" in told["searched"]
    assert "show=broken" in told["list"]
    assert told["opened"] == told["back"] == told["shared"]
    assert told["next"] != told["opened"]
    assert told["up"] == told["list"]
    assert told["loaded"]
    assert min(told["loaded"]) >= 8
    assert told["sides"] == 2
    assert told["outside"] == []
    assert told["complaints"] == []
