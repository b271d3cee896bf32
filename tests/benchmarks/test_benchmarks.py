"""The benchmarks themselves, on a network that is trained in a second."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import _comparisons  # noqa: E402
import _counted  # noqa: E402
import _harness  # noqa: E402
import _networks  # noqa: E402
import _peers  # noqa: E402
import autoattacks  # noqa: E402
import overhead  # noqa: E402
import pgd  # noqa: E402
import precision  # noqa: E402

from robustkd import plugins  # noqa: E402

MODULES = {"robustkd": "robustkd", "adv-lib": "adv_lib", "art": "art", "authors": "rs_attacks"} | {
    name: name for name in ("torchattacks", "foolbox", "pyautoattack")
}


@pytest.fixture(scope="module", autouse=True)
def _trained_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_networks, "load", functools.cache(_networks.load))
        yield


@pytest.fixture
def net() -> nn.Module:
    """Two classes, told apart by the sign of the first pixel's distance from 0.5."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0]]))
        network[1].bias.copy_(torch.tensor([0.5, 0.0]))
    return network


def test_the_judge_believes_nobody(net: nn.Module) -> None:
    x = torch.full((6, 1, 2, 2), 0.4)
    y = torch.zeros(6, dtype=torch.long)
    y[5] = 1  # misclassified before the attack
    found = x.clone()
    found[0, 0, 0, 0] = 0.55  # adversarial, 0.15 away
    found[1, 0, 0, 0] = 0.65  # adversarial, beyond eps
    found[2] = 0  # what foolbox returns for a failed search
    found[3, 0, 0, 0] = float("nan")
    row = _harness.judge(net, x, y, found, "linf", eps=0.2)
    assert row["clean_accuracy"] == pytest.approx(5 / 6)
    assert row["robust_accuracy"] == pytest.approx(4 / 6)  # four of the five classified rightly withstand
    assert row["success"] == pytest.approx(2 / 5)
    assert row["mean_norm"] == pytest.approx((0.15 + 0.25) / 2)
    assert row["median_norm"] == float("inf")
    assert row["standing"] == "011110"


def test_a_patch_is_as_large_as_the_square_around_what_changed(net: nn.Module) -> None:
    x = torch.zeros(3, 2, 5, 5)
    found = x.clone()
    found[1, 0, 1, 3] = found[1, 1, 4, 2] = 0.5  # rows 1 to 4, columns 2 and 3
    found[2, 0, 4, 4] = 0.5
    assert _harness._side(found - x).tolist() == [0, 4, 1]
    one = torch.full((2, 1, 2, 2), 0.4)
    moved = one.clone()
    moved[0, 0, 0, 0] = 0.9
    assert _harness.distances(net, one, torch.zeros(2, dtype=torch.long), moved, "patch").tolist() == [1, float("inf")]
    assert _harness.distances(net, one, torch.zeros(2, dtype=torch.long), moved, "transform").tolist() == [0, float("inf")]


