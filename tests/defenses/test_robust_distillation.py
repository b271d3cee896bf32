from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd import plugins
from robustkd.contracts import FitContext, ThreatModel, UsageError, target_references
from robustkd.defenses.image.distillation.kd import KD, KDParams, KDRecipe
from robustkd.defenses.image.robust_distillation.adaad import AdaAD, AdaADParams, AdaADRecipe
from robustkd.defenses.image.robust_distillation.akd2 import AKD2Params, AKD2Recipe, IADIIParams, IADIIRecipe
from robustkd.defenses.image.robust_distillation.ard import ARD, ARDParams, ARDRecipe
from robustkd.defenses.image.robust_distillation.iad import IAD, AdaIADParams, AdaIADRecipe, IADParams, IADRecipe
from robustkd.defenses.image.robust_distillation.mtard import MTARDParams, MTARDRecipe
from robustkd.defenses.image.robust_distillation.peeraid import PeerAiDParams, PeerAiDRecipe
from robustkd.defenses.image.robust_distillation.rslad import RSLAD, RSLADParams, RSLADRecipe
from robustkd.defenses.image.robust_distillation.saad import SAADParams, SAADRecipe
from robustkd.defenses.training import (
    AdversarialRecipe,
    Adversary,
    Minibatch,
    Teacher,
    TeacherInner,
    TrainParams,
    frozen_teacher,
)
from robustkd.defenses.training.divergence import Reduction, kl
from robustkd.targets import ClassifierTarget
from robustkd.targets.logits import PROBED

EPS = 0.15
Make = Callable[..., Any]
THREAT = ThreatModel(eps=EPS)
NAMES = {"teacher": "robust", "student": "tiny-cnn", "student_params": {"width": 4}}
ROWS = np.arange(32)


def recipe(kind: Any, params: Any, teacher: ClassifierTarget, **changes: Any) -> Any:
    p = params(**NAMES, **changes)
    return kind(Teacher(teacher), Adversary.under(p.inner, THREAT), THREAT, p)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


# --- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "divisor"), [("batch", 1), ("batch-and-class", 10)])
def test_kd_is_hintons_formula(linear: Make, softmax: Make, minibatch: Minibatch, reduction: str, divisor: int) -> None:
    student, teacher = linear(0, 3), linear(1, 3)
    p = KDParams(**NAMES, temperature=3.0, alpha=0.7, kl_reduction=reduction)
    loss, measured = KDRecipe(Teacher(teacher), p).loss(student, minibatch)
    at = minibatch.x
    soft = divergence(softmax(teacher(at), 3.0), softmax(student(at), 3.0)).mean() / divisor
    hard = -np.log(softmax(student(at))[ROWS, minibatch.y.numpy()]).mean()
    assert loss.item() == pytest.approx(0.7 * 9 * soft + 0.3 * hard, rel=1e-5)
    assert measured["loss_soft"].item() == pytest.approx(soft, rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "reduction", "divisor"), [(10, "tenth", 10), (100, "tenth", 10), (100, "batch-and-class", 100)]
)
def test_a_tenth_is_one_on_any_number_of_classes(softmax: Make, classes: int, reduction: Reduction, divisor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, classes, generator=generator) for _ in range(2))
    expected = divergence(softmax(p), softmax(q)).mean() / divisor
    assert kl(p, q, reduction=reduction).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_ard_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch, alpha: float) -> None:
    student, teacher = linear(0, 3), linear(1, 3)
    r = recipe(ARDRecipe, ARDParams, teacher, alpha=alpha, temperature=20.0)
    loss, _ = r.loss(student, minibatch)
    x_adv, soft = r.inner(student, minibatch)
    torch.testing.assert_close(soft, teacher(minibatch.x))
    taught = divergence(softmax(soft, 20.0), softmax(student(x_adv), 20.0)).mean() / 10
    hard = -np.log(softmax(student(minibatch.x))[ROWS, minibatch.y.numpy()]).mean()
    assert loss.item() == pytest.approx(alpha * 400 * taught + (1 - alpha) * hard, rel=1e-4)
    assert (r.adversary.loss, r.adversary.start, ARDParams(**NAMES).temperature) == ("ce", "uniform", 30.0)


