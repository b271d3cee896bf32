"""Slowdown: on networks whose cost is a linear function of the image, the share that can be slowed is the analytic one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from robustkd.analyses.slowdown import Slowdown, SlowdownParams, _Slowing
from robustkd.analyses.sub_networks import SubNetworksParams, SubNetworksUnderAttack
from robustkd.contracts import Attack, AttackResult, Batch, Params, TargetError, ThreatModel
from robustkd.models.sub_networks import AdaptiveNetwork, log_odds
from robustkd.scoring.intervals import ratio_interval
from robustkd.targets import ClassifierTarget

THREAT = ThreatModel(eps=0.1)


class TwoLinearExits(AdaptiveNetwork):
    """Two linear classifiers of two classes; the first answers where |w x| >= threshold. Its log-odds are |w x|."""

    has_exits = True
    names = ("exit-1", "exit-2")
    multiply_adds = (16, 116)
    budgets = (16, 132)

    def __init__(self, first: np.ndarray, second: np.ndarray, threshold: float, hidden: bool = False) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.from_numpy(w.astype(np.float32))) for w in (first, second))
        self.threshold, self.hidden = threshold, hidden

    def _answer(self, number: int, x: Tensor) -> Tensor:
        z = x.flatten(1) @ (self.first, self.second)[number]
        return torch.stack([torch.zeros_like(z), z], 1)

    def spent(self, images: Tensor) -> Tensor:
        return torch.where(log_odds(self.answer(0, images)) >= self.threshold, 16, 132)

    def beyond(self, images: Tensor, budget: float) -> Tensor:
        gap = self.threshold - log_odds(self.answer(0, images))
        if self.hidden:  # the same decisions, without a slope
            return gap.sign() * 0.5 + 0 * images.flatten(1).sum(1)
        return gap

    def _logits(self, x: Tensor) -> Tensor:
        early = log_odds(self._answer(0, x)) >= self.threshold
        return torch.where(early.unsqueeze(1), self._answer(0, x), self._answer(1, x))


def target(hidden: bool = False, seed: int = 0) -> ClassifierTarget:
    rng = np.random.default_rng(seed)
    module = TwoLinearExits(rng.normal(size=16), rng.normal(size=16), 3.0, hidden).eval()
    return ClassifierTarget(module, num_classes=2, input_shape=(1, 4, 4), bounds=(-99.0, 99.0))


def batch(of: ClassifierTarget, n: int = 300) -> Batch:
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Batch(x, of(x).argmax(1), torch.arange(n), logits=of(x))


def run(of: ClassifierTarget, threat: ThreatModel = THREAT, **params: object):
    return Slowdown(SlowdownParams(**params)).run(of, batch(of), threat, 0)


def test_the_gradient_slows_exactly_the_images_that_can_be_slowed():
    of = target()
    table, w = run(of), of.module.first.detach().numpy()
    odds = np.abs(batch(of).inputs.flatten(1).numpy() @ w)
    # In linf the log-odds |w x| fall by eps |w|_1 at most, and not below 0.
    can = (odds - 0.1 * np.abs(w).sum() < 3.0) & (odds >= 3.0)
    assert 20 < can.sum() < (odds >= 3.0).sum()
    assert table.metrics["slowed"] == pytest.approx(can.sum() / (odds >= 3.0).sum())
    before, after = np.where(odds >= 3, 16, 132), np.where((odds >= 3) & ~can, 16, 132)
    assert table.metrics["computation_to_clean"] == pytest.approx(after.mean() / before.mean())
    low, high = ratio_interval(after, before)
    assert (table.metrics["computation_to_clean_low"], table.metrics["computation_to_clean_high"]) == pytest.approx((low, high))
    assert table.metrics["clean_computation"] == pytest.approx(before.mean() / 132)
    assert table.metrics["slowdown_not_credible"] == 0
    assert table.metrics["slowed_far_beyond"] == 1


def test_the_parts_of_a_row_are_a_whole_and_random_search_has_as_many_passes():
    table = run(target())
    assert table.parts == 2
    assert table.rows == ["clean", "pgd, margin", "pgd, DeepSloth's loss", "random search", "far beyond the bound"]
    for row in table.values:
        assert sum(row[:2]) == pytest.approx(1)
        assert row[table.columns.index("beyond budget")] == pytest.approx(row[1])
    assert "Random search has 82 passes" in table.caption  # the clean image, 41 forward and 40 backward
    beyond = [row[table.columns.index("beyond budget")] for row in table.values]
    assert beyond[1] >= beyond[3] > beyond[0]


def test_a_gradient_that_is_hidden_is_found_out_by_random_search():
    table = run(target(hidden=True))
    assert table.metrics["slowdown_not_credible"] == 1
    assert table.metrics["slowed_by_search_alone"] > 0.002 or table.metrics["slowed_far_beyond"] < 0.9


class Given(Attack):
    """Hands over what it is given."""

    Params = Params

    def __init__(self, adversarial: Tensor) -> None:
        super().__init__()
        self.adversarial = adversarial

    def run(self, target, batch, threat, rng):
        none = torch.zeros(len(batch), dtype=torch.int64)
        return AttackResult(self.adversarial[batch.index], none.bool(), none, none)


def test_an_attacker_who_makes_it_cheaper_or_leaves_the_budget_has_changed_nothing():
    of = target()
    samples, w = batch(of), of.module.first.detach()
    slowing = _Slowing(of.module, samples, 0)
    odds = samples.inputs.flatten(1) @ w
    toward = -(odds.sign().unsqueeze(1) * w.sign()).view_as(samples.inputs)  # less sure, so slower
    near, cheap, far = (samples.inputs + step * toward for step in (0.1, -0.1, 0.3))
    for moved in (near, cheap, far):
        row, _ = slowing.attacked("given", of, Given(moved), THREAT)
        cost = of.module.spent(moved).numpy()
        assert (cost != slowing.clean.cost).any()
        expected = slowing.clean.cost if moved is far else np.maximum(cost, slowing.clean.cost)
        assert (row.cost == expected).all()
        assert (of.module.spent(row.inputs).numpy() == expected).all()


def test_nothing_is_slowed_by_no_change():
    table = run(target(), ThreatModel(eps=1e-9))
    assert table.metrics["slowed"] == 0
    assert table.metrics["computation_to_clean"] == 1


def test_what_cannot_be_slowed_is_refused():
    plain = ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 4, 4), num_classes=2)
    with pytest.raises(TargetError, match="spends the same on every image"):
        run(plain)
    with pytest.raises(TargetError, match="every image costs more than the budget"):
        run(target(), budget=0.01)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        below = rng.choice([1.0, 2.0, 4.0], size=80)
        above = np.maximum(below, rng.choice([1.0, 4.0], size=80))
        low, high = ratio_interval(above, below)
        covered += low <= (7 / 3 + 4) / 2 / (7 / 3) <= high
    assert 0.93 < covered / 2000 < 0.97
    assert ratio_interval(np.array([3.0, 6.0]), np.array([1.0, 2.0])) == (3.0, 3.0)


def test_each_linear_exit_falls_as_its_distance_says_and_the_rule_with_the_exit_that_answers():
    of = target()
    samples = batch(of)
    table = SubNetworksUnderAttack(SubNetworksParams()).run(of, samples, THREAT, 0)
    x, y = samples.inputs.flatten(1).numpy(), samples.labels.numpy()
    assert table.rows == ["exit-1", "exit-2", "the rule"]
    for number, w in enumerate((of.module.first, of.module.second)):
        margin = (x @ w.detach().numpy()) * (2 * y - 1)
        own = table.values[number][table.columns.index(f"by exit-{number + 1}")]
        assert own == pytest.approx((margin > 0.1 * np.abs(w.detach().numpy()).sum()).mean(), abs=1e-6)
        assert table.values[number][1] == pytest.approx((margin > 0).mean())
    for row in table.values:
        assert row[-3] == pytest.approx(min(row[-3], *row[2:-3]))  # the worst case is no better than any of them
    assert table.values[2][0] == pytest.approx(float(of.module.spent(samples.inputs).float().mean()) / 116)
    plain = ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 4, 4), num_classes=2)
    with pytest.raises(TargetError, match="holds no sub-networks"):
        SubNetworksUnderAttack(SubNetworksParams()).run(plain, samples, THREAT, 0)
