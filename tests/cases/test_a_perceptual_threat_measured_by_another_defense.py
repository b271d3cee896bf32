"""A campaign whose perceptual distance is that of another defense's network: results, verdicts, and what belongs to a cell's identity."""

from __future__ import annotations

import json
from pathlib import Path

from robustkd.campaigns.file import spec
from robustkd.campaigns.plan.plan import build
from support.command_line import CommandLine

CAMPAIGN = """
version: 1
name: alike
data: {name: digits, train: 120, test: 12}
threat: {perceptual: 0.3, metric: eyes, layers: [relu1, relu2], curve: [0.1]}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 4, batch_size: 32, lr: 0.05}
  eyes: {kind: standard, model: tiny-cnn, epochs: 2, batch_size: 32, lr: 0.05}
attacks:
  climb: {kind: lpa, rounds: 2, steps: 5}
  own: {kind: ppgd, steps: 3, threat: {perceptual: 0.3}}
checks: {level: standard, samples: 8}
matrix: {exclude: [{defense: eyes}]}
"""


def test_it_is_run_and_shown(robustkd: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "alike.yaml").write_text(CAMPAIGN)
    out = tmp_path / "out"
    said = robustkd("run", tmp_path / "alike.yaml", "--out", out, "--no-track", "--workers", "0", "--device", "cpu")
    assert said.code == 0, said
    results = json.loads((out / "results.json").read_text())
    assert results["threat"]["norm"] == "perceptual(metric=eyes,layers=relu1+relu2)"
    (plain,) = results["defenses"]
    assert set(plain["other_threats"]) == {"perceptual <= 0.3"}
    assert [point["eps"] for point in plain["curve"]] == [0.1, 0.3]
    assert all(finding["ran"] for finding in plain["checks"])
    assert "perceptual &lt;= 0.3 by eyes at relu1, relu2" in (out / "report.html").read_text()


def test_the_identity_of_a_cell_has_the_network_that_measures() -> None:
    def cells(text: str) -> dict[str, str]:
        return {cell.title: cell.id for cell in build(spec.from_text(text, "alike.yaml", Path())).cells}

    before, after = cells(CAMPAIGN), cells(CAMPAIGN.replace("epochs: 2", "epochs: 1"))
    changed = {title for title in before if before[title] != after[title]}
    assert changed == {"eyes train · seed 0", "plain × climb · seed 0", "plain checks · seed 0"}
