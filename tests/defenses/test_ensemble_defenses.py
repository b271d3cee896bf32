from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from robustkd import plugins
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.contracts import TargetError, ThreatModel, UsageError, target_references
from robustkd.defenses.image.ensembles.adp import ADP, ADPParams, ADPRecipe, log_det
from robustkd.defenses.image.ensembles.dverge import DVERGE, DVERGEParams, DVERGERecipe, distilled, partners
from robustkd.defenses.image.ensembles.ensemble_at import EnsembleAT, EnsembleATParams, EnsembleATRecipe
from robustkd.defenses.image.ensembles.gal import GAL, GALParams, GALRecipe, half_noisy, leaky
from robustkd.defenses.image.ensembles.trs import TRS, TRSParams, TRSRecipe, roughest
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.features import AtLayer, layer_count
from robustkd.defenses.training.members import MembersParams
from robustkd.targets import ClassifierTarget, EnsembleTarget, load_target, save_target

EPS = 0.15
Make = Callable[..., Any]
THREAT = ThreatModel(eps=EPS)
SMALL = {"model": "tiny-cnn", "model_params": {"width": 4}}


def members(linear: Make, count: int = 3) -> EnsembleTarget:
    return EnsembleTarget([linear(seed, 3) for seed in range(count)])


def probabilities(target: EnsembleTarget, x: Tensor, softmax: Make) -> list[np.ndarray]:
    return [softmax(member(x)) for member in target.members]


def cross_entropy(p: np.ndarray, y: Tensor) -> float:
    return float(-np.log(p[np.arange(len(p)), y.numpy()]).mean())


def loss_gradients(target: EnsembleTarget, x: Tensor, y: Tensor, softmax: Make) -> list[np.ndarray]:
    """(B, 64) of each linear member: W^T (p - onehot(y))."""
    onehot = np.eye(10)[y.numpy()]
    weights = [member.module[1].weight.detach().double().numpy() for member in target.members]
    return [(p - onehot) @ w for p, w in zip(probabilities(target, x, softmax), weights, strict=True)]


def pairwise_cosines(gradients: list[np.ndarray]) -> np.ndarray:
    units = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in gradients]
    return np.stack([(units[i] * units[j]).sum(1) for i in range(len(units)) for j in range(i + 1, len(units))])


# --- the losses ------------------------------------------------------------------------------------------------------


def test_adp_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, y = members(linear), minibatch.y
    loss, measured = ADPRecipe(alpha=2.0, beta=0.5).loss(target, minibatch)
    ps = probabilities(target, minibatch.x, softmax)
    mean = sum(ps) / len(ps)
    entropy = -(mean * np.log(mean)).sum(1).mean()
    volumes = []
    for row, label in enumerate(y.tolist()):
        columns = np.stack([np.delete(p[row], label) for p in ps], 1)
        columns = columns / np.linalg.norm(columns, axis=0)
        volumes.append(np.log(np.linalg.det(columns.T @ columns + 1e-6 * np.eye(3))))
    assert measured["ensemble_entropy"].item() == pytest.approx(entropy, rel=1e-5)
    assert measured["log_det"].item() == pytest.approx(np.mean(volumes), rel=1e-3)
    expected = sum(cross_entropy(p, y) for p in ps) - 2.0 * entropy - 0.5 * np.mean(volumes)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_adps_volume_is_one_at_right_angles_nothing_when_members_agree_and_never_infinite() -> None:
    # Three members that are nearly certain of the label 0, and otherwise each of another class: log det = 0.
    apart = torch.full((3, 1, 5), -60.0)
    apart[:, :, 0] = 40.0
    for member in range(3):
        apart[member, :, 1 + member] = 0.0
    label = torch.tensor([0])
    assert log_det(apart, label).item() == pytest.approx(0, abs=1e-5)
    same = apart[:1].expand(3, -1, -1).clone().requires_grad_()
    volume = log_det(same, label)
    assert -40 < volume.item() < -20
    volume.backward()
    assert torch.isfinite(same.grad).all()


