"""Ensembles: the mean probability, stable and with the right gradient, stored, and as a defense of a campaign."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.losses import cross_entropy, dlr, margin, targeted
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.campaigns.store.store import Store
from robustkd.contracts import CheckContext, ThreatModel, UsageError
from robustkd.evaluation.images import make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget, EnsembleTarget, PipelineTarget, TransformSpec, load_target, save_target
from robustkd.targets.ensemble import log_mean_probability
from support.campaigns import tiny_campaign


def member(seed, shape=(1, 8, 8)):
    torch.manual_seed(seed)
    target = ClassifierTarget.from_model("tiny-cnn", {}, input_shape=shape, num_classes=10)
    target.module.eval()
    return target


def test_the_output_is_the_logarithm_of_the_mean_probability():
    members = [member(seed) for seed in range(3)]
    x = torch.rand(6, 1, 8, 8)
    mean = torch.stack([m(x).softmax(1) for m in members]).mean(0)
    found = EnsembleTarget(members)(x)
    assert torch.allclose(found.exp(), mean, atol=1e-6)
    assert torch.equal(found.argmax(1), mean.argmax(1))
    assert torch.allclose(cross_entropy(found, torch.arange(6)), F.nll_loss(mean.log(), torch.arange(6), reduction="none"))


def test_where_probabilities_underflow_their_logarithms_do_not():
    logits = torch.tensor([[[900.0, 0.0, -300.0]], [[800.0, 0.0, 100.0]]])
    # p_1 = (e^-900 + e^-800) / 2, p_2 = (e^-1200 + e^-700) / 2
    assert log_mean_probability(logits)[0].tolist() == pytest.approx([0, -800.6931, -700.6931], rel=1e-6)


def linear_pair(scale=1.0):
    """Two linear members, and their weights (M, K, D)."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double() for _ in range(2)]
    for net in nets:
        net[1].weight.data *= scale
    members = [ClassifierTarget(net, num_classes=4, input_shape=(12,)) for net in nets]
    return EnsembleTarget(members), torch.stack([net[1].weight.detach() for net in nets])


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_the_margin_has_its_analytic_gradient_on_linear_members(scale):
    """d log p_k / dx = sum_m p_mk (W_mk - sum_j p_mj W_mj) / sum_m p_mk; at scale 40 the mean probability is nearly one-hot."""
    target, weights = linear_pair(scale)
    x = torch.rand(8, 12, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        p = torch.stack([m(x).softmax(1) for m in target.members])
        y = p.mean(0).argmax(1)
        other = p.mean(0).scatter(1, y.unsqueeze(1), -1).argmax(1)
        slope = p.unsqueeze(3) * (weights.unsqueeze(1) - torch.einsum("mbk,mkd->mbd", p, weights).unsqueeze(2))
        of_log = slope.sum(0) / p.sum(0).unsqueeze(2)
        rows = torch.arange(8)
        wanted = of_log[rows, other] - of_log[rows, y]
    (found,) = torch.autograd.grad(margin(target(x), y).sum(), x)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)
    sure = p.mean(0).amax(1) > 0.905
    if scale == 40:
        assert sure.any()
        # There the published margin, the best wrong class under a mask of zeros, is constant.
        assert (target(x) * (1 - F.one_hot(y, 4))).amax(1).abs().max() == 0
    assert (found[sure].abs().amax(1) > 0.1).all()
    away = torch.autograd.grad(targeted("margin")(target(x), other).sum(), x)[0]
    assert torch.allclose(away, wanted, rtol=1e-6, atol=1e-9)


def test_losses_that_ignore_a_shift_are_the_same_on_logits_and_log_probabilities():
    torch.manual_seed(0)
    logits, y = torch.randn(20, 10), torch.randint(10, (20,))
    for loss in (cross_entropy, margin, dlr):
        assert torch.allclose(loss(logits, y), loss(logits.log_softmax(1), y), atol=1e-5)


