"""A model with memory for 16 samples: ``batch_size=16`` holds for checks too, and a check that was not run has not fired."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.contracts import ThreatModel
from robustkd.contracts.check import Finding
from robustkd.evaluation.checks import check_names, make_check
from robustkd.evaluation.images import make_batch
from robustkd.evaluation.suite import TargetDiagnostics
from robustkd.reporting.verdict_text import CheckRow
from robustkd.scoring.results import DefenseResult
from robustkd.scoring.verdict import verdict
from robustkd.targets import ClassifierTarget, SplitTarget
from robustkd.tracking import descriptions
from support.campaigns import external, tiny_campaign
from support.command_line import CommandLine
from support.small_memory import small_network

MOST = 16


class Small(nn.Module):
    """Linear in 64 pixels; raises above ``most`` rows, and below a gradient if ``backward`` is off. Remembers its largest call."""

    def __init__(self, most: int = 10**9, *, backward: bool = True) -> None:
        super().__init__()
        self.most, self.backward, self.largest = most, backward, 0
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        generator = torch.Generator().manual_seed(0)
        for weight in self.net.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) / 8

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        if len(x) > self.most or (x.requires_grad and not self.backward):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(x)


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    x = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, Small()(x).argmax(1)


def told(findings: tuple[Finding, ...]) -> dict[str, tuple[str, bool]]:
    return {finding.name: (finding.outcome, finding.fired) for finding in findings}


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.parametrize("level", ["standard", "thorough"])
@pytest.mark.slow
def test_no_call_is_larger_than_the_batch_size(level: str, samples: tuple[Tensor, Tensor]) -> None:
    given = {
        "eps": 0.05,
        "attack": [{"kind": "pgd", "steps": 5}, "fgsm"],
        "level": level,
        "samples": 32 if level == "standard" else 20,
    }
    small, large = Small(MOST), Small()
    report = robustkd.audit(small, *samples, batch_size=MOST, **given)
    whole = robustkd.audit(large, *samples, **given)
    assert small.largest == MOST < large.largest
    assert report.verdict == whole.verdict
    assert report.robust_accuracy == whole.robust_accuracy
    assert told(report.findings) == told(whole.findings)
    assert not [finding for finding in report.findings if not finding.ran]


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.slow
def test_evaluate_with_a_helper_and_remedies_keeps_to_it(samples: tuple[Tensor, Tensor]) -> None:
    class Masked(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 8).round() / 8)

    masked, helper = Masked(MOST), Small(MOST)
    attacks = ["fgsm", {"kind": "transfer", "surrogates": ["helper"], "attacks": [{"kind": "pgd", "steps": 3}]}]
    report = robustkd.evaluate(masked, *samples, attacks=attacks, models={"helper": helper}, batch_size=MOST, eps=0.05)
    assert report.verdict == "not credible"
    assert report.remedy is not None
    assert "square" in report.remedy.steps
    assert (masked.largest, helper.largest) == (MOST, MOST)


def test_a_gradient_through_parts_is_that_of_the_whole() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * torch.rand(len(x), 4)  # drawn again on the way back, and alike

    target = SplitTarget(ClassifierTarget(Noisy(), num_classes=4, input_shape=(1, 2, 2)), 3)
    x = torch.rand(8, 1, 2, 2, requires_grad=True)
    logits = target(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert torch.allclose(gradient.flatten(1) * x.flatten(1), logits)


def test_a_check_that_could_not_run_is_not_run(samples: tuple[Tensor, Tensor]) -> None:
    report = robustkd.evaluate(Small(backward=False), *samples, attacks=[{"kind": "square", "queries": 20}], eps=0.05)
    unrun = {finding.name: finding for finding in report.findings if finding.outcome == "not run"}
    assert "zero-gradient" in unrun
    assert "OutOfMemoryError: CUDA out of memory" in unrun["zero-gradient"].evidence["reason"]
    assert not any(finding.fired for finding in unrun.values())
    assert report.verdict == "suspect"  # severe checks are among them: nobody knows what they would have found
    head, line = str(report).splitlines()[1:3]
    assert head.endswith("suspect")
    assert line == f"checks not run  {', '.join(unrun)}"


@pytest.mark.filterwarnings("ignore:memory ran out:RuntimeWarning")
def test_what_is_looked_at_before_stronger_attacks_is_the_same_in_parts(samples: tuple[Tensor, Tensor]) -> None:
    batch = make_batch(*samples)
    few, all_at_once = (
        TargetDiagnostics.of(
            ClassifierTarget(Small(most).eval(), num_classes=4, input_shape=(1, 8, 8)), batch, ThreatModel("linf", 0.05), 0
        )
        for most in (MOST, 10**9)
    )
    assert all_at_once.agreement is not None
    assert few.agreement == pytest.approx(all_at_once.agreement)
    assert few.replaced == all_at_once.replaced


def test_what_a_check_that_was_not_run_means_for_the_verdict() -> None:
    quiet = Finding("a", "severe", False, decisive=True)
    mild, grave = make_check("output-type"), make_check("zero-gradient")
    unrun = [check.not_run(MemoryError("none left")) for check in (mild, grave)]
    assert verdict([quiet, unrun[0]]) == "credible"
    assert verdict([quiet, unrun[1]]) == "suspect"
    assert verdict([Finding("b", "severe", True), *unrun]) == "not credible"
    assert CheckRow(unrun[0], (0,)).text == "MemoryError: none left"


def test_a_finding_of_an_older_store_is_read() -> None:
    stored = asdict(Finding("a", "severe", False))
    del stored["ran"]
    assert Finding(**stored).outcome == "quiet"


MODEL = small_network(
    "Full",
    """if x.requires_grad and HERE.with_name("full").exists():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(x.flatten(1))""",
)

CAMPAIGN = tiny_campaign(
    "memory",
    external("FOLDER/net.py:Full", "linear"),
    {"square": "{kind: square, queries: 20}"},
    data="{name: digits, train: 20, validation: 10, test: 20}",
    eps=0.02,
    checks="{samples: 8}",
)


@pytest.fixture
def run(robustkd: CommandLine, tmp_path: Path) -> Callable[[], str]:
    (tmp_path / "net.py").write_text(MODEL)
    text = CAMPAIGN.replace("FOLDER", str(tmp_path))
    (tmp_path / "memory.yaml").write_text(text)

    def run() -> str:
        code, out, err = robustkd("run", tmp_path / "memory.yaml", "--out", tmp_path / "out", "--no-track", "--workers", 0)
        assert code == 0, out + err
        return out + err

    return run


@pytest.mark.usefixtures("no_escalation")
def test_a_want_of_memory_in_a_campaign_is_not_final(run: Callable[[], str], tmp_path: Path) -> None:
    def result() -> dict[str, object]:
        return json.loads((tmp_path / "out" / "results.json").read_text())["defenses"][0]

    full = tmp_path / "full"  # the attack takes no gradient, and has its memory; checks have none
    full.touch()
    said = run()
    assert "linear: not run (seed 0): " in said
    assert "OutOfMemoryError: CUDA out of memory; running the campaign again tries again" in said
    first = result()
    assert first["verdict"] == "suspect"
    assert not [finding for finding in first["checks"] if finding["fired"]]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "could not be run: " in page
    assert "not run" in (tmp_path / "out" / "report.html").read_text()
    again = run()  # still no memory: tried once, and not for ever
    assert "checks that could not all be run (1 cell)" in again
    assert result()["verdict"] == "suspect"
    full.unlink()
    run()
    assert result()["verdict"] == "credible"
    assert "linear checks" not in run()  # the network is built anew, and nothing else is done


def test_every_check_can_say_that_it_was_not_run() -> None:
    for name in check_names("thorough"):
        finding = make_check(name).not_run(ValueError("why"))
        assert (finding.outcome, finding.name) == ("not run", name)


def test_mlflow_is_told_what_was_not_run() -> None:
    unrun = make_check("zero-gradient").not_run(MemoryError("none left"))
    trained = DefenseResult(
        "linear",
        0,
        "external",
        "done",
        "linf",
        0.02,
        n=20,
        clean_accuracy=0.9,
        robust_accuracy=0.8,
        verdict="suspect",
        checks=[unrun],
    )
    assert "**zero-gradient** (not run): MemoryError: none left" in descriptions.defense(trained)


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.parametrize("when", ["always", "with a gradient"])
@pytest.mark.slow
def test_memory_that_runs_out_is_tried_again_with_fewer_samples(when: str, samples: tuple[Tensor, Tensor]) -> None:
    class Full(Small):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 10 and (when == "always" or x.requires_grad):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    given = {"attacks": [{"kind": "pgd", "steps": 5}], "eps": 0.05, "samples": 16}
    with pytest.warns(RuntimeWarning, match="memory ran out with 48 samples at once; going on with 24"):
        report = robustkd.evaluate(Full(), *samples, **given)
    whole = robustkd.evaluate(Small(), *samples, **given)
    assert (report.standing == whole.standing).all()
    assert report.verdict == whole.verdict
    assert told(report.findings) == told(whole.findings)
