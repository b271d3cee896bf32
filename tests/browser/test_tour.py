"""The pictures of docs/tour.md, made as a reader sees the pages. They are kept in screenshots/; ``make tour`` brings them into docs/."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from viewer.conftest import served

import robustkd

pytestmark = pytest.mark.slow

CAMPAIGN = """
version: 1
name: tour
data: {name: digits, train: 900, test: 150}
threat: {norm: linf, eps: 0.15}
checks: {level: standard, samples: 60}
defenses:
  standard:  {kind: standard, model: tiny-cnn, epochs: 25}
  pgd-at:    {kind: pgd-at, model: tiny-cnn, epochs: 25, inner: {steps: 5}}
gates:
  - {defense: pgd-at, at_least: 0.4}
attacks:
  fgsm:   {kind: fgsm}
  pgd:    {kind: pgd, steps: 20}
"""
STRONGER = "  apgd-t: {kind: apgd-t, steps: 20, targets: 3}\n"
PAGES = {
    "leaderboard": "/",
    "campaign": "/campaign?run=tour",
    "samples": "/samples?run=tour&defense=pgd-at&seed=0&show=broken",
    "sample": "/sample?run=tour&defense=pgd-at&seed=0&show=broken&n={broken}",
    "compare": "/compare?a=tour%2F0%2Fstandard&b=tour%2F0%2Fpgd-at",
    "changes": "/changes",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A campaign that was run, and a week later with a stronger attack."""
    runs = tmp_path_factory.mktemp("tour") / "runs"
    robustkd.run(CAMPAIGN, runs / "tour", workers=0, device="cpu", track=False)
    robustkd.run(CAMPAIGN + STRONGER, runs / "tour", workers=0, device="cpu", track=False)
    record = json.loads((runs / "tour" / "record.json").read_text())
    record["runs"][0]["finished"] = (datetime.now(UTC) - timedelta(days=7)).isoformat(timespec="seconds")
    (runs / "tour" / "record.json").write_text(json.dumps(record))
    return runs


def test_each_page_is_pictured(node, screenshots, runs, tmp_path):
    with served(runs) as get:
        listed = get("samples", run="tour", defense="pgd-at", seed=0, show="broken").page
        broken = next(link for link in listed.links if link.startswith("/sample?")).rpartition("n=")[2]
        pages = {name: f"http://{get.place}{page.format(broken=broken)}" for name, page in PAGES.items()}
        (tmp_path / "pages.json").write_text(json.dumps(pages))
        told = node("tour.mjs", str(tmp_path / "pages.json"), screenshots)
    assert list(told) == list(PAGES)
    for name, page in told.items():
        assert page["complaints"] == [], name
        assert page["images"] == page["loaded"], name
    assert "No such" not in told["sample"]["words"]
