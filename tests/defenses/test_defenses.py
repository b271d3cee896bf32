from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from robustkd import plugins
from robustkd.attacks.image.gradient.fgsm import FGSM
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.contracts import Arrays, Attack, Batch, FitContext, Target, ThreatModel, UsageError, target_references
from robustkd.contracts.random import SampleRng
from robustkd.data import Splits, load_splits
from robustkd.data.splits import SplitParams
from robustkd.defenses.image.adversarial.pgd_at import PGDAT, PGDATParams
from robustkd.defenses.image.distillation.self_distillation.defensive_distillation import (
    DefensiveDistillation,
    DefensiveDistillationParams,
)
from robustkd.defenses.image.standard import Standard
from robustkd.evaluation.judging import judge
from robustkd.targets import load_target, save_target

EPS = 0.15
Make = Callable[..., Any]
MODEL = {"model": "tiny-cnn"}
QUICK: dict[str, Any] = {"batch_size": 32, "schedule": "cosine"}
MARGIN = PGD(PGDParams(steps=10, loss="margin"))


@pytest.fixture(scope="session")
def train() -> Arrays:
    """Enough digits for a network to become robust in seconds."""
    part = load_splits("digits", {}, SplitParams(train=1000)).train
    assert part is not None
    return part


def standing(target: Target, digits: Splits, attack: Attack | None = None, eps: float = EPS) -> float:
    """Accuracy, under an attack where one is given."""
    x, y = torch.from_numpy(digits.test.unit()), torch.from_numpy(digits.test.labels)
    batch, threat = Batch(x, y, torch.arange(len(x))), ThreatModel(eps=eps)
    if attack is None:
        with torch.no_grad():
            return float((target(x).argmax(1) == y).float().mean())
    return float(
        judge(target, attack, batch, threat, attack.run(target, batch, threat, SampleRng(0, batch.index))).standing.mean()
    )


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("standard", {"model": "tiny-cnn"}),
        ("pgd-at", {"model": "tiny-cnn"}),
        ("trades", {"model": "tiny-cnn"}),
        ("defensive-distillation", {"model": "tiny-cnn"}),
        *((name, {"model": "tiny-cnn"}) for name in ("mart", "fast", "free")),
        *((name, {"teacher": "a", "student": "tiny-cnn"}) for name in ("kd", "ard", "rslad", "iad", "adaad", "adaiad", "saad")),
        ("peeraid", {"student": "tiny-cnn"}),
        *(
            (name, {"teachers": {"clean": "a", "robust": "b"}, "student": "tiny-cnn"})
            for name in ("mtard", "ciard", "akd2", "iad-ii")
        ),
    ],
)
def test_defenses_are_registered_and_described(name: str, needs: dict[str, Any]) -> None:
    plugin = plugins.load("defenses", name)
    params = plugin.Params(**needs)
    assert plugin.Params(**params.model_dump(mode="json")) == params
    assert all(field.description for key, field in plugin.Params.model_fields.items() if key != "teachers")
    assert plugin.uses_threat == (name not in ("standard", "defensive-distillation", "kd"))
    assert plugin.source or name == "standard"
    with pytest.raises(ValidationError, match="epoch\n"):
        plugin.Params(**needs, epoch=3)


def test_standard_training_learns_and_can_be_saved(
    context: Make, train: Arrays, digits: Splits, tmp_path: Any, same_weights: Make
) -> None:
    target = Standard(Standard.Params(**MODEL, **QUICK, epochs=10)).fit(context(train=train))
    assert standing(target, digits) > 0.93
    assert not target.module.training
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    assert same_weights(target, load_target(tmp_path / "saved"))


def test_adversarial_training_buys_robustness(context: Make, train: Arrays, digits: Splits) -> None:
    inner, threat = {"steps": 3, "step_size": 0.05}, ThreatModel(eps=0.1)
    plain = Standard(Standard.Params(**MODEL, **QUICK, epochs=10)).fit(context(folder="plain", train=train))
    robust = PGDAT(PGDATParams(**MODEL, **QUICK, epochs=12, inner=inner)).fit(context(train=train, threat=threat))
    assert standing(robust, digits) > 0.93
    assert standing(robust, digits, MARGIN, eps=0.1) > standing(plain, digits, MARGIN, eps=0.1) + 0.2


def test_adversarial_training_minimises_the_loss_on_its_own_examples(minibatch: Any, tiny: Make) -> None:
    from robustkd.defenses.image.adversarial.pgd_at import PGDATRecipe
    from robustkd.defenses.training import Adversary

    threat = ThreatModel(eps=EPS)
    p = PGDATParams(model="tiny-cnn")
    adversary, target = Adversary.under(p.inner, threat), tiny()
    target.module.eval()
    loss, _ = PGDATRecipe(adversary, threat, p).loss(target, minibatch)
    x = adversary(target, minibatch)
    assert adversary.start == "uniform"
    assert loss.item() == pytest.approx(F.cross_entropy(target(x), minibatch.y).item())


def test_adversarial_training_refuses_what_pgd_cannot_do(context: Make) -> None:
    with pytest.raises(UsageError, match="cannot respect a budget in l0"):
        PGDAT(PGDATParams(model="tiny-cnn")).fit(context(threat=ThreatModel(norm="l0", eps=4)))


# --- defensive distillation --------------------------------------------------------------------------------------------

DISTILLED: dict[str, Any] = {**MODEL, **QUICK, "optimiser": "adam", "lr": 0.02, "temperature": 100}