def test_of_a_search_by_decisions_its_first_queries_count(net: nn.Module) -> None:
    """The fourth query would be nearer."""

    def asks(model: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> None:
        for value in (0.9, 0.7, 0.45, 0.55, 0.55):
            moved = x.clone()
            moved[0, 0, 0, 0] = value
            assert model(moved).shape == (1, 2)

    x, y = torch.full((2, 1, 2, 2), 0.4), torch.zeros(2, dtype=torch.long)
    for queries, expected in ((3, 0.7), (4, 0.55), (99, 0.55)):
        job = _harness.Job("hopskipjump-linf", "foolbox", "digits", 2, 0.2, {"queries": queries})
        found = _peers.by_decisions("linf", asks)(job)(net.eval(), x, y)
        assert found[:, 0, 0, 0].tolist() == pytest.approx([expected, expected])


def test_what_cycles_save_is_counted_and_changes_nothing() -> None:
    row = pgd._cycles("digits", 0.05, 16, "cpu")
    assert 0 < row["share_of_passes"] < 0.9


def test_passes_are_counted_each_way(net: nn.Module) -> None:
    model = _counted.Counted(net)
    x = torch.rand(5, 1, 2, 2, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    with torch.no_grad():
        model(x[:2])
    assert model.passes.total == (7, 5)


def test_every_attack_of_ours_in_a_comparison_exists() -> None:
    assert {comparison.ours for comparison in _comparisons.COMPARISONS.values()} <= set(plugins.names("attacks"))


NORMS_AND_KINDS = ["pgd", "pgd-l2", "apgd-ce", "square", "square-l1", "cw-l2", "ddn", "fmn-l1", "fab-linf", "deepfool-l2"]
NORMS_AND_KINDS += ["sigma-zero", "sparse-rs", "hopskipjump-l2", "patch-rs", "patch-at-a-place", "rotate-grid"]
NORMS_AND_KINDS += ["bandits-l2", "nes-linf", "surfree-l2", "lavan", "patch-pgd", "stadv"]


@pytest.mark.parametrize("comparison", NORMS_AND_KINDS)
def test_every_implementation_runs(comparison: str) -> None:
    budgets: dict[str, dict[str, Any]] = {
        "pgd": {"steps": 2, "step_size": 0.05},
        "pgd-l2": {"steps": 2, "step_size": 0.2},
        "cw-l2": {"steps": 10, "binary_steps": 2},
        "patch-at-a-place": {"steps": 2, "step_size": 0.1},
        "rotate-grid": {"rotations": 3, "translations": 1},
        "hopskipjump-l2": {"queries": 60},
        "surfree-l2": {"queries": 60},
        "nes-linf": {"steps": 2, "pairs": 2},
        "lavan": {"steps": 2, "peer_step_size": 0.1},
        "patch-pgd": {"places": 1, "steps": 2, "step_size": 0.1, "peer_steps": 1},
    }
    few = {"queries": 5} if comparison in ("square", "square-l1", "sparse-rs", "patch-rs", "bandits-l2") else {"steps": 3}
    budget = budgets.get(comparison, few)
    eps = 2.0 if _comparisons.COMPARISONS[comparison].norm in ("l0", "patch") else 0.2
    for who in ("robustkd", *_comparisons.COMPARISONS[comparison].peers):
        if importlib.util.find_spec(MODULES[who]) is None or (comparison, who) == ("patch-rs", "authors"):
            continue  # the authors' patches have three channels
        row = _harness._run(_harness.Job(comparison, who, "digits", 8, eps, budget))
        assert row["forwards"] >= 1
        assert 0 <= row["robust_accuracy"] <= row["clean_accuracy"] <= 1
        assert row["clean_accuracy"] > 0.5


def test_a_transfer_is_judged_on_the_other_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an eps that changes nothing, those stand that the other network classifies rightly."""
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        broken[1].weight.zero_()
        broken[1].bias.copy_(torch.arange(10.0))  # always the last class
    monkeypatch.setattr(_comparisons, "_OTHERS", 10)
    load = _networks.load
    monkeypatch.setattr(_networks, "load", lambda name, *more: (broken,) * 3 if name == "nines" else load(name, *more))
    comparison = replace(_comparisons.COMPARISONS["transfer-admix"], judged_on="nines")
    monkeypatch.setitem(_comparisons.COMPARISONS, "transfer-admix", comparison)
    budget = {"steps": 2, "step_size": 1e-6, "mixed": 1, "copies": 1}
    row = _harness._run(_harness.Job("transfer-admix", "robustkd", "digits", 40, 1e-6, budget))
    nines = float((load("digits", 40)[2] == 9).double().mean())
    assert 0 < nines < 0.5
    assert row["robust_accuracy"] == row["clean_accuracy"] == pytest.approx(nines)
    assert row["backwards"] > 0


def test_an_implementation_that_raises_is_said_and_stops_nobody() -> None:
    row = _harness.measure(_harness.Job("pgd", "robustkd", "no-such-network", 2, 0.1))
    assert "error" in row


def test_the_tables_are_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)

    def here(job: _harness.Job) -> dict[str, Any]:  # not in a process of its own
        there = importlib.util.find_spec(MODULES[job.implementation])
        return asdict(job) | (_harness._run(job) if there else {"error": "not installed"})

    monkeypatch.setattr(overhead, "measure", here)
    overhead.main(["--networks", "digits", "--images", "4", "--steps", "2", "--repeats", "1"], standalone_mode=False)
    assert "PGD without anything leaving, to its bare passes" in capsys.readouterr().out
    content = json.loads((tmp_path / "overhead.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert {row["implementation"] for row in content["rows"]} >= {"bare passes", "robustkd", "foolbox"}


def test_both_precisions_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setattr(precision, "BOUTS", (("digits", 0.1, 8, ("pgd", "apgd-ce")),))
    monkeypatch.setattr(precision, "over_seeds", lambda job, seeds: asdict(job) | _harness._run(job))
    precision.main(["--networks", "digits"], standalone_mode=False)
    rows = json.loads((tmp_path / "precision.json").read_text())["rows"]
    assert [(row["comparison"], row["precision"]) for row in rows] == [
        (attack, precision) for attack in ("pgd", "apgd-ce") for precision in ("full", "bf16")
    ]
    assert all(row["share_of_time"] > 0 for row in rows if row["precision"] == "bf16")


def test_a_failure_of_ours_is_told_and_replaces_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    ours, peer = ({"implementation": name, "network": "some", "error": "it raised"} for name in ("robustkd", "foolbox"))
    _harness.conclude("some", [peer], [("network", "network", "")], _harness.Verdicts())
    before = (tmp_path / "some.json").read_text()
    with pytest.raises(click.ClickException, match=r"1 runs of robustkd failed, so results/some\.json stays as it was"):
        _harness.conclude("some", [peer, ours], [("network", "network", "")], _harness.Verdicts())
    assert (tmp_path / "some.json").read_text() == before


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[_harness.Job]:
    """The jobs that were measured, each in no time."""
    jobs: list[_harness.Job] = []

    def measure(job: _harness.Job, *, limit: float | None = None) -> dict[str, Any]:
        jobs.append(job)
        if job.network == "slow":
            return asdict(job) | {"error": "not done", "limit": limit}
        if job.network == "broken":
            return asdict(job) | {"error": "no such package"}
        figures = dict.fromkeys(
            ("wall", "cpu", "forwards", "backwards", "peak_mib", "success", "median_norm", "mean_norm"), 1.0
        )
        return asdict(job) | figures | {"robust_accuracy": 0.5 + 0.1 * job.seed}

    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setattr(_harness, "measure", measure)
    return jobs


def test_a_run_that_was_stopped_goes_on(measured: list[_harness.Job], monkeypatch: pytest.MonkeyPatch) -> None:
    job = _harness.Job("pgd", "robustkd", "digits", 8, 0.2, {"steps": 2})
    stopped = _harness.Jobs("some")
    assert stopped.measure(job)
    assert _harness.Jobs("some").measure(job) == stopped.rows[0]
    assert measured == [job]
    assert _harness.Jobs("some").measure(replace(job, first=8))
    assert _harness.Jobs("some", again=True).measure(job)
    assert len(measured) == 3
    monkeypatch.setattr(_harness, "version", lambda job: "pgd of tomorrow")
    assert _harness.Jobs("some").measure(job)
    assert len(measured) == 4


def test_a_row_of_other_weights_is_no_row_of_this_network(
    measured: list[_harness.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _harness.Job("pgd", "robustkd", "pgd_at", 8, 0.1, {"steps": 2})
    for weights, expected in (("first", 1), ("first", 1), ("trained again", 2)):
        monkeypatch.setattr(_networks, "weights", lambda name, it=weights: it)
        row = _harness.Jobs("some").measure(job)
        assert row is not None
        assert row["weights"] == weights
        assert len(measured) == expected


def test_of_a_miss_it_is_said_whether_seeds_alone_may_do_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Means of 3 and 2 seeds with variances of 3 and 2: two standard errors are 2 * sqrt(1 + 1)."""
    by_chance = _harness.chance([57.0, 60, 60], [60.0, 58])
    assert by_chance == pytest.approx(2 * 2**0.5)
    assert _harness.chance([60.0], [57.0]) == _harness.chance([60.0, 60], [57.0, 57]) == 0
    assert _harness.chance([60.0, 61], [float("inf")] * 2) == pytest.approx(2 * 0.5)
    verdicts = _harness.Verdicts()
    for value in (0.2, 3.0, 3.1):
        verdicts.expect(f"{value} points", value, 0.2, chance=by_chance)
    assert [line["met"] for line in verdicts.lines] == [True, False, False]
    verdicts.print()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["met", "MISSED", "MISSED"]
    assert ["chance alone is up to 2.828" in line for line in lines] == [False, True, False]


def test_what_ran_out_of_time_does_so_once_and_what_was_missing_is_tried_again(measured: list[_harness.Job]) -> None:
    slow, broken = (_harness.Job("pgd", "robustkd", network, 8, 0.2, {"steps": 2}) for network in ("slow", "broken"))
    for _ in range(2):
        for job in (slow, broken):
            assert "error" in (_harness.Jobs("some").measure(job, limit=3.0) or {})
    assert measured == [slow, broken, broken]
    _harness.Jobs("some").measure(slow, limit=9.0)
    assert measured[-1] == slow


def test_no_job_is_begun_when_the_minutes_are_over(measured: list[_harness.Job]) -> None:
    jobs = _harness.Jobs("some", minutes=1e-9)
    assert jobs.measure(_harness.Job("pgd", "robustkd", "digits", 8, 0.2, {"steps": 2})) is None
    assert jobs.left == 1
    assert not measured


def test_autoattacks_are_compared_on_the_parts_that_all_have(
    measured: list[_harness.Job], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["--networks", "digits", "--part", "20", "--seeds", "2", "--implementations", "robustkd,pyautoattack"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoattacks, "BOUTS", (autoattacks.Bout("digits", 50, None),))
        patch.setitem(_networks.EPS, "digits", 0.1)
        autoattacks.main(given, standalone_mode=False)
    rows = json.loads((tmp_path / "autoattacks.json").read_text())["rows"]
    assert [(row["comparison"], row["implementation"], row["images"]) for row in rows] == [
        ("autoattack", "robustkd", 50),
        ("autoattack-adaptive", "robustkd", 50),
        ("autoattack", "pyautoattack", 50),
    ]
    assert rows[0]["robust_accuracies"] == pytest.approx([0.5, 0.6])
    assert rows[0]["cpu"] == pytest.approx(3.0)  # of three parts
    assert len(measured) == 3 * 3 * 2
    assert "robust accuracy of adaptive above standard's" in capsys.readouterr().out
