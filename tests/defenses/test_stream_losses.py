"""Streams of tasks: each method's loss is its formula, and every one goes on where it was killed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from robustkd import plugins
from robustkd.contracts import Arrays, UsageError
from robustkd.defenses.image.streams.binary import binary_loss
from robustkd.defenses.image.streams.contrast import contrast, two_views
from robustkd.defenses.image.streams.flair import FLAIRParams, FLAIRRecipe
from robustkd.defenses.image.streams.hpcr import HPCRParams, HPCRRecipe, factor, relations
from robustkd.defenses.image.streams.memory import Reservoir
from robustkd.defenses.image.streams.onpro import OnProRecipe, pair_probabilities, prototypes
from robustkd.defenses.image.streams.pcr import proxy_loss
from robustkd.defenses.image.streams.stream import Beside, Task
from robustkd.defenses.image.streams.taba import TABAParams, TABARecipe
from robustkd.defenses.image.streams.unlabelled.split import ContrastRecipe, UnlabelledParams, divided_by_labels
from robustkd.defenses.image.streams.unlabelled.unfused import FewLabelsRecipe, k_means
from robustkd.defenses.image.streams.unlabelled.wad import WADRecipe, knowledge
from robustkd.defenses.image.streams.wa import WARecipe
from robustkd.models.snapshots import UNSEEN
from robustkd.targets import load_target, save_target

OLD, NEW = [0, 1, 2, 3], [4, 5]
TINY = {"model": "tiny-cnn", "model_params": {"width": 2}, "epochs": 1, "batch_size": 20, "optimiser": "adam", "lr": 0.01}


def sigmoid_loss(z: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z) - wanted * z


def logs(logits) -> np.ndarray:
    return logits.detach().double().numpy()


def of_six(minibatch):
    """The digits of 0 to 5."""
    kept = minibatch.y < 6
    return replace(minibatch, x=minibatch.x[kept], y=minibatch.y[kept], index=minibatch.index[kept])


def shifted(target, batch):
    """Stands for an attack."""
    return batch.x + 0.3 * torch.sin(7 * batch.x + 1)


# What the losses are made of.


def test_a_reservoir_keeps_every_image_with_the_same_probability():
    n, size, runs = 12, 4, 3000
    kept = np.zeros(n)
    for seed in range(runs):
        reservoir = Reservoir(size, np.random.default_rng(seed))
        reservoir.add(range(5))
        reservoir.add(range(5, n))
        assert len(set(reservoir.rows)) == size
        kept[reservoir.rows] += 1
    expected = runs * size / n
    spread = expected * (1 - size / n) * n / (n - 1)  # as many are kept in each run
    assert np.square(kept - expected).sum() / spread < chi2.ppf(0.999, n - 1)


def test_the_contrast_is_that_of_loops():
    generator = torch.Generator().manual_seed(0)
    points, groups = torch.randn(7, 3, generator=generator), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    unit = points.double().numpy() / np.linalg.norm(points.double().numpy(), axis=1, keepdims=True)

    def term(i: int) -> float:
        others = [a for a in range(7) if a != i]
        total = np.log(sum(np.exp(unit[i] @ unit[a] / 0.3) for a in others))
        return -float(np.mean([unit[i] @ unit[p] / 0.3 - total for p in others if groups[p] == groups[i]]))

    assert contrast(points, groups, 0.3).item() == pytest.approx(np.mean([term(i) for i in (0, 1, 2, 4, 5)]), rel=1e-5)
    assert contrast(points, groups, 0.3, anchors=3).item() == pytest.approx(np.mean([term(i) for i in (0, 1, 2)]), rel=1e-5)
    assert contrast(points, torch.arange(7), 0.3).item() == 0
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # SimCLR's loss of two images whose views are equal: the other view at 1, two others at 0.
    assert two_views(two, two, torch.arange(2), 1.0).item() == pytest.approx(np.log(np.e + 2) - 1)


def test_icarl_s_loss_is_one_cross_entropy_for_each_class(minibatch, linear):
    batch = of_six(minibatch)
    z, before = linear(0)(batch.x), linear(1)(batch.x)
    one_hot = np.eye(10)[batch.y.numpy()]
    hard = sigmoid_loss(logs(z)[:, NEW], one_hot[:, NEW]).mean()
    soft = sigmoid_loss(logs(z)[:, OLD], 1 / (1 + np.exp(-logs(before)[:, OLD]))).mean()
    assert binary_loss(z, batch.y, before, OLD, NEW, 0.5).item() == pytest.approx(hard / 3 + 0.5 * 2 / 3 * soft, rel=1e-5)
    everything = np.concatenate([1 / (1 + np.exp(-logs(before)[:, OLD])), one_hot[:, NEW]], 1)
    assert binary_loss(z, batch.y, before, OLD, NEW).item() == pytest.approx(
        sigmoid_loss(logs(z)[:, :6], everything).mean(), rel=1e-5
    )
    assert binary_loss(z, batch.y, None, [], NEW).item() == pytest.approx(hard, rel=1e-5)


# FLAIR and TABA.


def test_flair_keeps_how_the_old_logits_move(minibatch, linear, softmax):
    batch, now, before = of_six(minibatch), linear(0), linear(1)
    params = FLAIRParams(model="tiny-cnn", beta=0.7, alpha=0.5)
    loss, measured = FLAIRRecipe(params, Task(now, before, OLD, NEW, shifted, None)).loss(now, batch)
    moved = shifted(now, batch)
    p = softmax((before(moved) - before(batch.x))[:, OLD])
    q = softmax((now(moved) - now(batch.x))[:, OLD])
    flat = (p * np.log(p / q)).sum(1).mean()
    assert flat > 1e-3
    assert measured["loss_flat"].item() == pytest.approx(flat, rel=1e-3)
    icarl = binary_loss(now(moved), batch.y, before(moved), OLD, NEW, 0.5).item()
    assert loss.item() == pytest.approx(icarl + 0.7 * flat, rel=1e-4)
    same = FLAIRRecipe(params, Task(now, now, OLD, NEW, shifted, None)).loss(now, batch)[1]
    assert same["loss_flat"].item() == pytest.approx(0, abs=1e-6)
    first = FLAIRRecipe(params, Task(now, None, [], NEW, shifted, None)).loss(now, batch)[0]
    assert first.item() == pytest.approx(binary_loss(now(moved), batch.y, None, [], NEW).item(), rel=1e-5)


def test_taba_mixes_what_was_wrong_of_old_and_new_classes_half_and_half(minibatch, linear):
    batch, now, before = of_six(minibatch), linear(0), linear(1)
    recipe = TABARecipe(TABAParams(model="tiny-cnn", gamma=0.5), Task(now, before, OLD, NEW, shifted, None))
    seen: list[torch.Tensor] = []

    def watched(x):
        seen.append(x)
        return now(x)

    loss, measured = recipe.loss(watched, batch)
    moved = shifted(now, batch)
    wrong = now(moved).argmax(1) != batch.y
    old, new = (moved[wrong & side(batch.y)] for side in (lambda y: y < 4, lambda y: y >= 4))
    mixed = seen[1]
    assert len(mixed) == min(len(old), len(new)) > 0
    terms = []
    for image in mixed:  # each is between one of either side
        errors = [
            (float((image - (share * a + (1 - share) * b)).abs().max()), i, j, share)
            for i, a in enumerate(old)
            for j, b in enumerate(new)
            for share in [float(((image - b) * (a - b)).sum() / (a - b).square().sum())]
        ]
        off, i, j, share = min(errors)
        assert off < 1e-5
        assert 0.45 <= share <= 0.55
        terms.append((i, j, share))
    assert len({share for *_, share in [(i, j, round(share, 4)) for i, j, share in terms]}) == 1
    share = terms[0][2]
    labels = [batch.y[wrong & (batch.y < 4)], batch.y[wrong & (batch.y >= 4)]]
    parts = [
        binary_loss(now(mixed), torch.stack([labels[side][term[side]] for term in terms]), before(mixed), OLD, NEW).item()
        for side in (0, 1)
    ]
    border = share * parts[0] + (1 - share) * parts[1]
    assert measured["loss_mixed"].item() == pytest.approx(border, rel=1e-3)
    icarl = binary_loss(now(moved), batch.y, before(batch.x), OLD, NEW).item()
    assert loss.item() == pytest.approx(icarl + 0.5 * border, rel=1e-3)
    assert len(recipe.tensors()["x"]) == int(wrong.sum())
    recipe.loss(now, replace(batch, epoch=batch.epoch))
    assert len(recipe.tensors()["x"]) == 2 * int(wrong.sum())
    recipe.loss(now, replace(batch, epoch=batch.epoch + 1))
    assert len(recipe.tensors()["x"]) == int(wrong.sum())  # a new epoch begins with nothing


# HPCR and OnPro.


def test_hpcr_s_factor_goes_up_and_down():
    assert factor(0, 0.5625, 1.8, 500) == pytest.approx(0.5625)
    assert factor(250, 0.5625, 1.8, 500) == pytest.approx(1.8)
    assert factor(500, 0.5625, 1.8, 500) == pytest.approx(0.5625)
    assert factor(125, 0.5, 1.5, 500) == pytest.approx(1)


def test_hpcr_is_pcr_scores_and_relations(minibatch, tiny):
    batch = of_six(minibatch)
    now, before = tiny(0), tiny(1)
    for one in (now, before):
        one.module.eval()
    params = HPCRParams(model="tiny-cnn", tau=0.2, alpha=0.1, beta=0.3, pairs_from=99)
    recipe = HPCRRecipe(params, Task(now, before, OLD, NEW, None, None))
    loss, measured = recipe.loss(now, batch)
    rows = batch.y < 4

    def parts(target):
        return logs(target.module.body(batch.x)), logs(target.module.head[1].weight)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    (f, w), (g, v) = parts(now), parts(before)
    there = sorted(set(batch.y[rows].tolist()))
    scores = [unit(a[rows.numpy()]) @ unit(b[there]).T / 0.2 for a, b in ((f, w), (g, v))]
    assert measured["loss_scores"].item() == pytest.approx(np.square(scores[0] - scores[1]).mean(), rel=1e-4)
    crossed = []
    old = [unit(a[rows.numpy()]) for a in (f, g)]
    for i in range(len(old[0])):
        others = [j for j in range(len(old[0])) if j != i]
        now_r, old_r = (np.exp(a[i] @ a[others].T / 0.2) for a in old)
        crossed.append(-(old_r / old_r.sum() * np.log(now_r / now_r.sum())).sum())
    assert measured["loss_relations"].item() == pytest.approx(np.mean(crossed), rel=1e-4)
    features, weight = now.module.body(batch.x), now.module.head[1].weight
    pull = proxy_loss(features, weight, batch.y, 0.2).item()
    assert loss.item() == pytest.approx(
        0.5625 * pull + 0.1 * np.square(scores[0] - scores[1]).mean() + 0.3 * np.mean(crossed), rel=1e-4
    )
    recipe.steps = 250
    assert recipe.loss(now, batch)[0].item() - loss.item() == pytest.approx((1.8 - 0.5625) * pull, rel=1e-3)
    # Pairs: each class's proxy is one more point.
    paired = HPCRRecipe(params.model_copy(update={"pairs_from": 1}), Task(now, None, [], NEW, None, None)).loss(now, batch)[0]
    present = batch.y.unique()
    expected = contrast(torch.cat([features, weight[present]]), torch.cat([batch.y, present]), 0.2, anchors=len(batch.y))
    assert paired.item() == pytest.approx(0.5625 * expected.item(), rel=1e-5)
    assert relations(features[:1], features[:1], 0.2).item() == 0


def test_prototypes_of_identical_features_are_these_and_near_classes_are_mixed_more_often():
    one = torch.tensor([3.0, 4.0])
    found, classes = prototypes(one.repeat(5, 1), torch.tensor([7, 2, 7, 7, 2]))
    assert classes.tolist() == [2, 7]
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.6, 0.8]]))
    means = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 1.0]])
    apart = np.array([0.5, 1.0, np.sqrt(1.25)])
    expected = np.exp(1 / apart) / np.exp(1 / apart).sum()
    assert pair_probabilities(means) == pytest.approx(expected)
    assert pair_probabilities(np.zeros((3, 2))) == pytest.approx(np.full(3, 1 / 3))


def test_onpro_takes_remembered_images_beside_those_of_its_task(context, digits, monkeypatch):
    drawn, loss = [], OnProRecipe.loss

    def watched(self, target, batch):
        assert set(batch.y.tolist()) <= set(self.task.new)
        drawn.append((len(self.task.old), None if self._remembered is None else len(self._remembered.drawn(batch, 8, "x").y)))
        return loss(self, target, batch)

    monkeypatch.setattr(OnProRecipe, "loss", watched)
    train = digits.train.select(np.arange(100))
    make({"kind": "onpro", "tasks": 2, "memory": 12, "memory_batch": 8}).fit(context(train=train))
    assert set(drawn) == {(0, None), (5, 8)}


# Unlabelled images.


def test_k_means_finds_clusters_that_are_apart():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2, 3], 25)
    points = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])[truth] + rng.normal(size=(100, 2))
    found = k_means(points, 4, rng)
    assert len(set(zip(truth, found, strict=True))) == 4  # one cluster a group: purity 1
    assert set(k_means(points, 7, rng)) == set(range(7))
    assert set(k_means(np.ones((5, 2)), 1, rng)) == {0}


def test_an_image_that_is_near_no_class_or_several_weighs_nothing():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 8) * 10

    def around(centre, count):
        return centre + torch.randn(count, 8, generator=generator)

    labelled = torch.cat([around(centres[c], 10) for c in range(3)])
    labels = torch.arange(3).repeat_interleave(10)
    known, foreign = torch.cat([around(centres[c], 40) for c in range(3)]), around(torch.eye(8)[5] * 10, 100)
    pseudo, weights = knowledge(torch.cat([known, foreign]), labelled, labels, 3)
    assert torch.equal(pseudo[:120], torch.arange(3).repeat_interleave(40))
    assert weights.max().item() == pytest.approx(1)
    assert weights[120:].mean() < 0.25 * weights[:120].mean()
    # Features that do not depend on the class: the scores are alike, and the difference is 0.
    _, nothing = knowledge(known, labelled[:10].repeat(3, 1), labels, 3)
    assert nothing.max().item() == 0


def test_foreign_images_are_the_share_that_was_asked_for(context, digits):
    given = context()
    params = UnlabelledParams(model="tiny-cnn", known=6, labelled=5, foreign=0.25)
    divided = divided_by_labels(given, params)
    labels = np.asarray(given.train.labels)
    assert np.bincount(labels[divided.labelled]).tolist() == [5] * 6
    strange = (labels[divided.unlabelled] >= 6).mean()
    assert 0.25 <= strange < 0.25 + 1 / len(divided.unlabelled)
    assert not set(divided.labelled) & set(divided.unlabelled)
    assert set(divided.validation.labels) == set(range(6))
    again = divided_by_labels(given, params)
    assert np.array_equal(divided.all, again.all)
    for changes, said in (
        ({"known": 11}, "known: 11 of 10 classes"),
        ({"labelled": 99}, "leave none unlabelled"),
        ({"foreign": 0.9}, "of other classes, and there are"),
    ):
        with pytest.raises(UsageError, match=said):
            divided_by_labels(given, params.model_copy(update=changes))


def test_wad_weighs_each_pseudo_label(minibatch, linear, context):
    given, network = context(), linear(0)
    beside = Beside(given.train, torch.device("cpu"))
    weights = torch.linspace(0, 1, 32)
    params = plugins.load("defenses", "wad").Params(model="tiny-cnn", unlabelled=0.5)
    loss, measured = WADRecipe(params, given.threat, beside, weights).loss(network, minibatch)
    drawn = beside.drawn(minibatch, 32, "wad/labelled")
    assert len(set(drawn.index.tolist())) == 32
    assert int(drawn.index.max()) < 0

    def each(batch):
        z = logs(network(batch.x))
        return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), batch.y.numpy()]

    soft = (weights.double().numpy() * each(minibatch)).mean()
    assert measured["loss_unlabelled"].item() == pytest.approx(soft, rel=1e-4)
    assert loss.item() == pytest.approx(each(drawn).mean() + 0.5 * soft, rel=1e-4)


# Every method, trained.

ALL = {
    "flair": (FLAIRRecipe, {"tasks": 2, "memory": 12, "inner": {"steps": 1}}, 5),
    "taba": (TABARecipe, {"tasks": 2, "memory": 12, "inner": {"steps": 1}}, 5),
    "hpcr": (HPCRRecipe, {"tasks": 2, "memory": 12, "remember": "reservoir"}, 5),
    "onpro": (OnProRecipe, {"tasks": 2, "memory": 12}, 4),
    "wa": (WARecipe, {"tasks": 2, "memory": 12, "infinite": {}, "epochs": 2, "schedule": "constant"}, 7),
    "wad": (WADRecipe, {"known": 6, "labelled": 3, "foreign": 0.2, "contrast_epochs": 1, "rounds": 2, "alpha": 0.8}, 4),
    "unfused": (FewLabelsRecipe, {"known": 6, "labelled": 3, "contrast_epochs": 1, "cluster_epochs": 1, "epochs": 3}, 2),
}


def make(use):
    return plugins.make("defenses", TINY | use)


@pytest.mark.parametrize("name", ALL)
def test_what_is_killed_goes_on_and_is_saved_whole(name, context, digits, survives_kills, tmp_path):
    recipe, changes, after = ALL[name]
    train = digits.train.select(np.arange(100))
    targets = []

    def fit(folder: str):
        targets.append(make({"kind": name, **changes}).fit(context(folder=folder, train=train)))
        return targets[-1]

    assert survives_kills(fit, recipe, [after])
    save_target(targets[-1], tmp_path)
    again, x = load_target(tmp_path), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        logits = again(x)
        assert torch.equal(logits, targets[-1](x))
    hidden = (logits == UNSEEN).all(0).nonzero().flatten().tolist()
    assert hidden == ([6, 7, 8, 9] if "known" in changes else [])


def test_a_network_that_goes_on_at_a_constant_rate_is_annealed_for_what_is_deployed(context, digits, monkeypatch):
    train, rates, changed = digits.train.select(np.arange(60)), [], WARecipe.start_epoch

    def watched(self, epoch, decay):
        rates.append(round(decay, 4))
        changed(self, epoch, decay)

    monkeypatch.setattr(WARecipe, "start_epoch", watched)
    use = {"kind": "wa", "tasks": 2, "memory": 0, "epochs": 5, "infinite": {"constant": 0.5, "cooldown": 0.5, "anneal": 0.4}}
    make(use).fit(context(train=train))
    fall = round(0.5 + 0.25 * (1 + np.cos(np.pi * 2 / 3)), 4)
    going = 0.5 * (0.01 / 0.5) ** 0.5
    assert rates == [1.0, fall, 0.5, 0.5, round(going, 4), 0.5, 0.5, 0.5, 0.5, round(going, 4)]


def test_simclr_draws_the_views_of_an_image_together(tiny, minibatch):
    network = tiny(0)
    projection = torch.nn.Identity()
    loss = ContrastRecipe(network, projection, 0.5).loss(network, minibatch)[0]
    assert 0 < loss.item() < np.log(2 * 32 - 1) + 2 / 0.5


def test_images_are_the_ones_that_were_asked_for(digits):
    few = Arrays(digits.train.images[:9], digits.train.labels[:9])
    batch = Beside(few, torch.device("cpu"))
    from robustkd.defenses.training import Minibatch

    step = Minibatch(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), torch.tensor([3, 5]), seed=0, epoch=0)
    drawn = batch.drawn(step, 4, "a")
    assert torch.equal(drawn.y, torch.from_numpy(few.labels)[-1 - drawn.index])
    assert not torch.equal(batch.drawn(replace(step, epoch=1), 9, "a").index, batch.drawn(step, 9, "a").index)
    assert torch.equal(batch.drawn(step, 4, "a").index, drawn.index)