def test_rslad_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher = linear(0, 3), linear(1, 3)
    r = recipe(RSLADRecipe, RSLADParams, teacher)
    loss, _ = r.loss(student, minibatch)
    x_adv = r.inner(student, minibatch)[0]
    soft = softmax(teacher(minibatch.x))
    adversarial, natural = (divergence(soft, softmax(student(at))).mean() / 10 for at in (x_adv, minibatch.x))
    assert loss.item() == pytest.approx(5 / 6 * adversarial + 1 / 6 * natural, rel=1e-5)
    assert (r.adversary.loss, r.adversary.start) == ("kl-teacher-clean", "noise")


def test_iad_listens_to_itself_where_the_teacher_fails_and_not_before_its_epoch(
    linear: Make, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher, y = linear(0, 3), linear(1, 3), minibatch.y.numpy()
    # The minibatch is of epoch 1: 30 % of 3 epochs are 1, of 10 they are 3.
    early, late = (recipe(IADRecipe, IADParams, teacher, epochs=epochs, temperature=2.0, beta=0.5) for epochs in (10, 3))
    x_adv = early.inner(student, minibatch)[0]
    clean, adversarial = student(minibatch.x), student(x_adv)
    taught = 4 * divergence(softmax(teacher(minibatch.x), 2.0), softmax(adversarial, 2.0)).mean()
    assert early.loss(student, minibatch)[0].item() == pytest.approx(taught, rel=1e-5)
    doubt = 1 - softmax(teacher(x_adv))[ROWS, y] ** 0.5
    own = (doubt * divergence(softmax(clean), softmax(adversarial))).mean()
    assert late.loss(student, minibatch)[0].item() == pytest.approx(taught + own, rel=1e-5)
    assert own > 0.01
    p = IADParams(**NAMES)
    assert round(p.introspect_from * p.epochs) == 60
    assert (p.beta, p.temperature, late.adversary.loss, late.adversary.start) == (0.1, 1.0, "ce", "uniform")


@pytest.mark.parametrize(("reduction", "divisor"), [("batch", 1), ("batch-and-class", 7), ("tenth", 10)])
def test_both_of_iads_terms_are_averaged_alike_on_seven_classes(softmax: Make, reduction: str, divisor: int) -> None:
    torch.manual_seed(0)
    networks = (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)) for _ in range(2))
    student, teacher = (ClassifierTarget(network, num_classes=7, input_shape=(1, 8, 8)) for network in networks)
    batch = Minibatch(torch.rand(32, 1, 8, 8), torch.arange(32) % 7, torch.arange(32), seed=0, epoch=1)
    r = recipe(IADRecipe, IADParams, teacher, epochs=2, beta=0.5, introspect_from=0.0, kl_reduction=reduction)
    _, measured = r.loss(student, batch)
    x_adv = r.inner(student, batch)[0]
    adversarial = softmax(student(x_adv))
    taught = divergence(softmax(teacher(batch.x)), adversarial).mean()
    doubt = 1 - softmax(teacher(x_adv))[ROWS, batch.y.numpy()] ** 0.5
    own = (doubt * divergence(softmax(student(batch.x)), adversarial)).mean()
    assert measured["loss_taught"].item() == pytest.approx(taught / divisor, rel=1e-4)
    assert measured["loss_own"].item() == pytest.approx(own / divisor, rel=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_adaad_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch, share: float) -> None:
    student, teacher = linear(0, 3), linear(1, 3)
    r = recipe(AdaADRecipe, AdaADParams, teacher, weight=share)
    loss, _ = r.loss(student, minibatch)
    x_adv = r.inner(student, minibatch)[0]
    adversarial, natural = (divergence(softmax(teacher(at)), softmax(student(at))).mean() / 10 for at in (x_adv, minibatch.x))
    assert loss.item() == pytest.approx(share * adversarial + (1 - share) * natural, rel=1e-5)
    assert (r.adversary.loss, r.adversary.start) == ("kl-teacher-adv", "noise")


@pytest.mark.parametrize(
    ("kind", "reduction"),
    [("ard", "batch-and-class"), ("rslad", "tenth"), ("adaad", "batch-and-class"), ("iad", "batch"), ("kd", "batch")],
)
def test_the_divergence_is_averaged_as_in_the_authors_code(kind: str, reduction: str) -> None:
    assert plugins.load("defenses", kind).Params(**NAMES).kl_reduction == reduction