def test_distillation_hides_gradients_and_nothing_else(context: Make, train: Arrays, digits: Splits, curve: Make) -> None:
    log = curve()
    target = DefensiveDistillation(DefensiveDistillationParams(**DISTILLED, epochs=20)).fit(context(log=log, train=train))
    plain = Standard(Standard.Params(**MODEL, **QUICK, epochs=10)).fit(context(folder="plain", train=train))
    x, y = torch.from_numpy(digits.test.unit()), torch.from_numpy(digits.test.labels)
    with torch.no_grad():
        growth = target(x).abs().amax(1).median() / plain(x).abs().amax(1).median()
    assert growth > 30
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(target(at), y, reduction="sum"), at)
    assert float((gradient.flatten(1) == 0).all(1).float().mean()) > 0.5
    clean = standing(target, digits)
    assert clean > 0.9
    assert standing(target, digits, FGSM()) > clean - 0.15
    assert standing(plain, digits, FGSM()) < 0.6
    assert standing(target, digits, MARGIN) < 0.35
    assert log.epochs == [*range(20), *range(20)]
    assert all(name.startswith("teacher_") for row in log.metrics[:20] for name in row)
    assert not any(name.startswith("teacher_") for row in log.metrics[20:] for name in row)


@pytest.mark.parametrize("died_in", ["teacher_lr", "lr"])
def test_either_training_of_a_distillation_resumes(context: Make, same_weights: Make, curve: Make, died_in: str) -> None:
    defense = DefensiveDistillation(DefensiveDistillationParams(**DISTILLED, epochs=2))
    whole = defense.fit(context(folder="whole"))

    def log(epoch: int, metrics: Any) -> None:
        if epoch == 1 and died_in in metrics:
            raise SystemExit("killed")

    given: FitContext = context(log=log)
    with pytest.raises(SystemExit):
        defense.fit(given)
    assert (given.checkpoints / "student").exists() == (died_in == "lr")
    again = curve()
    assert same_weights(whole, defense.fit(context(log=again)))
    assert again.epochs == [0, 1, 0, 1]


def test_a_named_teacher_is_distilled_as_it_is_into_its_own_architecture(context: Make, digits: Splits) -> None:
    plain = Standard(Standard.Params(**MODEL, **QUICK, epochs=10)).fit(context(folder="plain"))
    before = {name: tensor.clone() for name, tensor in plain.module.state_dict().items()}
    params = DefensiveDistillationParams(teacher="plain", **QUICK, optimiser="adam", temperature=100, epochs=10)
    assert target_references(params) == ["plain"]
    student = DefensiveDistillation(params).fit(context(targets={"plain": plain}))
    assert student.card() == plain.card()
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.module.state_dict().items())
    x = torch.from_numpy(digits.test.unit())
    with torch.no_grad():
        # Plain training's logits tempered a hundredfold ask for logits of plain size: nothing is masked.
        assert student(x).abs().max() < 2 * plain(x).abs().max()


def test_a_teacher_of_another_architecture_is_trained_first(
    context: Make, curve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustkd.defenses.image.distillation.self_distillation import defensive_distillation as module

    seen: list[Target] = []
    original = module.DistillationRecipe.__init__
    monkeypatch.setattr(
        module.DistillationRecipe, "__init__", lambda self, t, tau: (seen.append(t.target), original(self, t, tau))[1]
    )
    log = curve()
    p = DefensiveDistillationParams(**DISTILLED, epochs=1, teacher_model="small-cnn", teacher_model_params={"width": 4})
    student = DefensiveDistillation(p).fit(context(log=log))
    assert [target.card()["origin"]["model"] for target in (seen[0], student)] == ["small-cnn", "tiny-cnn"]
    assert ["teacher_lr" in row for row in log.metrics] == [True, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "name a model to train, or a teacher"),
        ({"teacher": "a", "model_params": {"width": 3}}, "model_params belong to model"),
        ({"teacher": "a", "teacher_model": "tiny-cnn"}, "give one of them"),
        ({"model": "tiny-cnn", "teacher_model_params": {"width": 3}}, "teacher_model_params belong to teacher_model"),
    ],
)
def test_distillation_says_what_is_missing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DefensiveDistillationParams(**given)


ONE = {"epochs": 1, "batch_size": 100, "precision": "bf16", "awp": {}}
TAUGHT = {"teacher": "a", "student": "tiny-cnn", "inner": {"steps": 1}, **ONE}
TAUGHT_TWICE = {"teachers": {"clean": "a", "robust": "b"}, "student": "tiny-cnn", "inner": {"steps": 1}, **ONE}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *((name, {**MODEL, "inner": {"steps": 1}, **ONE}) for name in ("pgd-at", "trades", "mart", "fast")),
        ("free", {**MODEL, "replays": 2, **ONE}),
        *((name, TAUGHT) for name in ("ard", "rslad", "iad", "adaad", "adaiad", "saad")),
        *((name, {**TAUGHT, "igdm": {}}) for name in ("rslad", "adaad")),
        *((name, TAUGHT_TWICE) for name in ("mtard", "ciard", "akd2", "iad-ii")),
        ("peeraid", {"student": "tiny-cnn", "inner": {"steps": 1}, **ONE}),
    ],
)
def test_every_robust_training_runs_in_bf16_in_l2_at_perturbed_weights(
    context: Make, tiny: Make, curve: Make, name: str, given: dict[str, Any]
) -> None:
    plugin, log = plugins.load("defenses", name), curve()
    targets = {"a": tiny(1), "b": tiny(2)}
    target = plugin(plugin.Params(**given)).fit(context(log=log, targets=targets, threat=ThreatModel(norm="l2", eps=0.5)))
    assert {weight.dtype for weight in target.module.parameters()} == {torch.float32}
    assert all(weight.isfinite().all() for weight in target.module.parameters())
    assert {"train_loss", "validation_robust_accuracy"} <= set(log.metrics[0])
