"""A credible 0.0 % is a number to believe and a defense that does not hold: nothing that is shown of it looks like praise."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from robustkd.cli import main

MODEL = """
import torch
from sklearn.datasets import load_digits
from torch import nn

def build():
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network
"""
CAMPAIGN = """
version: 1
name: undefended
data: {name: digits, train: 20, test: 40}
threat: {norm: linf, eps: 0.3}
checks: {samples: 20}
defenses: {mine: {kind: external, code: m.py:build}}
attacks:
  pgd: {kind: pgd, steps: 20}
  margin: {kind: pgd, steps: 20, loss: margin}
"""


def test_no_is_the_answer_and_nothing_is_green(tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    Path("m.py").write_text(MODEL)
    Path("c.yaml").write_text(CAMPAIGN)

    def robustkd(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["robustkd", *arguments])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    told = robustkd("run", "c.yaml", "--workers", "0", "--quiet")
    (row,) = [line for line in told.splitlines() if "mine" in line and "credible" in line]
    assert "\x1b[31m0.0%" in row
    assert "\x1b[32m" not in row
    page = Path("runs/undefended/report.html").read_text()
    assert re.search(r'<p class="answer">No: 0\.0.% of the test samples withstand', page)
    assert '<b class="holds-no">0.0' in page
    assert "</svg>number: credible</span>" in page
    (style,) = re.findall(r"^\.credible .*$", page, re.M)
    assert "--good" not in style
    markdown = robustkd("report", "c.yaml", "--format", "markdown")
    assert "No: 0.0" in markdown
    assert "✅" not in markdown
    client = MlflowClient()
    runs = client.search_runs([client.search_experiments(filter_string="name LIKE 'undefended%'")[0].experiment_id])
    colours = {run.data.tags["mlflow.runColor"] for run in runs if "mlflow.runColor" in run.data.tags}
    assert colours == {"#d55e00"}
    assert "\x1b[32m" not in robustkd("leaderboard", "runs")
