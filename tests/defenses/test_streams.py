"""Streams of tasks: what is remembered, distilled and aligned is the formula, and a killed training goes on in its task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd.analyses.forgetting import Forgetting, ForgettingParams
from robustkd.contracts import Batch, TargetError, ThreatModel, UsageError
from robustkd.defenses.image.streams.memory import herded
from robustkd.defenses.image.streams.pcr import PCR, PCRParams, proxy_loss
from robustkd.defenses.image.streams.stream import Task, divided
from robustkd.defenses.image.streams.wa import WA, WAParams, WARecipe, aligned
from robustkd.models.snapshots import UNSEEN
from robustkd.scoring.intervals import ratio_interval
from robustkd.targets import ClassifierTarget, load_target, save_target
from robustkd.targets.stream import StreamTarget

BRIEF = {"model": "tiny-cnn", "model_params": {"width": 4}, "epochs": 2, "optimiser": "adam", "lr": 0.01, "batch_size": 30}


def linear_network(weight: np.ndarray) -> ClassifierTarget:
    """Of 4 pixels, K = len(weight) classes, no bias."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, len(weight), bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(weight.astype(np.float32)))
    return ClassifierTarget(module, num_classes=len(weight), input_shape=(1, 2, 2), bounds=(-9.0, 9.0))


def test_classes_are_divided_in_their_order():
    assert divided(10, 5) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert divided(7, 3) == [[0, 1, 2], [3, 4], [5, 6]]
    with pytest.raises(UsageError, match="3 classes cannot be divided into 4 tasks"):
        divided(3, 4)


def test_after_aligning_new_rows_are_as_long_as_old_ones_and_new_classes_keep_their_order():
    rng = np.random.default_rng(0)
    network = linear_network(rng.normal(size=(6, 4)) * np.array([1, 1, 1, 1, 5, 5])[:, None])
    x = torch.randn(50, 1, 2, 2)
    before = network(x)[:, 4:].argmax(1)
    factor = aligned(network.module, [0, 1, 2, 3], [4, 5])
    lengths = torch.linalg.vector_norm(network.module[1].weight, dim=1)
    assert factor < 0.5
    assert lengths[4:].mean().item() == pytest.approx(lengths[:4].mean().item(), rel=1e-5)
    assert torch.equal(network(x)[:, 4:].argmax(1), before)
    assert aligned(network.module, [0, 1, 2, 3], [4, 5]) == pytest.approx(1, rel=1e-5)


def test_what_is_herded_keeps_the_mean_near_that_of_all():
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(features, dim=1).numpy()
    expected: list[int] = []
    for count in range(1, 6):
        costs = {
            row: np.square(unit.mean(0) - unit[[*expected, row]].sum(0) / count).sum()
            for row in range(12)
            if row not in expected
        }
        expected.append(min(costs, key=costs.get))
    assert herded(features, 5) == expected
    assert sorted(herded(features, 99)) == list(range(12))


def test_the_loss_is_labels_and_the_old_answers_by_the_share_of_old_classes(minibatch, linear, softmax):
    before, now = linear(0), linear(1)
    old = [0, 1, 2, 3]
    params = WAParams(model="tiny-cnn")
    loss, _ = WARecipe(params, Task(now, before, old, [4, 5], None, None)).loss(now, minibatch)
    wanted, z = softmax(before(minibatch.x)[:, old], 2.0), now(minibatch.x)
    soft = -(wanted * np.log(softmax(z[:, old], 2.0))).sum(1).mean()
    hard = -np.log(softmax(z, 1.0)[np.arange(32), minibatch.y.numpy()]).mean()
    assert loss.item() == pytest.approx(hard / 3 + 2 * soft / 3, rel=1e-5)
    for recipe in (
        WARecipe(params, Task(now, None, [], [0, 1], None, None)),
        WARecipe(params.model_copy(update={"distil": False}), Task(now, before, old, [4, 5], None, None)),
    ):
        assert recipe.loss(now, minibatch)[0].item() == pytest.approx(hard, rel=1e-5)