@pytest.mark.parametrize("kind", ["mtard", "ciard"])
def test_two_teachers_begin_with_the_settings_of_the_authors_code(kind: str) -> None:
    p = plugins.load("defenses", kind).Params(teachers={"clean": "a", "robust": "b"}, student="tiny-cnn")
    assert (p.kl_reduction, p.epochs, p.weight_decay, p.optimiser, p.weight_rate) == ("tenth", 300, 2e-4, "sgd", 0.025)
    assert [round(share * p.epochs) for share in p.milestone_fractions] == [215, 260, 285]
    assert (p.form, p.balance_loss) == (("conference", True) if kind == "mtard" else ("journal", False))


@pytest.mark.parametrize("epoch", [0, 1])
def test_igdm_is_the_papers_term_beside_any_loss(linear: Make, softmax: Make, minibatch: Minibatch, epoch: int) -> None:
    student, teacher, batch = linear(0, 3), linear(1, 3), replace(minibatch, epoch=epoch)
    for kind, params in ((RSLADRecipe, RSLADParams), (IADRecipe, IADParams), (AdaADRecipe, AdaADParams)):
        with_term = recipe(kind, params, teacher, epochs=4, igdm={"alpha": 3.0}, kl_reduction="batch")
        without = recipe(kind, params, teacher, epochs=4, kl_reduction="batch")
        x_adv = without.inner(student, batch)[0]
        opposite = batch.x - (x_adv - batch.x)
        taught, learnt = (softmax(network(x_adv) - network(opposite)) for network in (teacher, student))
        term = 3.0 * (epoch + 1) / 4 * divergence(taught, learnt).mean()
        loss, measured = with_term.loss(student, batch)
        assert loss.item() == pytest.approx(without.loss(student, batch)[0].item() + term, rel=1e-4)
        assert measured["loss_igdm"].item() == pytest.approx(term, rel=1e-4)


def test_a_student_of_the_teachers_gradients_has_no_igdm(linear: Make, minibatch: Minibatch) -> None:
    """Another constant in the logits changes no gradient."""
    student, teacher = linear(1, 3), linear(1, 3)
    with torch.no_grad():
        next(m for m in student.module.modules() if isinstance(m, nn.Linear)).bias.add_(torch.arange(10.0))
    _, measured = recipe(RSLADRecipe, RSLADParams, teacher, igdm={}).loss(student, minibatch)
    assert measured["loss_adv"].item() > 0.01
    assert measured["loss_igdm"].item() == pytest.approx(0, abs=1e-6)


def test_igdm_is_a_term_of_two_teachers_as_well(linear: Make, minibatch: Minibatch) -> None:
    given = {"teachers": {"clean": "a", "robust": "b"}, "student": "tiny-cnn", "kl_reduction": "batch"}
    for kind, params in ((MTARDRecipe, MTARDParams), (AKD2Recipe, AKD2Params)):
        p = params(**given, igdm={})
        r = kind(Teacher(linear(1, 3)), Teacher(linear(2, 3)), Adversary.under(p.inner, THREAT), THREAT, p)
        loss, measured = r.loss(linear(0, 3), minibatch)
        plain = r.outer(linear(0, 3), minibatch, r.inner(linear(0, 3), minibatch))[0]
        assert loss.item() - plain.item() == pytest.approx(measured["loss_igdm"].item(), rel=1e-3)
        assert measured["loss_igdm"] > 0


@pytest.mark.parametrize("adaptive", [True, False])
def test_saad_is_the_authors_formula(linear: Make, softmax: Make, minibatch: Minibatch, adaptive: bool) -> None:
    student, teacher = linear(0, 3), linear(1, 3)
    r = recipe(SAADRecipe, SAADParams, teacher, epochs=4, beta=0.3, scale=2.0, adaptive=adaptive)
    loss, _ = r.loss(student, minibatch)
    x_adv = r.inner(student, minibatch)[0]
    opposite = 2 * minibatch.x - x_adv
    soft = softmax(teacher(x_adv))
    unsure = -(soft * np.log(soft)).sum(1)
    w = 2.0 * (unsure - unsure.min()) if adaptive else np.ones(32)
    share = (w - w.min()) / (w.max() - w.min()) if adaptive else np.zeros(32)
    matched = divergence(softmax(teacher(x_adv) - teacher(opposite)), softmax(student(x_adv) - student(opposite)))
    adversarial = divergence(soft, softmax(student(x_adv))) + 2 / 4 * matched
    natural = divergence(softmax(teacher(minibatch.x)), softmax(student(minibatch.x)))
    assert loss.item() == pytest.approx((w * adversarial + 0.3 * (1 - share) * natural).mean(), rel=1e-4)
    assert (r.adversary.loss, r.adversary.start) == ("kl-teacher-linear", "noise")


