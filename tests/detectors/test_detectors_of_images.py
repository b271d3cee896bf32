"""Each detector of images: its score is the formula's, by another implementation."""

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.spatial.distance import jensenshannon, mahalanobis
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression

from robustkd import plugins
from robustkd.analyses.tampered_answers import reclassified
from robustkd.contracts import TargetError, UsageError
from robustkd.detectors import fides
from robustkd.plugin_kit import fixtures
from robustkd.scoring.detection import auroc
from robustkd.targets.activations import with_penultimate


def made(detector, others=None):
    defense = plugins.make("defenses", {"kind": "with-detector", "base": "plain", "detector": detector})
    with fixtures.context(targets={"plain": fixtures.classifier(), **(others or {})}) as context:
        return defense.fit(context)


def images():
    return torch.from_numpy(fixtures.digits().test.unit())


def probabilities(target, x):
    with torch.no_grad():
        return target(torch.as_tensor(x).float()).double().softmax(1).numpy()


def test_feature_squeezing_is_the_largest_distance_of_two_answers():
    target, x = made("feature-squeezing"), images().numpy()
    answers = probabilities(target.base, x)
    smoothed = np.stack([[median_filter(image[0], 2, mode="mirror")] for image in x])
    squeezed = [probabilities(target.base, part) for part in ((x > 0.5), smoothed)]
    away = [np.abs(answers - part).sum(1) for part in squeezed]
    # SciPy takes the larger of the two pixels in the middle, and this one their mean: so the median is compared apart.
    found = target.scores(torch.from_numpy(x)).numpy()
    rounded = made({"kind": "feature-squeezing", "squeezers": [{"kind": "bit-depth", "bits": 1}]})
    assert np.allclose(rounded.scores(torch.from_numpy(x)).numpy(), away[0], atol=1e-5)
    assert (found >= away[0] - 1e-5).all()


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_of_an_odd_square_is_scipy_s(side):
    stage = plugins.make("transforms", {"kind": "median", "side": side}).build((1, 8, 8))
    wanted = np.stack([[median_filter(image[0], side, mode="mirror")] for image in images().numpy()])
    assert np.allclose(stage(images()).numpy(), wanted)


def test_the_median_of_four_is_the_mean_of_the_middle_two():
    stage = plugins.make("transforms", {"kind": "median"}).build((1, 3, 3))
    x = torch.arange(9.0).view(1, 1, 3, 3) / 8
    assert stage(x)[0, 0, 1, 1] == pytest.approx(float(np.median([0, 1, 3, 4])) / 8)
    assert torch.equal(stage(torch.full((1, 1, 3, 3), 0.3)), torch.full((1, 1, 3, 3), 0.3))


def test_a_squeezer_that_would_have_to_be_trained_is_refused():
    with pytest.raises(UsageError, match="must be trained"):
        made({"kind": "feature-squeezing", "squeezers": ["lq-vae"]})


def test_mahalanobis_is_the_distance_to_the_nearest_class():
    target = made("mahalanobis")
    train = fixtures.digits().train
    with torch.no_grad():
        features = with_penultimate(target.base, torch.from_numpy(train.unit()))[1].double().numpy()
        here = with_penultimate(target.base, images())[1].double().numpy()
    means = np.stack([features[train.labels == k].mean(0) for k in range(10)])
    centred = features - means[train.labels]
    covariance = centred.T @ centred / len(features)
    inverse = np.linalg.inv(covariance + 1e-3 * np.diag(covariance).mean() * np.eye(len(covariance)))
    wanted = [min(mahalanobis(row, mean, inverse) ** 2 for mean in means) for row in here]
    assert np.allclose(target.scores(images()).numpy(), wanted, rtol=1e-3)


def test_the_statistics_of_two_answers():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 7), rng.dirichlet(np.ones(5), 7)
    found = fides.statistics(torch.from_numpy(p), torch.from_numpy(q)).numpy()
    cosine = (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
    assert np.allclose(found, np.stack([entropy(p, q, axis=1), 1 - cosine, entropy(p, axis=1), entropy(q, axis=1)], 1))
    same = fides.statistics(torch.from_numpy(p), torch.from_numpy(p)).numpy()
    assert np.allclose(same[:, :2], 0, atol=1e-12)
    sure = torch.eye(5, dtype=torch.float64)[:2]
    assert torch.isfinite(fides.statistics(sure, sure.flip(0))).all()


def test_a_tampered_answer_is_the_nearest_one_with_another_class():
    """Of all permutations that change the class, by Jensen and Shannon's distance."""
    from itertools import permutations

    p = np.random.default_rng(1).dirichlet(np.ones(5), 6)
    found = fides.tampered(torch.from_numpy(p)).numpy()
    for row, mine in zip(p, found, strict=True):
        others = [row[list(order)] for order in permutations(range(5))]
        changed = [other for other in others if other.argmax() != row.argmax()]
        assert mine.argmax() != row.argmax()
        assert jensenshannon(row, mine) == pytest.approx(min(jensenshannon(row, other) for other in changed))


def test_the_detector_of_answers_is_scikit_learn_s_regression():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 4))
    y = (x @ [1.0, -2, 0, 0.5] + rng.normal(size=200) > 0.3).astype(float)
    weight, bias = fides.logistic_regression(torch.from_numpy(x), torch.from_numpy(y))
    theirs = LogisticRegression(C=1 / 1e-2, tol=1e-10, max_iter=1000).fit(x, y)
    assert np.allclose(weight.numpy(), theirs.coef_[0], atol=1e-4)
    assert float(bias) == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_a_verifier_tells_answers_that_were_tampered_with():
    """Its own purpose; the verifier here is no student, only a network trained on the same images."""
    student = fixtures.classifier(1)
    target = made({"kind": "fides", "verifier": "other"}, {"other": student})
    with torch.no_grad():
        p, q = target.base(images()).softmax(1), student(images()).softmax(1)
        swapped = target.scorer.log_odds(fides.statistics(fides.tampered(p), q))
        honest = target.scorer.log_odds(fides.statistics(p, q))
    assert auroc(swapped.numpy(), honest.numpy()) >= 0.9
    assert (reclassified(fides.tampered(p), q) == p.argmax(1)).float().mean() >= 0.8


def test_a_verifier_of_other_classes_is_refused():
    student = fixtures.classifier(1)
    student.num_classes = 9
    with pytest.raises(TargetError, match="to 9 classes, the guarded model"):
        made({"kind": "fides", "verifier": "other"}, {"other": student})