def test_a_class_that_is_there_twice_counts_once_and_one_class_alone_costs_nothing():
    generator = torch.Generator().manual_seed(0)
    features, proxies = torch.randn(7, 5, generator=generator), torch.randn(6, 5, generator=generator)
    labels = torch.tensor([3, 3, 1, 5, 1, 1, 3])

    def cosine(row: int, name: int) -> float:
        f, w = features[row].numpy().astype(float), proxies[name].numpy().astype(float)
        return float(f @ w / np.linalg.norm(f) / np.linalg.norm(w))

    expected = np.mean(
        [
            -np.log(np.exp(cosine(row, int(label)) / 0.2) / sum(np.exp(cosine(row, name) / 0.2) for name in (1, 3, 5)))
            for row, label in enumerate(labels)
        ]
    )
    assert proxy_loss(features, proxies, labels, 0.2).item() == pytest.approx(expected, rel=1e-5)
    assert proxy_loss(features, proxies, torch.full((7,), 4), 0.2).item() == 0


def test_after_a_task_the_largest_logit_is_the_largest_cosine(context):
    target = PCR(PCRParams(tasks=2, memory=40, **BRIEF)).fit(context())
    x = torch.rand(30, 1, 8, 8)
    for number in range(2):
        network = target.after[number]
        assert torch.allclose(torch.linalg.vector_norm(network.module.linear.weight, dim=1), torch.ones(10), atol=1e-5)
        assert not network.module.linear.bias.any()
    with torch.no_grad():
        assert len(set(target(x).argmax(1).tolist())) > 1


def test_no_class_is_answered_before_it_came(context):
    target = WA(WAParams(tasks=5, memory=20, **BRIEF)).fit(context())
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        for number in range(5):
            logits = target.module.answer(number, x)
            assert bool((logits[:, 2 * number + 2 :] == UNSEEN).all())
            assert bool((logits[:, : 2 * number + 2] > UNSEEN).all())


def test_the_stream_is_saved_and_loaded_whole(context, tmp_path):
    target = WA(WAParams(tasks=2, memory=20, **(BRIEF | {"epochs": 1}))).fit(context())
    save_target(target, tmp_path)
    again, x = load_target(tmp_path), torch.rand(6, 1, 8, 8)
    assert isinstance(again, StreamTarget)
    assert again.tasks == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    with torch.no_grad():
        assert torch.equal(again.module.answers(x), target.module.answers(x))


def test_killed_in_the_third_task_it_goes_on_there(context, survives_kills, monkeypatch):
    params, made = WAParams(tasks=5, memory=30, **BRIEF), []
    monkeypatch.setattr(WARecipe, "after_step", lambda self, metrics: made.__setitem__(-1, made[-1] + 1))

    def fit(folder: str):
        made.append(0)
        return WA(params).fit(context(folder=folder))

    assert survives_kills(fit, WARecipe, [13, 2])
    whole, first, second, last = made
    assert (first, second) == (13, 2)
    assert last == whole - 15  # nothing that was done is done again
    assert 2 * whole // 5 < 13 < 3 * whole // 5


def test_what_was_learnt_is_forgotten_without_memory_and_kept_with_it(context):
    given = context()
    x, y = torch.from_numpy(given.validation.unit()), torch.from_numpy(given.validation.labels)

    def first_task(**changes: object) -> float:
        settings = BRIEF | {"epochs": 8, "model_params": {"width": 16}}
        target = WA(WAParams(tasks=2, **changes, **settings)).fit(context(folder=str(changes)))
        with torch.no_grad():
            return float((target(x).argmax(1) == y)[y < 5].float().mean())

    forgotten = first_task(memory=0, distil=False, align=False)
    assert forgotten < 0.2
    assert first_task(memory=100) > forgotten + 0.3


# The analysis.


def stream() -> StreamTarget:
    rng = np.random.default_rng(3)
    return StreamTarget([linear_network(rng.normal(size=(4, 4))) for _ in range(2)], [(0, 1), (2, 3)])


def samples(n: int = 200) -> Batch:
    x = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.arange(n) % 4, torch.arange(n))


