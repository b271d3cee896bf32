"""A campaign that measures at one budget: no line and no band leads over the budgets at which nothing was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import robustkd
from robustkd.campaigns.store.samples import read
from robustkd.campaigns.store.store import Store
from robustkd.cli import cli
from robustkd.reporting.plots import curve
from robustkd.reporting.presentation import terms_of
from support.campaigns import tiny_campaign


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    attacks = {"pgd": "{kind: pgd, steps: 5}", "fmn": "{kind: fmn, steps: 20}"}
    (folder / "tiny.yaml").write_text(tiny_campaign(train=300, test=60, attacks=attacks))
    done = CliRunner().invoke(
        cli, ["run", str(folder / "tiny.yaml"), "--out", str(folder / "out"), "--no-track", "-q", "--workers", "0"]
    )
    assert done.exit_code == 0, done.output
    return folder / "out"


def test_a_minimum_norm_attack_gives_every_eps(run: Path) -> None:
    cells = {cell["attack"]: cell for cell in json.loads((run / "results.json").read_text())["cells"]}
    assert [point["eps"] for point in cells["pgd"]["curve"]] == [0.1]
    points = cells["fmn"]["curve"]
    assert len(points) >= 32
    entry = Store(run).get(cells["fmn"]["cell_id"])
    assert entry is not None
    record = read(entry)
    for point in points:
        standing = record.outcome.correct & ~(record.broken_at <= point["eps"])
        assert point["robust_accuracy"] == np.mean(standing)
    assert points[-1]["eps"] == 0.1
    assert points[-1]["robust_accuracy"] == cells["fmn"]["robust_accuracy"]


def test_a_line_is_drawn_where_it_was_measured_alone(run: Path) -> None:
    results = robustkd.load(run)
    drawn = {cell.attack: curve(cell.attack, cell.curve, terms_of(results)) for cell in results.cells}
    assert not any(drawn["pgd"].joined)
    assert drawn["fmn"].joined == [False, *[True] * (len(drawn["fmn"].x) - 1)]
    page = (run / "report.html").read_text()
    (small,) = re.findall(r'<figure class="chart small">\s*<figcaption>pgd</figcaption>.*?</figure>', page, re.DOTALL)
    paths = re.findall(r'class="line" d="([^"]*)"', small)
    assert paths
    assert not any("L" in path for path in paths)  # whiskers are there, no line is
    assert 'class="band' not in small
    assert (run / "curves.png").is_file()
