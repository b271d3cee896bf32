"""Multi-exit networks and elastic students: the losses are the formulas, and the threshold is the smallest that will do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import TargetError, UsageError
from robustkd.defenses.image.adaptive.elastic_student import ElasticStudent, ElasticStudentParams, ElasticStudentRecipe
from robustkd.defenses.image.adaptive.multi_exit import MultiExit, MultiExitParams, MultiExitRecipe, threshold_for
from robustkd.defenses.training import Teacher
from robustkd.targets import ClassifierTarget

BRIEF = {"epochs": 2, "optimiser": "adam", "lr": 0.01, "batch_size": 60}
LEARNS = {"epochs": 12, "optimiser": "adam", "lr": 0.005, "batch_size": 20}


def network(model: str, **params: object) -> ClassifierTarget:
    torch.manual_seed(1)
    return ClassifierTarget.from_model(model, params, input_shape=(1, 8, 8), num_classes=10)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_of_a_multi_exit_network_is_the_formula(weight, minibatch, softmax):
    target = network("multi-exit-cnn", width=4, exits=3)
    params = MultiExitParams(weight=weight, temperature=2.0)
    loss, _ = MultiExitRecipe(params).loss(target, minibatch)
    z, y = target.module.answers(minibatch.x), minibatch.y.numpy()
    expected = -sum(np.log(softmax(one, 1.0)[np.arange(32), y]).mean() for one in z)
    last = softmax(z[-1], 2.0)
    for early in z[:-1]:
        expected += weight * 4 * (last * np.log(last / softmax(early, 2.0))).sum(1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_last_exit_learns_nothing_from_the_others(minibatch):
    target = network("multi-exit-cnn", width=4, exits=3)
    heads = target.module.heads[-1].linear.weight
    gradients = []
    for weight in (0.0, 5.0):
        loss, _ = MultiExitRecipe(MultiExitParams(weight=weight)).loss(target, minibatch)
        gradients.append(torch.autograd.grad(loss, heads)[0])
    assert torch.allclose(*gradients, atol=1e-7)


def test_the_threshold_is_the_smallest_that_costs_no_more_than_it_may():
    rng = np.random.default_rng(0)
    confidences = torch.from_numpy(rng.random((2, 60)))
    right = torch.from_numpy(rng.random((3, 60)) < np.array([[0.6], [0.75], [0.9]]))

    def number_right(threshold: float) -> int:
        exits = [next((e for e in range(2) if confidences[e, n] >= threshold), 2) for n in range(60)]
        return sum(bool(right[e, n]) for n, e in enumerate(exits))

    for drop in (0, 3, 12):
        will_do = [t for t in confidences.flatten().tolist() if number_right(t) >= number_right(np.inf) - drop]
        assert threshold_for(confidences, right, drop / 60) == min(will_do, default=np.inf)
    right = torch.tensor([[False], [False], [True]]).expand(3, 60)
    assert threshold_for(confidences, right, 0.0) == np.inf


def test_a_trained_network_answers_early_and_keeps_its_accuracy(context):
    given = context()
    target = MultiExit(MultiExitParams(model_params={"width": 12}, accuracy_drop=0.1, **LEARNS)).fit(given)
    x, y = torch.from_numpy(given.validation.unit()), torch.from_numpy(given.validation.labels)
    with torch.no_grad():
        last = (target.module.answers(x)[-1].argmax(1) == y).float().mean()
        rule = (target(x).argmax(1) == y).float().mean()
        spent = target.module.spent(x).float().mean()
    assert last > 0.6
    assert rule >= last - 0.1 - 1e-6
    assert spent < 0.8 * target.module.budgets[-1]


def test_adversarial_examples_are_made_on_the_rule_and_train_every_exit(context):
    params = MultiExitParams(model_params={"width": 4, "exits": 2}, inner={"steps": 1}, **(BRIEF | {"epochs": 1}))
    defense = MultiExit(params)
    assert defense.uses_threat
    assert not MultiExit(MultiExitParams()).uses_threat
    rows: list[dict[str, float]] = []
    defense.fit(context(log=lambda epoch, metrics: rows.append(dict(metrics))))
    assert "validation_robust_accuracy" in rows[0]


def test_the_loss_of_an_elastic_student_is_plain_distillation_at_each_width(linear, minibatch):
    teacher, student = linear(0), network("elastic-cnn", width=4, widths=(0.5, 1.0))
    params = ElasticStudentParams(teacher="teacher", temperature=2.0, alpha=0.7)
    loss, _ = ElasticStudentRecipe(Teacher(teacher), params).loss(student, minibatch)
    kd = plugins.load("defenses", "kd")
    expected = torch.zeros(())
    for number in range(2):
        narrow = ClassifierTarget(_Cut(student.module, number), num_classes=10, input_shape=(1, 8, 8))
        recipe = kd.recipe(Teacher(teacher), kd.Params(teacher="teacher", student="tiny-cnn", temperature=2.0, alpha=0.7))
        expected = expected + recipe.loss(narrow, minibatch)[0]
    assert torch.allclose(loss, expected, rtol=1e-5)
    only = ElasticStudentRecipe(Teacher(teacher), params.model_copy(update={"trained": "largest"})).loss(student, minibatch)[0]
    assert torch.allclose(only, recipe.loss(narrow, minibatch)[0], rtol=1e-5)


class _Cut(torch.nn.Module):
    def __init__(self, network: torch.nn.Module, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.answer(self.number, x)


def test_the_sandwich_trains_the_narrowest_width_and_the_control_does_not(context):
    def accuracy(trained: str) -> float:
        given = context(folder=trained, targets={"teacher": _taught(context)})
        params = ElasticStudentParams(teacher="teacher", student_params={"width": 16}, trained=trained, **LEARNS)
        student = ElasticStudent(params).fit(given)
        x, y = torch.from_numpy(given.validation.unit()), torch.from_numpy(given.validation.labels)
        with torch.no_grad():
            return float((student.module.answer(0, x).argmax(1) == y).float().mean())

    assert accuracy("sandwich") > accuracy("largest") + 0.2


def _taught(context) -> ClassifierTarget:
    standard = plugins.load("defenses", "standard")
    target: ClassifierTarget = standard(standard.Params(model="tiny-cnn", **LEARNS)).fit(context(folder="teacher"))
    return target


def test_a_sub_network_of_a_campaign_shares_the_weights(context):
    kind = plugins.load("defenses", "sub-network")
    base = network("multi-exit-cnn", width=4)
    base.module.eval()
    given = context(targets={"base": base}, train=None)
    part = kind(kind.Params(base="base", part="exit-2")).fit(given)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(part(x), base.module.answers(x)[1])
    with pytest.raises(TargetError, match="no sub-network 'exit-9'"):
        kind(kind.Params(base="base", part="exit-9")).fit(given)


def test_an_architecture_that_cannot_is_refused(context, linear):
    with pytest.raises(UsageError, match="has none"):
        MultiExit(MultiExitParams(model="tiny-cnn", **BRIEF)).fit(context())
    with pytest.raises(UsageError, match="has none"):
        ElasticStudent(ElasticStudentParams(teacher="teacher", student="tiny-cnn", **BRIEF)).fit(
            context(targets={"teacher": linear(0)})
        )


@pytest.mark.parametrize("kind", ["multi-exit", "elastic"])
def test_a_training_that_was_killed_ends_with_the_same_weights(kind, context, linear, survives_kills):
    def fit(folder: str):
        given = context(folder=folder, targets={"teacher": linear(0)})
        if kind == "multi-exit":
            return MultiExit(MultiExitParams(model_params={"width": 3, "exits": 2}, **BRIEF)).fit(given)
        return ElasticStudent(ElasticStudentParams(teacher="teacher", student_params={"width": 4}, **BRIEF)).fit(given)

    recipe = MultiExitRecipe if kind == "multi-exit" else ElasticStudentRecipe
    assert survives_kills(fit, recipe, [2, 7])
