"""A small campaign, run for real in child processes."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustkd.campaigns.execution.engines import Limits
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.engines.local import LocalEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.results.collect import collect
from robustkd.campaigns.results.failure import Failure
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.contracts import StoreError

SMALL = """\
version: 1
name: small
data: {name: digits, train: 300, test: 60}
threat: {norm: linf, eps: 0.1, curve: [0.05, 0.2]}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 2}
  copy: {kind: defensive-distillation, model: tiny-cnn, teacher: plain, temperature: 10, epochs: 2}
attacks:
  fgsm: {kind: fgsm}
  pgd: {kind: pgd, steps: 5}
  margin: {kind: pgd, steps: 5, loss: margin}
  cw: {kind: cw-l2, steps: 10, binary_steps: 2}
"""

MODEL = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.linear, self.asked = fault, nn.Linear(64, 10), 0

    def forward(self, x):
        z = self.linear(x.flatten(1))
        if torch.is_grad_enabled() and self.fault == "nan":
            return z * float("nan")
        if torch.is_grad_enabled() and self.fault == "raises":
            raise ValueError("out of order")
        if torch.is_grad_enabled() and self.fault == "dies":
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        return z[:, :3] if self.fault == "shape" and torch.is_grad_enabled() else z

def fine(): return Net(None)
def nan(): return Net("nan")
def raises(): return Net("raises")
def dies(): return Net("dies")
def shape(): return Net("shape")
"""


class Log(Observer):
    def __init__(self):
        self.ran = []
        self.lost = []

    def succeeded(self, cell, result):
        self.ran.append(cell.id)

    def failed(self, cell, failure):
        self.lost.append((cell, failure))