def test_an_ensemble_comes_back_the_same_with_pipelines_in_it(tmp_path):
    coarse = PipelineTarget(member(1), [TransformSpec.model_validate({"kind": "bit-depth", "bits": 2})])
    target = EnsembleTarget([member(0), coarse, EnsembleTarget([member(2), member(3)])])
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(target(x), again(x))
    assert [m.kind for m in again.members] == ["classifier", "pipeline", "ensemble"]
    assert PipelineTarget(target, []).output == "log-probabilities"
    assert torch.equal(again.features(x, ["members.0"])["members.0"], member(0)(x))


def test_members_must_agree():
    with pytest.raises(UsageError, match="members of an ensemble differ"):
        EnsembleTarget([member(0), member(0, (1, 16, 16))])
    with pytest.raises(UsageError, match="without members"):
        EnsembleTarget([])


def finding(target):
    x = torch.rand(8, 1, 8, 8)
    batch = with_clean_logits(target, make_batch(x, torch.arange(8)))
    return plugins.load("checks", "output-type")().run(CheckContext(target, batch, ThreatModel(), {}, 0))


def test_the_check_of_the_output_knows_an_ensemble_from_a_log_softmax():
    assert not finding(EnsembleTarget([member(0), member(1)])).fired
    squashed = nn.Sequential(member(0).module, nn.LogSoftmax(1))
    assert finding(ClassifierTarget(squashed, num_classes=10, input_shape=(1, 8, 8))).fired


CAMPAIGN = tiny_campaign(
    "together",
    {
        "one": "{kind: standard, model: tiny-cnn, epochs: 8}",
        "two": "{kind: standard, model: tiny-cnn, epochs: 8, replica: 1}",
        "same": "{kind: standard, model: tiny-cnn, epochs: 8, replica: 0}",
        "both": "{kind: ensemble, members: [one, two]}",
    },
    {"pgd": "{kind: pgd}"},
    train=600,
    test=80,
    eps=0.05,
    matrix="{seeds: [0, 1]}",
)


def test_in_a_campaign_replicas_differ_and_their_ensemble_is_attacked(tmp_path):
    planned = plan.build(spec.from_text(CAMPAIGN, "together.yaml", tmp_path))
    ids = {(cell.defense, cell.seed): cell.id for cell in planned.of("train")}
    assert ids["one", 0] == ids["same", 0]
    assert len(set(ids.values())) == 6
    results = run(planned, tmp_path / "out", plugins.load("engines", "inline")(0))
    clean = {(d.defense, d.seed): d.clean_accuracy for d in results.defenses}
    assert clean["both", 0] >= min(clean["one", 0], clean["two", 0])
    both = load_target(Store(tmp_path / "out").get(ids["both", 0]).folder)
    assert [type(m).__name__ for m in both.members] == ["ClassifierTarget"] * 2
    weights = [torch.cat([p.flatten() for p in m.module.parameters()]) for m in both.members]
    assert not torch.allclose(*weights)


def test_mistakes_in_a_campaign(tmp_path):
    for wrong, right, said in (
        ("replica: -1", "replica: 1", r"together\.yaml:9: defenses\.two\.replica"),
        ("members: [one, one]", "members: [one, two]", "named twice"),
        ("replika: 1", "replica: 1", "did you mean 'replica'"),
    ):
        with pytest.raises(UsageError, match=said):
            spec.from_text(CAMPAIGN.replace(right, wrong), "together.yaml", tmp_path)


def test_the_python_interface_takes_an_ensemble():
    target = EnsembleTarget([member(0), member(1)])
    x = torch.rand(20, 1, 8, 8)
    y = target(x).argmax(1)
    for params in ({}, {"loss": "margin"}, {"loss": "dlr"}):
        found = robustkd.attack("pgd", target, x, y, eps=0.1, **params)
        assert found.success.mean() > 0.5
