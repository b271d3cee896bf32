"""A defense that was spared an attack is not claimed to withstand more than one that was not, unless it does under the attacks of both."""

from __future__ import annotations

import json
from pathlib import Path

from support.campaigns import tiny_campaign
from support.command_line import CommandLine

NETWORK = "kind: standard, model: tiny-cnn, epochs: 4, batch_size: 16, optimiser: adam, lr: 0.01"


def test_a_twin_that_was_spared_the_strong_attack(robustkd: CommandLine) -> None:
    text = tiny_campaign(
        "spared",
        {"plain": f"{{{NETWORK}}}", "twin": f"{{{NETWORK}, replica: 1}}"},
        {
            "weak": "{kind: pgd, steps: 1, step_size: 0.002, random_start: false}",
            "margin": "{kind: pgd, steps: 4, loss: margin}",
        },
        train=300,
        test=60,
        eps=0.15,
        matrix="{exclude: [{defense: twin, attack: margin}]}",
        gates="[{defense: twin, at_least: 0.3}]",
        undefended="plain",
    )
    Path("c.yaml").write_text(text)
    assert robustkd("run", "c.yaml", "--workers", "0", "--quiet", "--no-track").code == 0
    (claim,) = json.loads(Path("runs/spared/results.json").read_text())["claims"]
    assert claim["difference"] < -0.3, "the twin seems to be better"
    assert claim["networks"] is None
    report = Path("runs/spared/report.md").read_text()
    assert "margin was run on plain alone" in report
    assert "withstands more" not in report
    (board,) = json.loads(robustkd("leaderboard", "runs/spared", "--json").out)
    (twin,) = [entry for entry in board["entries"] if entry["defense"] == "twin"]
    assert twin["holds"] is None
    assert "margin was run on plain (undefended) alone" in twin["why"]