def plan_of(text: str, folder: Path = Path()) -> planning.Plan:
    return planning.build(spec.from_text(text, "test.yaml", folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("small")
    log = Log()
    plan = plan_of(SMALL)
    return plan, out, run(plan, out, InlineEngine(), device="cpu", observers=[log]), log


@pytest.fixture
def a_copy(finished, tmp_path):
    """The finished campaign in a folder of the test's own, to be damaged or run in."""
    return finished[0], shutil.copytree(finished[1], tmp_path / "copy"), finished[2]


def test_all_cells_have_numbers(finished):
    plan, out, results, log = finished
    assert not results.incomplete
    assert len(results.cells) == 8
    assert sorted(log.ran) == sorted({cell.id for cell in plan.cells})
    for cell in results.cells:
        assert cell.n == 60
        assert 0 <= cell.ci_low <= cell.robust_accuracy <= cell.ci_high <= 1
        assert cell.robust_accuracy <= cell.clean_accuracy
        assert cell.forward_passes > 0
    raw = json.loads((out / "results.json").read_text())
    wanted = {"defense", "attack", "seed", "n", "clean_accuracy", "robust_accuracy", "ci_low", "ci_high", "forward_passes"}
    assert wanted <= set(raw["cells"][0])
    assert {"verdict", "checks", "robust_accuracy"} <= set(raw["defenses"][0])


def test_the_worst_case_is_taken_per_sample(finished):
    plan, out, results, _ = finished
    for row in results.defenses:
        cells = [cell for cell in plan.of("attack") if cell.defense == row.defense]
        standing = np.ones(60, bool)
        for cell in cells:
            standing &= samples.read(Store(out).get(cell.id)).outcome.standing
        assert row.robust_accuracy == pytest.approx(standing.mean())
        assert row.robust_accuracy <= min(cell.robust_accuracy for cell in results.cells if cell.defense == row.defense)


def test_the_curve_falls_and_meets_the_headline(finished):
    for row in (*finished[2].cells, *finished[2].defenses):
        values = [point.robust_accuracy for point in row.curve]
        at = {point.eps: point.robust_accuracy for point in row.curve}  # of a minimum-norm attack there are more
        assert {0.05, 0.1, 0.2} <= set(at)
        assert values == sorted(values, reverse=True)
        assert at[0.1] == pytest.approx(row.robust_accuracy)


def test_running_again_does_nothing(a_copy):
    plan, out, results = a_copy
    log = Log()
    again = run(plan, out, InlineEngine(), device="cpu", observers=[log])
    assert log.ran == []
    assert again == results


def test_a_changed_attack_reruns_what_depends_on_it_only(finished):
    plan = finished[0]
    changed = plan_of(SMALL.replace("pgd: {kind: pgd, steps: 5}", "pgd: {kind: pgd, steps: 6}"))
    old, new = {cell.id for cell in plan.cells}, {cell.id: cell for cell in changed.cells}
    fresh = [cell.title for id_, cell in new.items() if id_ not in old]
    assert sorted(fresh) == ["copy checks · seed 0", "copy × pgd · seed 0", "plain checks · seed 0", "plain × pgd · seed 0"]


def test_identity_ignores_names_and_reacts_to_data_seed_and_threat():
    ids = {cell.title: cell.id for cell in plan_of(SMALL).cells}
    renamed = {cell.title: cell.id for cell in plan_of(SMALL.replace("plain", "basic")).cells}
    assert renamed["basic train · seed 0"] == ids["plain train · seed 0"]
    assert renamed["copy × pgd · seed 0"] == ids["copy × pgd · seed 0"]
    for change in (("test: 60", "test: 50"), ("eps: 0.1", "eps: 0.11"), ("digits, train", "digits, seed: 3, train")):
        other = {cell.title: cell.id for cell in plan_of(SMALL.replace(*change)).cells}
        assert other["plain × pgd · seed 0"] != ids["plain × pgd · seed 0"]
    fewer = {cell.title: cell.id for cell in plan_of(SMALL.replace("test: 60", "test: 50")).cells}
    assert fewer["plain train · seed 0"] == ids["plain train · seed 0"]  # the test data do not decide a training


def test_workers_do_not_change_the_numbers(finished, tmp_path):
    plan, _, results, _ = finished
    alone = run(plan, tmp_path, LocalEngine(LocalEngine.Params(workers=2)), device="cpu")

    def numbers(all_results):
        return [replace(cell, wall_seconds=0) for cell in all_results.cells], [row.checks for row in all_results.defenses]

    assert numbers(alone) == numbers(results)


def test_a_damaged_cell_is_done_again(a_copy):
    plan, out, results = a_copy
    cell = plan.of("attack")[0]
    file = Store(out).path(cell.id) / samples.SAMPLES
    file.write_bytes(file.read_bytes()[:-20])
    assert next(c for c in collect(plan, Store(out), {}).cells if c.cell_id == cell.id).status == "pending"
    log = Log()
    again = run(plan, out, InlineEngine(), device="cpu", observers=[log])
    assert cell.id in log.ran
    assert [c.robust_accuracy for c in again.cells] == [c.robust_accuracy for c in results.cells]


def test_a_corrupt_target_is_trained_again(a_copy):
    plan, out, results = a_copy
    cell = plan.of("train")[0]
    (Store(out).path(cell.id) / "weights.safetensors").write_bytes(b"garbage")
    log = Log()
    again = run(plan, out, InlineEngine(), device="cpu", observers=[log])
    assert log.ran == [cell.id]  # trained to the same weights, so nothing else is done again
    assert [c.robust_accuracy for c in again.cells] == [c.robust_accuracy for c in results.cells]


def test_failing_models_fail_alone(tmp_path):
    (tmp_path / "nets.py").write_text(MODEL)
    faults = ("fine", "nan", "dies", "raises", "shape")
    lines = "\n".join(f"  {fault}: {{kind: external, code: 'nets.py:{fault}'}}" for fault in faults)
    text = SMALL.partition("defenses:")[0] + f"defenses:\n{lines}\nattacks:\n  pgd: {{kind: pgd, steps: 2}}\nchecks: none\n"
    log = Log()
    engine = LocalEngine(LocalEngine.Params(workers=1), Limits(retries=0))
    results = run(plan_of(text, tmp_path), tmp_path / "out", engine, device="cpu", observers=[log])
    status = {cell.defense: cell for cell in results.cells}
    assert results.incomplete
    assert status["fine"].status == "done"
    assert "NaN" in status["nan"].error
    assert "out of order" in status["raises"].error
    assert "expected (" in status["shape"].error
    assert "SIGKILL" in status["dies"].error
    assert {status[fault].status for fault in faults[1:]} == {"failed"}


def test_a_failed_teacher_blocks_its_student_only(tmp_path):
    text = SMALL.replace(
        "plain: {kind: standard, model: tiny-cnn, epochs: 2}", "plain: {kind: standard, model: tiny-cnn, epochs: 2, lr: 1.0e30}"
    )
    text += "  unused: {kind: fgsm, loss: margin}\n"
    results = run(plan_of(text), tmp_path, InlineEngine(), device="cpu")
    assert {row.defense: row.status for row in results.defenses} == {"plain": "failed", "copy": "blocked"}
    assert all(cell.status == "blocked" for cell in results.cells)


def test_two_runs_on_one_folder_do_not_meet(a_copy):
    plan, out, _ = a_copy

    class Meanwhile(Observer):
        error = None

        def planned(self, *_):
            with pytest.raises(StoreError, match="another run is using"):
                run(plan, out, InlineEngine(), device="cpu")

    run(plan, out, InlineEngine(), device="cpu", observers=[Meanwhile()])


def test_an_unwritable_folder_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        run(plan_of(SMALL), blocked / "out", LocalEngine(LocalEngine.Params(workers=1)))


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run as a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_finished_and_goes_on(tmp_path):
    plan = plan_of(SMALL.replace("epochs: 2", "epochs: 3") + "checks: none\n")

    class Interrupt(Log):
        def succeeded(self, cell, result):
            super().succeeded(cell, result)
            if len(self.ran) == 2:
                signal.raise_signal(signal.SIGINT)  # not os.kill: it is handled here, and not wherever a signal finds Python

    first = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, LocalEngine(LocalEngine.Params(workers=1)), device="cpu", observers=[first])
    second = Log()
    results = run(plan, tmp_path, InlineEngine(), device="cpu", observers=[second])
    assert not results.incomplete
    assert set(second.ran).isdisjoint(first.ran)
    assert not list((tmp_path / ".incoming").iterdir())


def test_incompatible_and_excluded_pairs_are_listed_with_the_reason():
    text = SMALL + "  far: {kind: fgsm, threat: {norm: l0, eps: 3}}\nmatrix: {exclude: [{defense: copy, attack: fgsm}]}\n"
    skipped = {(item.defense, item.attack): item.reason for item in plan_of(text).skipped}
    assert skipped[("plain", "far")] == "cannot respect a budget in l0 (it can in linf, l2, l1)"
    assert skipped[("copy", "fgsm")] == "excluded by the campaign's matrix"


def test_a_teacher_without_attacks_has_a_row_once_its_training_has_failed_and_not_before(tmp_path):
    """While it waits for its turn nothing is wrong with it: a report of the first seeds said that it had failed."""
    plan = plan_of(SMALL + "matrix: {seeds: [0, 1], exclude: [{defense: plain}]}\n")
    waiting = collect(plan, Store(tmp_path), {})
    assert {row.defense for row in waiting.defenses} == {"copy"}
    assert waiting.undefended == []
    trained = next(cell for cell in plan.of("train") if (cell.defense, cell.seed) == ("plain", 1))
    failed = collect(plan, Store(tmp_path), {trained.id: Failure("failed", "out of memory")})
    assert [(row.defense, row.seed, row.status) for row in failed.defenses if row.status == "failed"] == [
        ("plain", 1, "failed")
    ]


def test_every_seed_and_name_is_reported_for_a_defense_that_is_loaded_once(tmp_path):
    (tmp_path / "nets.py").write_text(MODEL)
    text = SMALL.partition("defenses:")[0]
    text += "defenses:\n  a: {kind: external, code: 'nets.py:fine'}\n  b: {kind: external, code: 'nets.py:fine'}\n"
    text += "attacks:\n  pgd: {kind: pgd, steps: 2}\nmatrix: {seeds: [0, 1]}\nchecks: none\n"
    results = run(plan_of(text, tmp_path), tmp_path / "out", InlineEngine(), device="cpu")
    assert not results.incomplete
    assert sorted((row.defense, row.seed) for row in results.defenses) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