@pytest.mark.parametrize("introspective", [False, True])
def test_akd2_and_iad_ii_are_the_authors_formula(
    linear: Make, softmax: Make, minibatch: Minibatch, introspective: bool
) -> None:
    kind, params = (IADIIRecipe, IADIIParams) if introspective else (AKD2Recipe, AKD2Params)
    further: dict[str, Any] = {"beta": 0.5, "introspect_from": 0.0} if introspective else {}
    p = params(teachers={"clean": "a", "robust": "b"}, student="tiny-cnn", temperature=2.0, epochs=2, **further)
    student, clean, robust, y = linear(0, 3), linear(1, 3), linear(2, 3), minibatch.y.numpy()
    r = kind(Teacher(clean), Teacher(robust), Adversary.under(p.inner, THREAT), THREAT, p)
    loss, _ = r.loss(student, minibatch)
    x_adv = r.inner(student, minibatch)[0]
    logits = student(x_adv)
    by_robust, by_clean = (4 * divergence(softmax(t(x_adv), 2.0), softmax(logits, 2.0)) for t in (robust, clean))
    if introspective:
        trust = softmax(robust(x_adv))[ROWS, y] ** 0.5
        by_robust = trust * by_robust + (1 - trust) * divergence(softmax(student(minibatch.x)), softmax(logits))
    hard = -np.log(softmax(logits)[ROWS, y])
    assert loss.item() == pytest.approx((0.25 * hard + 0.5 * by_robust + 0.25 * by_clean).mean(), rel=1e-4)
    defaults = params(teachers={"clean": "a", "robust": "b"}, student="tiny-cnn")
    assert (defaults.robust_weight, defaults.clean_weight, defaults.temperature) == (0.5, 0.25, 1.0)


