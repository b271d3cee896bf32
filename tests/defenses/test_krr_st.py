"""KRR-ST: the regression has its closed form, the pool learns by its own steps alone, and the set is what is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd.defenses.image.condensed.krr_st import KRRST, FeatureRecipe, KRRSTParams, KRRSTRecipe, regression, with_one
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import with_penultimate

BRIEF = {"epochs": 1, "pretrain_epochs": 1, "finish_epochs": 1, "optimiser": "adam", "lr": 0.01, "batch_size": 120}
NETWORK = {"model": "tiny-cnn", "model_params": {"width": 3}}


def network(seed: int = 0, width: int = 3) -> ClassifierTarget:
    torch.manual_seed(seed)
    made = ClassifierTarget.from_model("tiny-cnn", {"width": width}, input_shape=(1, 8, 8), num_classes=10)
    made.module.eval()
    return made


def recipe(small: torch.nn.ParameterDict, **changes: object) -> KRRSTRecipe:
    def fresh(number: int, made: int) -> tuple[ClassifierTarget, torch.nn.ModuleDict]:
        target = network(100 + 10 * number + made)
        torch.manual_seed(number)
        return target, torch.nn.ModuleDict(
            {"network": target.module, "head": torch.nn.Linear(target.module.linear.in_features, 6)}
        )

    return KRRSTRecipe(small, Features(), fresh, KRRSTParams(network="t", **NETWORK, **changes), 0)


class Features(ClassifierTarget):
    """t: six numbers of an image, in front of a last layer."""

    def __init__(self) -> None:
        torch.manual_seed(9)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.Linear(6, 10))
        super().__init__(module, num_classes=10, input_shape=(1, 8, 8))


def small_set(images: torch.Tensor) -> torch.nn.ParameterDict:
    with torch.no_grad():
        features = with_penultimate(Features(), images)[1]
    return torch.nn.ParameterDict({"images": images.clone(), "features": features.clone()})


def test_the_prediction_is_that_of_ridge_regression():
    rng = np.random.default_rng(0)
    known, goals, asked = (rng.normal(size=shape) for shape in ((12, 5), (12, 3), (7, 5)))
    found = regression(*(torch.from_numpy(values).float() for values in (known, goals, asked)), ridge=0.01)
    penalty = 0.01 * np.trace(known @ known.T)
    weights = np.linalg.solve(known.T @ known + penalty * np.eye(5), known.T @ goals)
    assert np.allclose(found.numpy(), asked @ weights, atol=1e-4)
    # With as many points as there are unknowns, and next to no penalty, what is known is repeated.
    square = torch.from_numpy(rng.normal(size=(5, 5))).float()
    assert torch.allclose(regression(square, torch.eye(5), square, 1e-9), torch.eye(5), atol=1e-3)


def test_a_set_of_all_images_with_their_own_features_has_next_to_no_error(minibatch):
    small = small_set(minibatch.x)
    made = recipe(small, ridge=1e-7)
    # t is linear in the pixels, so that a network that gives the pixels away predicts it exactly; here the pool sees as many features.
    pixels = ClassifierTarget(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), num_classes=10, input_shape=(1, 8, 8)
    )
    made.targets = [pixels] * 3
    trained = with_auxiliary(network(), set=small)
    assert made.loss(trained, minibatch)[0].item() < 1e-4
    few = recipe(small_set(minibatch.x[:2]), ridge=1e-7)
    few.targets = [pixels] * 3
    assert few.loss(trained, minibatch)[0].item() > 0.01


def test_the_gradient_reaches_the_set_alone_and_one_network_of_the_pool_takes_its_step(minibatch):
    small = small_set(minibatch.x[:8])
    made = recipe(small)
    before = [{name: weight.clone() for name, weight in one.state_dict().items()} for one in made.pool.module]
    trained = with_auxiliary(network(), set=small)
    made.loss(trained, minibatch)[0].backward()
    assert all(weight.grad is None for weight in made.pool.module.parameters())
    assert all(weight.grad is None for weight in trained.module.student.parameters())
    assert (small["images"].grad != 0).any()
    assert (small["features"].grad != 0).any()
    with torch.no_grad():
        small["images"][0] += 3
    made.after_step({})
    assert small["images"].max() <= 1
    after = [one.state_dict() for one in made.pool.module]
    moved = [any(not torch.equal(old[name], new[name]) for name in old) for old, new in zip(before, after, strict=True)]
    assert sum(moved) == 1
    assert (made.steps, sum(made.ages)) == (1, 0 + 33 + 66 + 1)


def test_a_step_of_the_pool_is_gradient_descent_on_the_small_set(minibatch):
    small = small_set(minibatch.x[:8])
    made = recipe(small, pool=1, online_lr=0.05)
    other = network(100)
    torch.manual_seed(0)
    head = torch.nn.Linear(other.module.linear.in_features, 6)
    error = (head(with_penultimate(other, small["images"].detach())[1]) - small["features"].detach()).square().mean()
    wanted = head.weight - 0.05 * torch.autograd.grad(error, head.weight)[0]
    made.after_step({})
    assert torch.allclose(made.pool.module[0]["head"].weight, wanted, atol=1e-6)


def test_a_network_of_the_pool_starts_afresh_when_its_time_is_over(minibatch):
    made = recipe(small_set(minibatch.x[:4]), pool=1, online_steps=2)
    made.after_step({})
    assert (made.ages, made.made) == ([1], [0])
    made.after_step({})
    assert (made.ages, made.made) == ([0], [1])
    fresh = made.fresh(0, 1)[1].state_dict()
    assert all(torch.equal(weight, fresh[name]) for name, weight in made.pool.module[0].state_dict().items())


def test_features_are_learnt_image_by_image_however_often_they_are_shown(minibatch):
    student, goals = network(), torch.randn(5, 6)
    head = torch.nn.Linear(student.module.linear.in_features, 6)
    loss, _ = FeatureRecipe(student, goals).loss(with_auxiliary(student, head=head), minibatch)
    found = head(with_penultimate(student, minibatch.x)[1])
    expected = torch.stack([(found[row] - goals[row % 5]).square().mean() for row in range(32)]).mean()
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("learnt", [True, False])
def test_the_set_starts_from_real_images_and_is_learnt_or_not(learnt, context, monkeypatch):
    seen = []
    kind = KRRST._stages

    def watched(self, given, student, teacher):
        for stage in kind(self, given, student, teacher):
            seen.append(stage)
            yield stage

    monkeypatch.setattr(KRRST, "_stages", watched)
    given = context(targets={"t": network(4)})
    KRRST(KRRSTParams(network="t", images=6, learnt=learnt, **NETWORK, **BRIEF)).fit(given)
    assert [stage.name for stage in seen] == (["set"] if learnt else []) + ["features", "finetune"]
    shown = next(stage for stage in seen if stage.name == "features").data["train"]
    assert len(shown) == len(given.train)
    real = {image.tobytes() for image in given.train.unit()}
    assert all(image.tobytes() in real for image in shown.images[:6]) != learnt
    assert shown.images.min() >= 0
    assert shown.images.max() <= 1


def test_killed_while_the_set_is_learnt_it_goes_on_there(context, survives_kills):
    def fit(folder: str):
        given = context(folder=folder, targets={"t": network(4)})
        return KRRST(KRRSTParams(network="t", images=6, online_steps=3, **NETWORK, **BRIEF | {"epochs": 2})).fit(given)

    assert survives_kills(fit, KRRSTRecipe, [2, 1])


def test_a_one_is_put_behind_the_features():
    assert with_one(torch.zeros(2, 3)).tolist() == [[0, 0, 0, 1]] * 2
