"""Randomised smoothing: its bound is exact, and its radius that of a linear network, which is known."""

import pytest
import torch
from scipy.stats import binom
from torch import nn

from robustkd.analyses.certified import Certified, CertifiedParams
from robustkd.certification.smoothing import ABSTAINS, certify, lower_confidence_bound
from robustkd.contracts import Batch, TargetError, ThreatModel
from robustkd.targets import ClassifierTarget, load_target, save_target
from robustkd.targets.smoothed import SmoothedTarget


def half_space(offset=0.5):
    """Class 1 where the first pixel is above ``offset``."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        net[1].bias.copy_(torch.tensor([0.0, -offset]))
    return net


def target_of(net, sigma=0.25, draws=50):
    return SmoothedTarget(ClassifierTarget(net, num_classes=2, input_shape=(1, 2, 2)), sigma=sigma, draws=draws)


@pytest.mark.parametrize(("successes", "n"), [(1, 5), (90, 100), (999, 1000), (1000, 1000)])
def test_the_bound_is_where_so_many_successes_have_a_chance_of_alpha(successes, n):
    bound = lower_confidence_bound(successes, n, 0.001)
    assert binom.sf(successes - 1, n, bound) == pytest.approx(0.001, rel=1e-6)
    assert lower_confidence_bound(0, n, 0.001) == 0


def test_the_radius_of_a_half_space_is_a_little_below_the_distance_to_it():
    for pixel in (0.6, 0.8, 1.0):
        image = torch.full((1, 2, 2), pixel)
        found = certify(half_space(), image, 3, sigma=0.25, select=100, draws=20_000, alpha=0.001, seed=0)
        assert found.predicted == 1
        assert 0.9 * (pixel - 0.5) - 0.01 < found.radius < pixel - 0.5
    again = certify(half_space(), image, 3, sigma=0.25, select=100, draws=20_000, alpha=0.001, seed=0)
    assert again == found
    on_the_edge = certify(half_space(), torch.full((1, 2, 2), 0.5), 0, sigma=0.25, select=100, draws=1000, alpha=0.001, seed=0)
    assert on_the_edge.predicted == ABSTAINS


def test_it_is_wrong_no_more_often_than_it_says():
    wrong = 0
    for seed in range(300):  # the true radius is 0.05
        image = torch.full((1, 2, 2), 0.55)
        wrong += certify(half_space(), image, 0, sigma=0.25, select=50, draws=100, alpha=0.1, seed=seed).radius > 0.05 + 1e-6
    assert binom.sf(wrong - 1, 300, 0.1) > 1e-3
    assert wrong > 0


def test_the_analysis_counts_what_abstains_and_refuses_other_norms():
    x = torch.tensor([1.0, 0.9, 0.5, 0.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    batch = Batch(x, torch.tensor([1, 1, 1, 1]), torch.arange(4))
    analysis = Certified(CertifiedParams(smoothing_draws=2000))
    table = analysis.run(target_of(half_space()), batch, ThreatModel("l2", 0.3), 0)
    assert table.certificate.robust == [True, True, False, False]
    assert table.certificate.error == 0.001
    assert table.metrics["abstained"] == 0.25
    assert table.metrics["certified_accuracy"] == 0.5
    far = analysis.run(target_of(half_space()), batch, ThreatModel("l2", 0.41), 0)
    assert far.certificate.robust == [True, False, False, False]
    with pytest.raises(TargetError, match="certified in l2"):
        analysis.run(target_of(half_space()), batch, ThreatModel("linf", 0.1), 0)


def test_the_target_votes_has_a_gradient_and_comes_back_from_its_file(tmp_path):
    target = target_of(half_space(), draws=400)
    x = torch.tensor([0.75, 0.25]).view(2, 1, 1, 1).expand(2, 1, 2, 2).clone().requires_grad_()
    torch.manual_seed(0)
    logits = target(x)
    shares = torch.distributions.Normal(0, 1).cdf(torch.tensor([1.0, -1.0]))  # one sigma on either side
    assert torch.allclose(logits.exp()[:, 1], shares, atol=0.06)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert (gradient[:, 0, 0, 0] > 0).all()
    origin = {"model": "tiny-cnn", "params": {}}
    base = ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=10)
    assert base.origin["model"] == origin["model"]
    saved = SmoothedTarget(base, sigma=0.1, draws=3)
    save_target(saved, tmp_path)
    loaded = load_target(tmp_path)
    assert isinstance(loaded, SmoothedTarget)
    assert (loaded.sigma, loaded.draws) == (0.1, 3)
    images = torch.rand(4, 1, 8, 8)
    saved.module.eval()
    torch.manual_seed(1)
    first = saved(images)
    torch.manual_seed(1)
    assert torch.equal(first, loaded(images))