def test_the_matrix_of_linear_networks_is_the_analytic_one():
    target, batch, eps = stream(), samples(), 0.1
    table = Forgetting(ForgettingParams()).run(target, batch, ThreatModel(eps=eps), 0)
    x, y = batch.inputs.flatten(1).numpy().astype(float), batch.labels.numpy()
    right, held = np.zeros((2, 2, 200), dtype=bool)
    for place, classes in ((0, [0, 1]), (1, [0, 1, 2, 3])):
        w = target.after[place].module[1].weight.detach().numpy().astype(float)
        for row in range(200):
            rivals = [c for c in classes if c != y[row]]
            if y[row] in classes:
                margins = [(w[y[row]] - w[c]) @ x[row] for c in rivals]
                right[place, row] = min(margins) > 0
                held[place, row] = all(m > eps * np.abs(w[y[row]] - w[c]).sum() for m, c in zip(margins, rivals, strict=True))
    task = (y >= 2).astype(int)
    expected = [[found[i, task == j].mean() for found in (right, held) for j in range(2)] for i in range(2)]
    # The last network among the classes of the first task, on its images; in the last task all classes are there.
    w, ours = target.after[1].module[1].weight.detach().numpy().astype(float), y < 2
    lead = np.where(y == 0, 1, -1) * (x @ (w[0] - w[1]))
    same = [lead > 0, lead > eps * np.abs(w[0] - w[1]).sum()]
    expected.append(
        [
            share
            for found, last in zip(same, (right, held), strict=True)
            for share in (found[ours].mean(), last[1, ~ours].mean())
        ]
    )
    np.testing.assert_allclose(table.values, expected, atol=0.011)  # between four classes an attack may miss one image
    old = task == 0
    assert table.metrics["kept_accuracy"] == pytest.approx(right[1, old].mean() / right[0, old].mean())
    low, high = ratio_interval(right[1, old].astype(float), right[0, old].astype(float))
    assert (table.metrics["kept_accuracy_low"], table.metrics["kept_accuracy_high"]) == pytest.approx((low, high))
    assert table.metrics["forgotten_accuracy"] == pytest.approx(right[0, old].mean() - right[1, old].mean())
    assert table.metrics["average_accuracy"] == pytest.approx((right[0, old].mean() + right[1].mean()) / 2)
    assert table.metrics["kept_robustness"] == pytest.approx(held[1, old].mean() / held[0, old].mean(), abs=0.03)
    kept = [same[0][old].mean() / right[0, old].mean(), same[1][old].mean() / held[0, old].mean()]
    assert table.metrics["kept_accuracy_same_classes"] == pytest.approx(kept[0])
    assert table.metrics["kept_robustness_same_classes"] == pytest.approx(kept[1], abs=0.03)
    assert table.metrics["robustness_forgotten_faster"] == pytest.approx(kept[0] - kept[1], abs=0.03)


def test_a_further_attack_can_only_take_away():
    target, batch, threat = stream(), samples(60), ThreatModel(eps=0.1)
    weak = ForgettingParams(attack={"kind": "fgsm"})
    alone = Forgetting(weak).run(target, batch, threat, 0)
    both = Forgetting(ForgettingParams(attack="fgsm", further=["pgd"])).run(target, batch, threat, 0)
    strong = Forgetting(ForgettingParams(attack="pgd")).run(target, batch, threat, 0)
    first, second, third = (np.array(table.values) for table in (alone, both, strong))
    assert (second <= first).all()
    assert (second <= third + 1e-9).all()
    assert "2 attacks (fgsm, pgd)" in both.caption


def test_what_was_not_trained_in_tasks_is_refused():
    with pytest.raises(TargetError, match="not trained in tasks"):
        Forgetting(ForgettingParams()).run(linear_network(np.eye(4)), samples(), ThreatModel(eps=0.1), 0)
    with pytest.raises(TargetError, match="not trained in tasks"):  # one task: nothing came after it
        Forgetting(ForgettingParams()).run(
            StreamTarget([linear_network(np.eye(4))], [(0, 1)]), samples(), ThreatModel(eps=0.1), 0
        )
    few = samples().select(torch.tensor([0, 1, 4]))
    with pytest.raises(TargetError, match="no image of task 2"):
        Forgetting(ForgettingParams()).run(stream(), few, ThreatModel(eps=0.1), 0)
