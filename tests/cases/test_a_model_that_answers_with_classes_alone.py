"""A model that answers with the predicted class alone: attacks by decisions run on it, and others say what they lack."""

import json

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import TargetError, UsageError
from robustkd.targets import modules
from support.campaigns import external, tiny_campaign

SERVICE = """
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


class Service(nn.Module):
    def __init__(self):
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        means = np.stack([images[labels == label].mean(0) / 16 for label in range(10)])
        self.register_buffer("means", torch.from_numpy(means).float())

    def forward(self, x):
        return torch.cdist(x.flatten(1), self.means).argmin(1)


def build():
    return Service()
"""

CAMPAIGN = tiny_campaign(
    "service",
    external("service.py:build", "service"),
    {"rays": "{kind: rays, queries: 60}", "square": "{kind: square, queries: 10}"},
    train=None,
    test=12,
    eps=0.5,
)


class Halves(nn.Module):
    def forward(self, x):
        return (x.flatten(1).mean(1) > 0.5).long()


def test_in_python_an_attack_by_decisions_finds_the_boundary_and_others_are_refused():
    x, y = torch.full((3, 1, 4, 4), 0.4), torch.zeros(3, dtype=torch.int64)
    model = modules.ClassesAlone(Halves(), 2)
    found = robustkd.attack("rays", model, x, y, norm="linf", eps=0.12, queries=40)
    assert found.outcome.success.all()
    assert found.outcome.distance == pytest.approx(0.1, rel=0.02)
    with pytest.raises(TargetError, match="needs logits"):
        robustkd.attack("square", model, x, y, norm="linf", eps=0.12, queries=40)
    with pytest.raises(UsageError, match="classes alone"):
        robustkd.attack("rays", Halves(), x, y, norm="linf", eps=0.12, queries=40)


def test_in_a_campaign_it_is_found_out_and_the_curve_by_queries_is_in_the_results(robustkd, tmp_path, caplog):
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "mine.yaml").write_text(CAMPAIGN)
    robustkd("run", "mine.yaml", "--no-track", "--workers", "0")
    folder = tmp_path / "runs" / "service"
    cells = {cell["attack"]: cell for cell in json.loads((folder / "results.json").read_text())["cells"]}
    assert "classes alone" in caplog.text
    assert cells["square"]["status"] == "failed"
    assert "needs logits" in cells["square"]["error"]
    assert cells["rays"]["status"] == "done"
    curve = cells["rays"]["by_queries"]
    assert [point["queries"] for point in curve] == [0, 10, 20, 50, 100]
    assert curve[0]["robust_accuracy"] == cells["rays"]["clean_accuracy"]
    assert curve[-1]["robust_accuracy"] == cells["rays"]["robust_accuracy"]
    assert "Robust accuracy by queries" in (folder / "report.md").read_text()
