"""What is chosen: of each class so many, farthest first, and what a set chosen in parts is made of."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from robustkd import plugins
from robustkd.condensers.selection.dataset_quantization import cut, drawn
from robustkd.condensers.selection.k_centre import farthest_first
from robustkd.condensers.selection.rad import equilibrium, inclusion, informativeness, systematic
from robustkd.plugin_kit import fixtures


def condensed(condenser, seed=0):
    with fixtures.context(seed=seed) as context:
        return plugins.make("defenses", {"kind": "condensed-data", "condenser": condenser}).fit(context).arrays


def test_a_random_subset_is_of_the_training_images_balanced_and_of_its_seed():
    arrays = condensed({"kind": "random-subset", "images_per_class": 3})
    known = {image.tobytes() for image in fixtures.digits().train.images}
    assert {image.tobytes() for image in arrays.images} <= known
    assert np.bincount(arrays.labels).tolist() == [3] * 10
    assert condensed({"kind": "random-subset", "images_per_class": 3}).digest() == arrays.digest()
    assert condensed({"kind": "random-subset", "images_per_class": 3}, seed=1).digest() != arrays.digest()


def test_a_share_is_of_each_class():
    counts = np.bincount(fixtures.digits().train.labels)
    assert np.bincount(condensed({"kind": "random-subset", "share": 0.25}).labels).tolist() == [round(n / 4) for n in counts]


def test_farthest_first_is_within_twice_the_best_radius_and_never_repeats_itself():
    points = torch.from_numpy(np.random.default_rng(0).random((9, 2)))
    points[8] = points[0]  # one that is there twice
    radius = lambda chosen: torch.cdist(points, points[list(chosen)]).amin(1).max().item()  # noqa: E731
    for count in (1, 2, 3, 4):
        chosen = farthest_first(points, count)
        assert len(set(chosen.tolist())) == count
        best = min(radius(each) for each in itertools.combinations(range(9), count))
        assert radius(chosen) <= (2 * best if count > 1 else 2.1 * best) + 1e-9
    assert sorted(farthest_first(points, 9).tolist()) == list(range(9))
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]]).double()
    assert farthest_first(line, 3).tolist() == [2, 3, 0]  # next to the mean 3.25, then the farthest twice


def test_k_centre_compares_by_the_features_of_a_network_where_one_is_named():
    alone = condensed({"kind": "k-centre", "images_per_class": 2})
    with fixtures.context(targets={"net": fixtures.classifier()}) as context:
        made = {"kind": "condensed-data", "condenser": {"kind": "k-centre", "images_per_class": 2, "network": "net"}}
        assert plugins.make("defenses", made).fit(context).arrays.digest() != alone.digest()


def test_bins_are_a_partition_and_the_first_choice_has_the_greatest_gain():
    points = torch.from_numpy(np.random.default_rng(0).random((8, 3)))
    bins = cut(points, 3)
    assert sorted(np.concatenate(bins).tolist()) == list(range(8))
    assert [len(part) for part in bins] == [3, 3, 2]
    unit = points / points.norm(dim=1, keepdim=True)
    similarity = (unit @ unit.T).numpy()
    left = set(range(8))
    for part in bins:
        own = []
        for row in part.tolist():
            gain = {x: sum(similarity[x, p] for p in left) - sum(similarity[x, p] for p in own) for x in left}
            assert gain[row] == max(gain.values())
            own.append(row)
            left.remove(row)


def test_of_every_bin_comes_the_same_share():
    bins = [np.arange(4), np.arange(4, 8), np.arange(8, 10)]
    found = drawn(bins, 7, np.random.default_rng(0))
    assert len(set(found.tolist())) == 7
    assert [np.isin(found, part).sum() for part in bins] == [3, 2, 2]


def test_one_bin_is_a_random_subset_and_ten_are_not():
    one = condensed({"kind": "dataset-quantization", "bins": 1, "images_per_class": 3})
    assert one.digest() == condensed({"kind": "random-subset", "images_per_class": 3}).digest()
    assert condensed({"kind": "dataset-quantization", "images_per_class": 3}).digest() != one.digest()


@pytest.mark.parametrize("errors", [0, 1, 2])
def test_rad_draws_as_an_equilibrium_of_the_game_against_wrong_labels(errors):
    """max_p min over m images taken away of the sum of p_i g_i of the others, by a linear program."""
    gains = np.array([0.9, 0.8, 0.5, 0.45, 0.3, 0.05])
    p = equilibrium(gains, errors)
    assert p.sum() == pytest.approx(1)
    stakes = np.sort(p * gains)
    found = stakes.sum() - stakes[len(stakes) - errors :].sum()
    # Variables p (6), t, u (6): the m largest of z sum to min_t  m t + sum max(0, z - t).
    cost = np.concatenate([-gains, [errors], np.ones(6)])
    above = np.hstack([np.diag(gains), -np.ones((6, 1)), -np.eye(6)])
    best = linprog(
        cost,
        above,
        np.zeros(6),
        np.concatenate([np.ones(6), np.zeros(7)])[None],
        [1],
        [(0, None)] * 6 + [(None, None)] + [(0, None)] * 6,
    )
    assert found == pytest.approx(-best.fun, abs=1e-9)
    if errors == 0:
        assert p.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_what_is_drawn_has_probabilities_that_sum_to_the_number(count):
    gains = np.array([0.9, 0.8, 0.5, 0.45, 0.05, 0.02])
    wanted = inclusion(equilibrium(gains, 2), gains, count)
    assert wanted.sum() == pytest.approx(count)
    assert ((wanted >= 0) & (wanted <= 1 + 1e-12)).all()
    draws = [systematic(wanted, np.random.default_rng(seed)) for seed in range(2000)]
    assert all(len(set(rows.tolist())) == count for rows in draws)
    shares = np.bincount(np.concatenate(draws), minlength=6) / len(draws)
    assert np.abs(shares - wanted).max() < 0.05


def test_without_errors_the_most_informative_are_drawn():
    gains = np.array([0.1, 0.9, 0.3, 0.7])
    assert systematic(inclusion(equilibrium(gains, 0), gains, 2), np.random.default_rng(0)).tolist() == [1, 3]


def test_informativeness_is_one_less_the_margin():
    logits = torch.tensor([[2.0, 2.0, -30.0], [30.0, 0.0, 0.0]])
    assert np.allclose(informativeness(logits), [1.01, 0.01], atol=1e-6)


def test_rad_has_the_teachers_labels():
    teacher, student = fixtures.classifier(), fixtures.classifier(1)
    made = {"kind": "condensed-data", "condenser": {"kind": "rad", "student": "s", "teacher": "t", "images": 40}}
    with fixtures.context(targets={"s": student, "t": teacher}) as context:
        arrays = plugins.make("defenses", made).fit(context).arrays
    assert len(arrays) == 40
    assert np.array_equal(arrays.labels, teacher(torch.from_numpy(arrays.unit())).argmax(1).numpy())
