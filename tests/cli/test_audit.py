"""``robustkd audit`` as a user types it, and cells that must never become a number."""

import json

import pytest

from support.campaigns import external, tiny_campaign

NET = """\
import torch
from torch import nn

class Quantised(nn.Module):
    def __init__(self, levels):
        super().__init__()
        self.levels, self.net = levels, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net((x * self.levels).round() / self.levels if self.levels else x)

def fitted(levels):
    from sklearn.datasets import load_digits
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y)
    torch.manual_seed(0)
    net = Quantised(levels)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net.net(x), y).backward()
        optimiser.step()
    return net

class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = fitted(0)

    def forward(self, x):
        return self.net(x.detach())

def cut(): return Cut()
def honest(): return fitted(0)
def masked(): return fitted(16)
"""

BROKEN = """\
import torch
from robustkd.contracts import Attack, AttackResult

class GreyLevels(Attack):
    def run(self, target, batch, threat, rng):
        ones = torch.ones(len(batch), dtype=torch.int64)
        return AttackResult((batch.inputs + 255 * threat.eps).clamp(0, 1), ones.bool(), ones, ones)
"""


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path, installed):
    """The working directory has the models above, and an attack that breaks its contract is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "broken_attack.py").write_text(BROKEN)
    installed("broken-attack", {"attacks": {"grey-levels": "broken_attack:GreyLevels"}})


ABOUT = ("--data", "digits", "--n", "80", "--eps", "0.1", "--device", "cpu")


def test_an_honest_model(robustkd):
    code, out, err = robustkd("audit", "net.py:honest", *ABOUT)
    assert code == 0, err
    assert "credible" in out
    assert "not credible" not in out
    for name in ("broken-graph", "transfer-beats-white-box", "silent-success"):
        assert name in out
    assert "binarization-test" not in out


@pytest.mark.usefixtures("no_escalation")
def test_a_masked_model_has_both_numbers_and_code_4(robustkd):
    code, out, err = robustkd("audit", "net.py:masked", *ABOUT, "--attack", "{kind: pgd, steps: 10}", "--json")
    assert code == 4, err
    found = json.loads(out)
    assert found["verdict"] == "not credible"
    assert found["remedy"]["robust_accuracy"] < found["robust_accuracy"] - 0.1
    fired = {check["name"] for check in found["checks"] if check["fired"]}
    assert "zero-gradient" in fired
    assert sum(check["forward_passes"] for check in found["checks"]) > 0


def test_an_attack_that_breaks_the_threat_model_gives_no_number(robustkd):
    code, out, _ = robustkd("audit", "net.py:honest", *ABOUT, "--attack", "grey-levels")
    assert code == 3
    assert "no number" in out
    assert "eps is in units of [0, 1] pixels" in out
    code, _, err = robustkd("audit", "net.py:honest", "--eps", "-1")
    assert code == 2
    assert "give a number >= 0" in err


@pytest.mark.usefixtures("no_remedies")
def test_in_a_campaign_its_cell_is_invalid_everywhere(robustkd, tmp_path):
    (tmp_path / "c.yaml").write_text(
        tiny_campaign(
            "c",
            external("net.py:honest"),
            {"pgd": "{kind: pgd, steps: 5}", "bad": "{kind: grey-levels}"},
            train=None,
            test=40,
            checks="{level: standard, samples: 16}",
        )
    )
    code, out, err = robustkd("run", "c.yaml", "--no-track", "--workers", "0", "--device", "cpu")
    assert code == 3
    assert "invalid: mine × bad, seed 0: GreyLevels left its budget" in err
    results = json.loads((tmp_path / "runs/c/results.json").read_text())
    cells = {cell["attack"]: cell for cell in results["cells"]}
    assert cells["bad"]["status"] == "invalid"
    assert cells["bad"]["robust_accuracy"] is None
    assert results["defenses"][0]["attacks"] == ["pgd"]
    assert results["defenses"][0]["verdict"] == "suspect"
    row = next(line for line in out.splitlines() if line.startswith("mine"))
    assert "suspect" in row
    page = (tmp_path / "runs/c/report.html").read_text()
    assert "invalid" in page
    assert "left its budget" in page
    from robustkd.scoring.results import Results
    from robustkd.tracking import descriptions

    note = descriptions.cell(next(cell for cell in Results.from_dict(results).cells if cell.attack == "bad"), None)
    assert "**invalid**, no number" in note


@pytest.mark.usefixtures("no_escalation")
def test_a_model_without_gradients_still_gets_a_number_from_the_black_box(robustkd, tmp_path):
    (tmp_path / "d.yaml").write_text(
        tiny_campaign("d", external("net.py:cut", "cut"), {"pgd": "{kind: pgd, steps: 5}"}, train=None, test=40, checks=None)
    )
    code, out, err = robustkd("run", "d.yaml", "--no-track", "--workers", "0", "--device", "cpu")
    assert code == 3
    assert "no gradient with respect to its input" in err
    (found,) = json.loads((tmp_path / "runs/d/results.json").read_text())["defenses"]
    assert found["status"] == "failed"
    assert found["robust_accuracy"] is None
    assert found["verdict"] is None
    assert {"broken-graph", "zero-gradient"} <= {check["name"] for check in found["checks"] if check["fired"]}
    assert found["remedy"]["robust_accuracy"] < 0.9
    assert "square" in out