def test_gal_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, p = members(linear), GALParams(**SMALL, coherence=0.7, noise=0.0)
    loss, measured = GALRecipe(p).loss(target, minibatch)
    cosines = pairwise_cosines(loss_gradients(target, minibatch.x, minibatch.y, softmax))
    coherence = np.log(np.exp(cosines).sum(0)).mean()
    plain = np.mean([cross_entropy(q, minibatch.y) for q in probabilities(target, minibatch.x, softmax)])
    assert measured["coherence"].item() == pytest.approx(coherence, rel=1e-5)
    assert loss.item() == pytest.approx(plain + 0.7 * coherence, rel=1e-5)


def test_gals_coherence_is_differentiated_and_falls_along_its_gradient(linear: Make, minibatch: Minibatch) -> None:
    target, r = members(linear), GALRecipe(GALParams(**SMALL, noise=0.0))
    weights = list(target.module.parameters())
    before = r.loss(target, minibatch)[1]["coherence"]
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= 0.05 * gradient / gradient.norm()
    assert r.loss(target, minibatch)[1]["coherence"] < before - 1e-3


def test_half_of_gals_images_are_noisy_others_in_another_epoch() -> None:
    x = torch.full((400, 1, 8, 8), 0.5)

    def noise(epoch: int) -> Tensor:
        batch = Minibatch(x, torch.zeros(400).long(), torch.arange(400), seed=0, epoch=epoch)
        return half_noisy(x, 0.045, batch.rng("noise")) - x

    first, second = noise(0), noise(1)
    noisy = first.flatten(1).abs().amax(1) > 0
    assert 160 < int(noisy.sum()) < 240
    assert first[noisy].std().item() == pytest.approx(0.045, rel=0.03)
    assert not torch.equal(noisy, second.flatten(1).abs().amax(1) > 0)


