"""A credible 0.0 % is a number to believe and a defense that does not hold: nothing that is shown of it looks like praise."""

from __future__ import annotations

import re
from pathlib import Path

from support.campaigns import external, tiny_campaign

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
CAMPAIGN = tiny_campaign(
    "undefended",
    external("m.py:build"),
    {"pgd": "{kind: pgd, steps: 20}", "margin": "{kind: pgd, steps: 20, loss: margin}"},
    train=20,
    test=40,
    eps=0.3,
    checks="{samples: 20}",
)


def test_no_is_the_answer_and_nothing_is_green(robustkd, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    Path("m.py").write_text(MODEL)
    Path("c.yaml").write_text(CAMPAIGN)

    told = robustkd("run", "c.yaml", "--workers", "0", "--quiet").out
    (row,) = [line for line in told.splitlines() if "mine" in line and "credible" in line]
    assert "\x1b[31m0.0%" in row
    assert "\x1b[32m" not in row
    page = Path("runs/undefended/report.html").read_text()
    assert re.search(r'<p class="answer">No: 0\.0.% of the test samples withstand', page)
    assert '<b class="holds-no">0.0' in page
    assert "</svg>number: credible</span>" in page
    (style,) = re.findall(r"^\.credible .*$", page, re.M)
    assert "--good" not in style
    markdown = robustkd("report", "c.yaml", "--format", "markdown").out
    assert "No: 0.0" in markdown
    assert "✅" not in markdown
    client = MlflowClient()
    runs = client.search_runs([client.search_experiments(filter_string="name LIKE 'undefended%'")[0].experiment_id])
    colours = {run.data.tags["mlflow.runColor"] for run in runs if "mlflow.runColor" in run.data.tags}
    assert colours == {"#d55e00"}
    assert "\x1b[32m" not in robustkd("leaderboard", "runs").out