def test_adaiad_trusts_the_teacher_on_its_own_examples(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher, y = linear(0, 3), linear(1, 3), minibatch.y.numpy()
    early, late = (recipe(AdaIADRecipe, AdaIADParams, teacher, epochs=epochs, beta=0.5) for epochs in (10, 3))
    x_adv = early.inner(student, minibatch)[0]
    soft, adversarial = softmax(teacher(x_adv)), softmax(student(x_adv))
    taught, own = divergence(soft, adversarial), divergence(softmax(student(minibatch.x)), adversarial)
    trust = soft[ROWS, y] ** 0.5
    assert early.loss(student, minibatch)[0].item() == pytest.approx(taught.mean(), rel=1e-5)
    assert late.loss(student, minibatch)[0].item() == pytest.approx((trust * taught + (1 - trust) * own).mean(), rel=1e-5)
    assert (late.adversary.loss, late.adversary.start) == ("kl-teacher-adv", "noise")


@pytest.mark.parametrize("examples", ["student", "own"])
def test_peeraid_is_the_authors_formula_and_its_peer_learns(
    linear: Make, softmax: Make, minibatch: Minibatch, examples: str
) -> None:
    p = PeerAiDParams(student="tiny-cnn", optimiser="sgd", lr=0.1, label_weight=0.5, peer_examples=examples)
    student, peer, y = linear(0, 3), linear(1, 3), minibatch.y.numpy()
    before = copy.deepcopy(peer)
    r = PeerAiDRecipe(peer, Adversary.under(p.inner, THREAT), THREAT, p)
    loss, _ = r.loss(student, minibatch)
    x_adv = r.adversary(student, minibatch, Teacher(before))
    tau, logits = p.temperature, student(x_adv)
    by_peer = divergence(softmax(before(x_adv), tau), softmax(logits, tau)).mean() / 10
    own = divergence(softmax(student(minibatch.x), tau), softmax(logits, tau)).mean() / 10
    hard = -np.log(softmax(logits)[ROWS, y]).mean()
    assert loss.item() == pytest.approx(0.5 * hard + tau**2 * (by_peer + own), rel=1e-4)
    assert all(weight.grad is None for weight in student.module.parameters())  # the peer's step does not reach them
    seen = x_adv if examples == "student" else r.adversary(before, minibatch, Teacher(before))
    answer = before(seen)
    its_loss = F.cross_entropy(answer, minibatch.y) + 0.1 * kl_sum(student(seen).detach(), answer) / 320
    weights = list(before.module.parameters())
    for old, new, gradient in zip(weights, peer.module.parameters(), torch.autograd.grad(its_loss, weights), strict=True):
        torch.testing.assert_close(new, old - 0.1 * (gradient + 2e-4 * old), atol=1e-6, rtol=1e-4)
    assert (p.epochs, [round(share * 300) for share in p.milestone_fractions], r.adversary.loss) == (
        300,
        [214, 259, 284],
        "kl-teacher-clean",
    )


# --- what is differentiated --------------------------------------------------------------------------------------------


def one_step(linear: Make, minibatch: Minibatch, loss: str) -> tuple[Tensor, ClassifierTarget, ClassifierTarget]:
    student, teacher = linear(0, 3), linear(1, 3)
    inner = TeacherInner(steps=1, start="noise", loss=loss)  # type: ignore[arg-type]
    return Adversary.under(inner, THREAT)(student, minibatch, Teacher(teacher)), student, teacher


def stepped(minibatch: Minibatch, loss: Callable[[Tensor], Tensor]) -> Tensor:
    noise = 0.001 * minibatch.rng("inner").normal(minibatch.x.shape[1:])
    start = (minibatch.x + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    return (start.detach() + EPS / 4 * gradient.sign()).clamp(0, 1)


def kl_sum(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q.log_softmax(1), p.softmax(1), reduction="sum")


def alike(one: Tensor, other: Tensor) -> bool:
    # Not quite equal: the sign of a gradient of about 0 is the processor's.
    return (one - other).abs().gt(1e-6).float().mean().item() < 0.01


def test_each_inner_loss_goes_up_its_own_gradient(linear: Make, minibatch: Minibatch) -> None:
    x, y = minibatch.x, minibatch.y
    ce, student, _ = one_step(linear, minibatch, "ce")
    assert alike(ce, stepped(minibatch, lambda at: F.cross_entropy(student(at), y)))
    own, student, _ = one_step(linear, minibatch, "kl-student-clean")
    assert alike(own, stepped(minibatch, lambda at: kl_sum(student(x).detach(), student(at))))
    taught, student, teacher = one_step(linear, minibatch, "kl-teacher-clean")
    assert alike(taught, stepped(minibatch, lambda at: kl_sum(teacher(x).detach(), student(at))))


def test_adaads_teacher_is_differentiated_and_ards_is_not(linear: Make, minibatch: Minibatch) -> None:
    moving, student, teacher = one_step(linear, minibatch, "kl-teacher-adv")
    through_both = stepped(minibatch, lambda at: kl_sum(teacher(at), student(at)))
    through_student = stepped(minibatch, lambda at: kl_sum(teacher(at).detach(), student(at)))
    assert alike(moving, through_both)
    assert not alike(through_both, through_student)
    linear_teacher, student, teacher = one_step(linear, minibatch, "kl-teacher-linear")
    # The teacher is linear, so T~ moves one of its logits exactly, and the others stay.
    x, y = minibatch.x, minibatch.y
    label = F.one_hot(y, 10).bool()
    assert alike(
        linear_teacher, stepped(minibatch, lambda at: kl_sum(torch.where(label, teacher(at), teacher(x).detach()), student(at)))
    )
    r = recipe(ARDRecipe, ARDParams, teacher, inner={"steps": 1, "start": "noise"})
    assert alike(r.inner(student, minibatch)[0], stepped(minibatch, lambda at: F.cross_entropy(student(at), minibatch.y)))


@pytest.mark.parametrize(
    ("kind", "params"), [(ARDRecipe, ARDParams), (RSLADRecipe, RSLADParams), (IADRecipe, IADParams), (AdaADRecipe, AdaADParams)]
)
def test_no_weight_gets_a_gradient_but_the_students_and_only_from_the_outer_loss(
    linear: Make, minibatch: Minibatch, kind: Any, params: Any
) -> None:
    student, teacher = linear(0, 3), linear(1, 3)
    passes = {"weights": 0, "student": 0, "teacher": 0}
    for target, name in ((student, "student"), (teacher, "teacher")):
        target.module.register_forward_hook(lambda *_, name=name: passes.__setitem__(name, passes[name] + 1))
        for weight in target.module.parameters():
            weight.register_hook(lambda _: passes.__setitem__("weights", passes["weights"] + 1))
    loss, _ = recipe(kind, params, teacher, inner={"steps": 4}, epochs=2).loss(student, minibatch)
    assert passes["weights"] == 0
    loss.backward()
    assert passes["weights"] == 2  # weight and bias of the student, once
    assert all(weight.grad is None for weight in teacher.module.parameters())
    expected = {ARDRecipe: (4 + 1, 1), RSLADRecipe: (4 + 2, 2), IADRecipe: (4 + 2, 2), AdaADRecipe: (4 + 1, 4 + 1)}
    assert (passes["student"], passes["teacher"]) == expected[kind]


# --- teachers ----------------------------------------------------------------------------------------------------------


def test_a_teachers_outputs_on_images_that_never_change_are_computed_once(
    context: Make, tiny: Make, minibatch: Minibatch
) -> None:
    teacher, passes = tiny(1), []
    teacher.module.register_forward_hook(lambda module, given, _: passes.append(len(given[0])))
    given: FitContext = context(targets={"robust": teacher})
    x, y = torch.from_numpy(given.train.unit()), torch.from_numpy(given.train.labels)
    rows = torch.tensor([7, 250, 3])
    some = Minibatch(x[rows], y[rows], rows, seed=0, epoch=0)
    with frozen_teacher(given, "robust", TrainParams()) as cached:
        first, again = cached.clean(some), cached.clean(some)
        assert passes == [PROBED, 300]
        torch.testing.assert_close(first, teacher(x[rows]))
        assert torch.equal(first, again)
        assert not first.requires_grad
    passes.clear()
    with frozen_teacher(given, "robust", TrainParams(augment="crop-flip")) as computed:
        shifted = Minibatch(x[rows].flip(3), y[rows], rows, seed=0, epoch=0)
        torch.testing.assert_close(computed.clean(shifted), teacher(x[rows].flip(3)).detach())
    assert passes == [PROBED, 3, 3]


DISTILLATIONS = [
    (KD, {}),
    (ARD, {"inner": {"steps": 1}, "alpha": 0.5}),
    (RSLAD, {"inner": {"steps": 1}, "augment": "crop-flip"}),
    (IAD, {"inner": {"steps": 1}, "introspect_from": 0.4, "awp": {"warmup": 2}}),
    (AdaAD, {"inner": {"steps": 1}, "weight": 0.5}),
]


@pytest.mark.parametrize(("defense", "changes"), DISTILLATIONS)
def test_killed_at_any_step_a_distillation_ends_with_the_same_bits(
    context: Make, tiny: Make, survives_kills: Make, defense: Any, changes: dict[str, Any]
) -> None:
    p = defense.Params(**NAMES, epochs=3, batch_size=100, lr=0.02, **changes)
    kind = KDRecipe if defense is KD else AdversarialRecipe

    def fit(folder: str) -> Any:
        return defense(p).fit(context(folder=folder, targets={"robust": tiny(1)}))

    assert survives_kills(fit, kind, (2, 1, 4))


@pytest.mark.parametrize(("defense", "changes"), DISTILLATIONS)
def test_a_distillation_names_its_teacher_and_leaves_it_as_found(
    context: Make, tiny: Make, same_weights: Make, defense: Any, changes: dict[str, Any]
) -> None:
    p = defense.Params(**NAMES, epochs=1, batch_size=150, **changes)
    assert target_references(p) == ["robust"]
    assert defense.Params(**p.model_dump(mode="json")) == p
    teacher = tiny(1)
    teacher.module.train()
    student = defense(p).fit(context(targets={"robust": teacher}))
    assert same_weights(teacher, tiny(1))
    assert teacher.module.training
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.module.parameters())
    assert not student.module.training
    other = ClassifierTarget(nn.Flatten(), num_classes=64, input_shape=(1, 8, 8))
    with pytest.raises(UsageError, match=r"teacher 'robust' maps \(1, 8, 8\) to 64 classes"):
        defense(p).fit(context(folder="other", targets={"robust": other}))