@pytest.mark.parametrize("adversarial", [False, True])
def test_trs_is_the_loss_of_the_authors_code(adversarial: bool, linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    size = len(minibatch.x)
    weights = {"lambda_a": 3.0, "lambda_b": 500.0, "first_delta": 0.01, "delta": 0.03}
    p = TRSParams(**SMALL, **weights, adversarial=adversarial, epochs=10, steps=2, batch_size=size)
    target, y = members(linear), minibatch.y
    loss, measured = TRSRecipe(p).loss(target, minibatch)
    at, half = minibatch.x, size // 2
    if adversarial:
        rest = Minibatch(at[half:], y[half:], minibatch.index[half:], seed=minibatch.seed, epoch=minibatch.epoch)
        at = torch.cat([at[:half], roughest(target, rest, 0.01 + 0.02 / 10, 2)])  # the second epoch of ten
    similar = np.abs(pairwise_cosines(loss_gradients(target, minibatch.x, y, softmax))).mean()
    smooth = np.mean([2 * ((g / size) ** 2).sum(1).mean() for g in loss_gradients(target, at, y, softmax)])
    plain = sum(cross_entropy(q, y) for q in probabilities(target, minibatch.x, softmax))
    assert measured["similarity"].item() == pytest.approx(similar, rel=1e-5)
    assert measured["smoothness"].item() == pytest.approx(smooth, rel=1e-5)
    assert loss.item() == pytest.approx(plain + 3.0 * similar + 500.0 * smooth, rel=1e-5)
    loss.backward()
    assert all(member.module[1].weight.grad.abs().sum() > 0 for member in target.members)


def test_trs_begins_with_the_settings_of_the_authors_code() -> None:
    p = TRSParams(**SMALL)
    assert (p.lambda_a, p.lambda_b, p.adversarial, p.first_delta, p.delta, p.steps) == (10, 10, False, 0.1, 0.2, 6)
    assert (p.epochs, p.batch_size, p.optimiser, p.lr, p.schedule, p.gamma) == (120, 128, "adam", None, "steps", 0.1)
    assert [round(share * p.epochs) for share in p.milestone_fractions] == [40, 80]


def test_trs_looks_for_long_gradients_inside_the_ball(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, x = members(linear), minibatch.x
    found = roughest(target, minibatch, 0.1, 6)
    assert float((found - x).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1

    def total(at: Tensor) -> float:
        return float(sum(np.linalg.norm(g, axis=1).mean() for g in loss_gradients(target, at, minibatch.y, softmax)))

    assert total(found) > 1.05 * total(x)
    assert all(weight.grad is None and weight.requires_grad for weight in target.module.parameters())


def test_ensemble_at_trains_each_member_on_what_fools_them_together(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target = members(linear)
    inner = InnerMaximisation(steps=1, start="clean", step_size=0.05)
    loss, _ = EnsembleATRecipe(Adversary.under(inner, THREAT), THREAT).loss(target, minibatch)
    x = minibatch.x.clone().requires_grad_()
    mean = torch.stack([member(x).softmax(1) for member in target.members]).mean(0)
    (gradient,) = torch.autograd.grad(F.nll_loss(mean.log(), minibatch.y, reduction="sum"), x)
    x_adv = (minibatch.x + 0.05 * gradient.sign()).clamp(0, 1)
    expected = sum(cross_entropy(p, minibatch.y) for p in probabilities(target, x_adv, softmax))
    assert loss.item() == pytest.approx(expected, rel=1e-3)


# --- DVERGE ----------------------------------------------------------------------------------------------------------


def test_one_step_of_distillation_by_hand(linear: Make, minibatch: Minibatch) -> None:
    member, source, wanted = linear(0), minibatch.x[:16], minibatch.x[16:]
    logits = layer_count(member) - 1
    found = distilled(member, logits, source, wanted, eps=0.07, size=StepSize(0.02), steps=1)
    w = member.module[1].weight.detach()
    gradient = 2 * ((source - wanted).flatten(1) @ w.T) @ w  # of || W z - W x ||^2 at z = x_s; the bias falls out
    expected = (source - 0.02 * gradient.sign().view_as(source)).clamp(0, 1)
    assert torch.isclose(found, expected, atol=1e-6).float().mean() > 0.99


@pytest.mark.parametrize("layer", ["body.0", 0, 1])
def test_distillation_brings_the_features_nearer_within_the_ball(tiny: Make, minibatch: Minibatch, layer: str | int) -> None:
    member, source, wanted = tiny(), minibatch.x[:16], minibatch.x[16:]
    member.module.train()
    before = {name: tensor.clone() for name, tensor in member.module.state_dict().items()}
    found = distilled(member, layer, source, wanted, eps=0.07, size=StepSize(0.007), steps=10)
    assert float((found - source).abs().max()) <= 0.07 + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not found.requires_grad
    assert member.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in member.module.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in member.module.parameters())
    member.module.eval()
    features = AtLayer(member, layer)

    def away(x: Tensor) -> Tensor:
        return (features(x) - features(wanted)).square().sum(1)

    assert bool((away(found) < away(source)).all())


def test_distillation_looks_at_the_wanted_images_once(linear: Make, minibatch: Minibatch) -> None:
    passes: list[bool] = []
    member = linear(0)
    member.module.register_forward_hook(lambda module, args, output: passes.append(args[0].requires_grad))
    distilled(member, 0, minibatch.x, minibatch.x.flip(0), eps=0.07, size=StepSize(0.007), steps=10)
    assert passes == [False] + [True] * 10


def recipe(context: Make, *targets: ClassifierTarget, **changes: Any) -> tuple[DVERGERecipe, EnsembleTarget]:
    p = DVERGEParams(**({**SMALL, "distill_steps": 2} | changes))
    adversary = Adversary.under(p.inner, THREAT) if p.adversarial else None
    layers = [p.layers or range(layer_count(target)) for target in targets]
    samples = Samples(context().train, torch.device("cpu"))
    return DVERGERecipe(samples, layers, adversary, None, p), EnsembleTarget(list(targets))


@pytest.mark.parametrize("adversarial", [False, True])
def test_dverge_trains_each_member_on_what_the_others_distilled(
    linear: Make, softmax: Make, context: Make, minibatch: Minibatch, adversarial: bool
) -> None:
    r, target = recipe(context, linear(0, 3), linear(1, 3), linear(2, 3), adversarial=adversarial)
    loss, _ = r.loss(target, minibatch)
    train, order = context().train, partners(300, minibatch.seed, minibatch.epoch)
    wanted = torch.from_numpy(train.unit()[order[minibatch.index].numpy()])
    images = [distilled(m, 0, minibatch.x, wanted, eps=0.07, size=StepSize(0.007), steps=2) for m in target.members]
    expected = 0.0
    for i, member in enumerate(target.members):
        expected += sum(cross_entropy(softmax(member(images[j])), minibatch.y) for j in range(3) if j != i)
        if adversarial:
            assert r.adversary is not None
            own = r.adversary(member, minibatch)
            expected += cross_entropy(softmax(member(own)), minibatch.y)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_every_member_learns_and_only_from_its_own_losses(linear: Make, context: Make, minibatch: Minibatch) -> None:
    r, target = recipe(context, linear(0, 3), linear(1, 3), linear(2, 3))
    loss, _ = r.loss(target, minibatch)
    loss.backward()
    together = [member.module[1].weight.grad for member in target.members]
    images = []
    for member in target.members:
        images.append(distilled(member, 0, minibatch.x, r.wanted(minibatch), eps=0.07, size=StepSize(None, 0.1), steps=2))
    for i, member in enumerate(target.members):
        own = sum(F.cross_entropy(member(images[j]), minibatch.y) for j in range(3) if j != i)
        (gradient,) = torch.autograd.grad(own, member.module[1].weight)
        torch.testing.assert_close(together[i], gradient)


def test_a_training_step_of_dverge_by_hand(linear: Make, context: Make) -> None:
    one, other = linear(0, 3), linear(1, 3)
    step = {"schedule": "constant", "lr": 0.1, "momentum": 0.0, "weight_decay": 1e-2}
    p = DVERGEParams(start=("a", "b"), epochs=1, batch_size=300, distill_steps=3, **step)
    trained = DVERGE(p).fit(context(targets={"a": one, "b": other}))
    data = context().train
    x, y = torch.from_numpy(data.unit()), torch.from_numpy(data.labels)
    wanted = x[partners(300, 0, 0)]
    images = [distilled(m, 0, x, wanted, eps=0.07, size=StepSize(0.007), steps=3) for m in (one, other)]
    for member, result, image in zip((one, other), trained.members, reversed(images), strict=True):
        weight = member.module[1].weight
        (gradient,) = torch.autograd.grad(F.cross_entropy(member(image), y), weight)
        expected = weight - 0.1 * (gradient + 1e-2 * weight)
        torch.testing.assert_close(result.module[1].weight, expected, atol=1e-5, rtol=1e-4)


def test_the_second_order_is_a_permutation_of_its_own_in_every_epoch() -> None:
    first, second = partners(500, 0, 0), partners(500, 0, 1)
    assert torch.equal(first.sort().values, torch.arange(500))
    assert not torch.equal(first, second)
    assert not torch.equal(first, partners(500, 1, 0))


def test_the_layer_is_drawn_once_an_epoch_among_all(linear: Make, tiny: Make, context: Make) -> None:
    r, _ = recipe(context, tiny(0), tiny(1), linear(0))
    drawn = [r.drawn(0, epoch) for epoch in range(40)]
    assert {(one, other) for one, other, _ in drawn} == {(0, 0), (1, 1)}  # of equal members the same layer
    assert {alone for *_, alone in drawn} == {0}  # a linear one has only its logits
    assert 10 < sum(one for one, *_ in drawn) < 30
    assert r.drawn(0, 7) == r.drawn(0, 7)
    named, _ = recipe(context, tiny(0), tiny(1), layers=("body.0", "head"))
    assert {tuple(named.drawn(0, epoch)) for epoch in range(40)} == {("body.0", "body.0"), ("head", "head")}


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "layers"), [("resnet20", (3, 8, 8), 20), ("small-cnn", (1, 8, 8), 5), ("tiny-vit", (1, 8, 8), None)]
)
def test_the_layers_of_any_backbone(model: str, shape: tuple[int, ...], layers: int | None) -> None:
    # 20 for ResNet-20: what the paper draws from, though its ReLUs are functions here, not modules.
    target = ClassifierTarget.from_model(model, input_shape=shape, num_classes=10)
    count = layer_count(target)
    assert count == layers if layers else count > 2
    x = torch.rand(4, *shape)
    target.module.eval()
    torch.testing.assert_close(AtLayer(target, count - 1)(x), target(x))
    assert AtLayer(target, 0)(x).shape[0] == 4
    assert AtLayer(target, 0)(x).shape[1] != 10


def test_features_are_those_before_the_relu_and_the_pass_ends_there(minibatch: Minibatch) -> None:
    target = ClassifierTarget.from_model("tiny-cnn", SMALL["model_params"], input_shape=(1, 8, 8), num_classes=10)
    called: list[str] = []
    for name, module in target.module.named_modules():
        module.register_forward_hook(lambda m, args, output, name=name: called.append(name))
    found = AtLayer(target, 1)(minibatch.x)
    assert "linear" not in called
    assert bool((found < 0).any())
    hidden = target.module.conv2(target.module.relu1(target.module.conv1(minibatch.x)))
    torch.testing.assert_close(found, hidden.flatten(1))
    torch.testing.assert_close(AtLayer(target, "conv2")(minibatch.x), found)
    with pytest.raises(TargetError, match="no layer 'conv9'"):
        AtLayer(target, "conv9")


# --- training --------------------------------------------------------------------------------------------------------

SHORT: dict[str, Any] = SMALL | {"epochs": 2, "batch_size": 120, "lr": 0.01}


@pytest.mark.parametrize(
    ("kind", "params", "recipes", "steps"),
    [
        (DVERGE, {"pretraining": 1, "distill_steps": 1, "augment": "crop-flip"}, "DVERGERecipe", (2, 3)),
        (DVERGE, {"pretraining": 0, "distill_steps": 1, "adversarial": True, "inner": {"steps": 1}}, "DVERGERecipe", (1, 4)),
        (ADP, {}, "ADPRecipe", (2, 3)),
        (GAL, {}, "GALRecipe", (2, 3)),
        (TRS, {"steps": 1, "adversarial": True}, "TRSRecipe", (2, 3)),
        (EnsembleAT, {"inner": {"steps": 1}}, "EnsembleATRecipe", (2, 3)),
    ],
)
def test_killed_at_any_step_it_ends_with_the_same_bits(
    kind: Any, params: dict[str, Any], recipes: str, steps: tuple[int, ...], context: Make, survives_kills: Make
) -> None:
    p = kind.Params(**(SHORT | {"members": 2} | params))

    def fit(folder: str) -> EnsembleTarget:
        target = kind(p).fit(context(folder=folder))
        assert isinstance(target, EnsembleTarget)
        return target

    module = __import__(kind.__module__, fromlist=[recipes])
    assert survives_kills(fit, getattr(module, recipes), steps)


def test_members_begin_as_copies_of_trained_defenses_or_as_different_fresh_networks(
    context: Make, tiny: Make, same_weights: Make
) -> None:
    one, other = tiny(0), tiny(1)
    p = ADPParams(start=("a", "b"), epochs=1, batch_size=120)
    assert target_references(p) == ["a", "b"]
    trained = ADP(p).fit(context(targets={"a": one, "b": other}))
    assert same_weights(one, tiny(0))
    assert same_weights(other, tiny(1))
    assert not same_weights(trained.members[0], one)
    fresh = ADP(ADPParams(**(SHORT | {"epochs": 1, "lr": 1e-9}))).fit(context(folder="fresh"))
    first, second, third = (member.module.conv1.weight for member in fresh.members)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_pretraining_is_logged_apart_and_dverge_goes_on_from_it(context: Make, curve: Make) -> None:
    log = curve()
    brief = {"epochs": 1, "pretraining": 8, "members": 2, "distill_steps": 1, "optimiser": "adam", "batch_size": 60}
    DVERGE(DVERGEParams(**(SHORT | brief))).fit(context(log=log))
    named = [{name for name in row if name.endswith("train_loss")} for row in log.metrics]
    assert named == [{"pretraining_train_loss"}] * 8 + [{"train_loss"}]
    assert log.metrics[0]["pretraining_validation_accuracy"] < 0.4
    assert log.metrics[8]["validation_accuracy"] > 0.6


def test_a_leaky_member_is_saved_and_built_again(tmp_path: Path, minibatch: Minibatch, context: Make) -> None:
    target = GAL(GALParams(**(SHORT | {"epochs": 1, "members": 2, "slope": 0.3}))).fit(context())
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert torch.equal(target(minibatch.x), again(minibatch.x))
    leak = again.members[0].module
    hidden = leak.network.conv1(minibatch.x)
    hidden = leak.network.conv2(F.leaky_relu(hidden, 0.3))
    expected = leak.network.linear(F.leaky_relu(hidden, 0.3).flatten(1))
    torch.testing.assert_close(again.members[0](minibatch.x), expected)
    assert AtLayer(again.members[0], 0)(minibatch.x).shape[1] != 10
    code = ClassifierTarget(nn.Flatten(), num_classes=64, input_shape=(1, 8, 8), origin={"code": "a:b"})
    with pytest.raises(UsageError, match="user's own code"):
        leaky(code, 0.1)


def test_only_an_adversarial_dverge_depends_on_the_threat_model() -> None:
    assert not DVERGE(DVERGEParams(**SMALL)).uses_threat
    assert DVERGE(DVERGEParams(**SMALL, adversarial=True)).uses_threat
    assert EnsembleAT(EnsembleATParams(**SMALL)).uses_threat


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "model, or the trained defenses"),
        ({"model": "tiny-cnn", "start": ("a", "b")}, "one of the two"),
        ({"start": ("a", "a")}, "twice"),
        ({"start": ("a", "b"), "members": 3}, "leave members out"),
        ({"start": ("a", "b"), "model_params": {"width": 3}}, "model_params"),
        ({"start": ("a", "b"), "pretraining": 3}, "pretraining"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        DVERGEParams(**given)


def test_as_many_members_as_classes_have_no_volume(context: Make) -> None:
    with pytest.raises(UsageError, match="volume is always 0"):
        ADP(ADPParams(**SMALL, members=10)).fit(context())


def test_all_are_plug_ins_with_the_papers_defaults() -> None:
    for name in ("adp", "gal", "trs", "dverge", "ensemble-at"):
        p = plugins.load("defenses", name).Params(**SMALL)
        assert isinstance(p, MembersParams)
        assert (p.epochs, p.weight_decay, p.members) == (120 if name == "trs" else 200, 1e-4, 3)
    p = DVERGEParams(**SMALL)
    assert (p.distill_eps, p.distill_steps, p.inner.steps, p.optimiser, p.selection) == (0.07, 10, 10, "sgd", "last")
