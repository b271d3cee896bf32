"""What is done again after a change says why; every change of a campaign file is told in its own words."""

import json

import pytest

from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.changes import reasons
from robustkd.campaigns.plan.finished import finished_cells
from robustkd.campaigns.store.planned import PLAN
from robustkd.campaigns.store.samples import SAMPLES
from robustkd.campaigns.store.store import PERTURBATIONS, Store
from support.campaigns import tiny_campaign

TEXT = tiny_campaign(
    "changing",
    {
        "robust": "{kind: pgd-at, model: tiny-cnn, epochs: 1, inner: {steps: 1}}",
        "copy": "{kind: defensive-distillation, model: tiny-cnn, teacher: robust, temperature: 10, epochs: 1}",
    },
    {"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 2}"},
    checks=None,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changing")
    run(plan_of(TEXT), folder, InlineEngine(), device="cpu")
    return folder


def plan_of(text):
    return planning.build(spec.from_text(text, "test.yaml", None))


def told(text, out):
    plan, store = plan_of(text), Store(out)
    return reasons(plan, store, finished_cells(plan, store))


CONSEQUENCES = "attacks, checks and analyses, because it trains again"


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (
            ("inner: {steps: 1}", "inner: {steps: 3}"),
            ["robust: inner.steps 1 -> 3 (1 cell)", "copy: it stands on robust, which"],
        ),
        (
            ("teacher: robust, temp", "teacher: robust, lr: 0.5, temp"),
            ["copy: lr null -> 0.5 (1 cell)", f"copy: {CONSEQUENCES} (2"],
        ),
        (
            ("pgd, steps: 2", "pgd, steps: 4"),
            ["pgd: steps 2 -> 4 (2 cells)", "robust, copy: checks, because its attacks changed (2"],
        ),
        (("kind: fgsm}", "kind: bim, steps: 1}"), ["fgsm: kind fgsm -> bim"]),
        (("test: 20", "test: 30"), ["fgsm, pgd: the test samples differ (4 cells)"]),
        (("train: 100", "train: 120"), ["robust: the training samples differ (1 cell)"]),
        (("eps: 0.1}", "eps: 0.2}"), ["robust, fgsm, pgd, copy: threat 0.1 -> 0.2 (7 cells)"]),
        (("attacks:", "checks: {samples: 5}\nattacks:"), ["samples"]),
        (("epochs: 1, inner", "epochs: 1, replica: 2, inner"), ["robust: other random draws (replica)"]),
    ],
)
def test_a_change_is_told(change, sentences, out):
    assert change[0] in TEXT
    said = told(TEXT.replace(*change), out)
    for sentence in sentences:
        assert any(sentence in line for line in said), said


def test_nothing_is_told_when_nothing_was_finished_before(out, tmp_path):
    assert told(TEXT, out) == []
    assert told(TEXT, tmp_path) == []
    assert told(TEXT + "  cw: {kind: cw-l2, steps: 1}\n", out) == [
        "robust, copy: checks, because its attacks changed (2 cells)"
    ]


def test_a_new_version_of_a_plug_in_is_told(out, monkeypatch):
    before = PGD.version
    monkeypatch.setattr(PGD, "version", f"{before}.1")
    assert f"pgd: version {before} -> {before}.1 (2 cells)" in told(TEXT, out)


def test_a_run_tells_before_it_does_and_a_damaged_plan_file_hides_nothing_else(out, tmp_path):
    class Told(Observer):
        lines = None

        def done_again(self, reasons):
            self.lines = reasons

    run(plan_of(TEXT), tmp_path, InlineEngine(), device="cpu")
    store, (first, second, *_) = Store(tmp_path), plan_of(TEXT).of("attack")
    (store.path(first.id) / SAMPLES).write_bytes(b"garbage")
    (store.path(second.id) / PERTURBATIONS).write_bytes(b"garbage")
    listener = Told()
    run(
        plan_of(TEXT.replace("inner: {steps: 1}", "inner: {steps: 2}")),
        tmp_path,
        InlineEngine(),
        device="cpu",
        observers=[listener],
    )
    assert "robust: inner.steps 1 -> 2 (1 cell)" in listener.lines
    (tmp_path / PLAN).write_text("[")
    run(plan_of(TEXT), tmp_path, InlineEngine(), device="cpu", observers=[listener])
    (damaged,) = listener.lines
    assert first.title in damaged
    assert f"{SAMPLES} is damaged" in damaged
    assert not Store(tmp_path).verify(first.id)
    assert Store(tmp_path).verify(second.id)  # nothing that was run needed it
    (store.path(plan_of(TEXT).of("checks")[0].id) / "findings.json").unlink()
    run(plan_of(TEXT), tmp_path, InlineEngine(), device="cpu", observers=[listener])
    assert [line.split(":")[0] for line in sorted(listener.lines)] == ["robust checks · seed 0", "robust × pgd · seed 0"], (
        listener.lines
    )
    assert not Store(tmp_path).verify(second.id)
    assert json.loads((tmp_path / PLAN).read_text())["cells"]
