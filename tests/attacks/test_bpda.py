"""BPDA: on a linear model with a thresholded input, whose optimum is known, and on a network with published figures."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import AttackError, Batch, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.data import SplitParams, load_splits
from robustkd.plugins import load
from robustkd.targets import ClassifierTarget, declared_surrogates
from support.campaigns import tiny_campaign
from support.published_networks import masked_cnn


class Binarise(nn.Module):
    """Black and white. Its own gradient is zero wherever it exists."""

    def forward(self, x):
        return (torch.sign(x - 0.5) + 1) / 2


class Declared(Binarise):
    def surrogate(self, x):
        return x


class Sudden(Declared):
    def forward(self, x):
        return (x > 0.5).to(x.dtype)


def linear_behind(stage):
    torch.manual_seed(0)
    return nn.Sequential(stage, nn.Flatten(), nn.Linear(36, 2))


@pytest.fixture
def samples():
    torch.manual_seed(1)
    x = torch.rand(80, 1, 6, 6)
    return x, linear_behind(Binarise())(x).argmax(1)


def breakable(net, x, y, eps):
    """Which samples some point of the ball breaks: every pixel within eps of the threshold can be set as one likes."""
    w = (net[2].weight[1] - net[2].weight[0]).detach()
    sign = torch.where(y == 0, 1.0, -1.0).unsqueeze(1)  # the direction in which the score must go
    gain = sign * w * (1 - 2 * (x > 0.5).flatten(1).float())
    near = (x.flatten(1) - 0.5).abs() < eps
    logits = net(x).detach()
    return -(sign.squeeze(1) * (logits[:, 1] - logits[:, 0])) < (gain * near).clamp_min(0).sum(1)


@pytest.mark.parametrize("stage", [Declared, Sudden])
def test_every_breakable_sample_is_broken_and_without_it_hardly_any(stage, samples):
    x, y = samples
    net = linear_behind(stage())
    eps = 0.1
    optimum = breakable(net, x, y, eps)
    assert 15 < int(optimum.sum()) < 65
    found = robustkd.attack("bpda", net, x, y, eps=eps, attack={"kind": "pgd", "steps": 20, "loss": "margin"})
    assert torch.equal(torch.as_tensor(found.success), optimum)
    blind = robustkd.attack("pgd", linear_behind(Binarise()), x, y, eps=eps, steps=20, loss="margin")
    assert blind.success.sum() < optimum.sum() / 2


def test_the_model_is_left_as_found_and_computes_the_same_meanwhile(samples):
    x, y = samples
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(set(x.detach().unique().tolist()))
            return x

    net = nn.Sequential(Declared(), Watch(), nn.Flatten(), nn.Linear(36, 2))
    robustkd.attack("bpda", net, x, y, eps=0.1, attack={"kind": "pgd", "steps": 3})
    assert set.union(*seen) == {0.0, 1.0}  # to the last bit
    assert not net[0]._forward_hooks
    (gradient,) = torch.autograd.grad(net(x.requires_grad_()).sum(), x)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("surrogate", ["identity", "torch:sigmoid"])
def test_a_stage_that_declares_nothing_can_be_named(surrogate, samples):
    x, y = samples
    found = robustkd.attack("bpda", linear_behind(Binarise()), x, y, eps=0.1, surrogates={"0": surrogate})
    blind = robustkd.attack("pgd", linear_behind(Binarise()), x, y, eps=0.1)
    assert found.success.sum() > 2 * blind.success.sum()


def test_mistakes_are_named(samples):
    x, y = samples

    def attack(stage=Binarise, **params):
        return robustkd.attack("bpda", linear_behind(stage()), x, y, eps=0.1, **params)

    with pytest.raises(TargetError, match="no stage of the target declares"):
        attack()
    with pytest.raises(TargetError, match="no layer 'front'"):
        attack(surrogates={"front": "identity"})
    with pytest.raises(TargetError, match=r"stage '0' returned \(80, 36\), the stage itself \(80, 1, 6, 6\)"):
        attack(surrogates={"0": "test_bpda:flat"})
    with pytest.raises(UsageError, match="is not a reference to code"):
        attack(surrogates={"0": "sigmoid"})
    with pytest.raises(UsageError, match="'square' uses no gradient"):
        attack(Declared, attack="square")


def flat(x):
    return x.flatten(1)


def test_hooks_go_when_the_attack_fails(samples):
    x, y = samples
    net = nn.Sequential(Declared(), nn.Flatten(), nn.Linear(36, 2), nn.Hardshrink())
    bad = Batch(torch.full_like(x, torch.nan), y, torch.arange(len(x)))
    target = ClassifierTarget(net, num_classes=2, input_shape=(1, 6, 6))
    assert list(declared_surrogates(target)) == ["0"]
    with pytest.raises(AttackError, match="NaN"):
        load("attacks", "bpda")().run(target, bad, ThreatModel("linf", 0.1), SampleRng(0, bad.index))
    assert not net[0]._forward_hooks


def test_it_goes_inside_eot_and_a_result_depends_on_the_sample_alone(samples):
    x, y = samples
    net = linear_behind(Declared())
    target = ClassifierTarget(net, num_classes=2, input_shape=(1, 6, 6))
    batch = Batch(x, y, torch.arange(80))

    def run(name, batch, **params):
        plugin = load("attacks", name)
        return plugin(plugin.Params(**params)).run(target, batch, ThreatModel("linf", 0.1), SampleRng(0, batch.index))

    inner = {"kind": "bpda", "attack": {"kind": "pgd", "steps": 5}}
    whole = run("eot", batch, attack=inner, samples=2)
    plain = run("bpda", batch, attack=inner["attack"])
    assert torch.equal(whole.adversarial, plain.adversarial)  # nothing is random here
    assert torch.equal(whole.forwards, 2 * plain.forwards)
    rows = torch.tensor([50, 3, 20])
    some = run("bpda", batch.select(rows), attack=inner["attack"])
    assert torch.allclose(some.adversarial, plain.adversarial[rows])
    assert torch.equal(some.backwards, plain.backwards[rows])


def test_in_a_campaign_the_code_of_a_surrogate_belongs_to_the_identity(tmp_path):
    text = tiny_campaign(
        "masked", train=200, test=40, checks=None, attacks={"bpda": '{kind: bpda, surrogates: {"0": "mine.py:smooth"}}'}
    )
    ids = []
    for body in ("x", "x * 1.0"):
        (tmp_path / "mine.py").write_text(f"def smooth(x):\n    return {body}\n")
        campaign = spec.from_text(text, "masked.yaml", tmp_path)
        assert campaign.attacks["bpda"].plugin.named["0"](3.0) == 3.0
        ids.append(plan.build(campaign).of("attack")[0].id)
    assert ids[0] != ids[1]
    with pytest.raises(UsageError, match="leads out of the campaign file's folder"):
        spec.from_text(text.replace("mine.py", "../mine.py"), "masked.yaml", tmp_path)
    with pytest.raises(UsageError, match=r"masked\.yaml:8: attacks\.bpda\.attack: attack 'pgd': stepz"):
        spec.from_text(text.replace("kind: bpda,", "kind: bpda, attack: {kind: pgd, stepz: 3},"), "masked.yaml", tmp_path)


@pytest.mark.shared_data
@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_masked_mnist_network(n, shared_data):
    """Published with the network, eps 0.3, 500 images: 98.0 % robust under PGD-40, 57.6 % with BPDA."""
    net = masked_cnn(shared_data, Declared())
    data = load_splits("mnist", {"root": str(shared_data / "mnist")}, SplitParams())
    x, y = torch.from_numpy(data.test.unit()[:n]), torch.from_numpy(data.test.labels[:n])
    # Larger steps than elsewhere: a pixel counts only once it is over the threshold.
    pgd = {"kind": "pgd", "steps": 40, "step_size": 0.05}
    masked = robustkd.attack("pgd", net, x, y, eps=0.3, steps=40)
    true = robustkd.attack("bpda", net, x, y, eps=0.3, attack=pgd)
    # Three standard errors of the published share on n images.
    assert masked.robust_accuracy == pytest.approx(0.98, abs=3 * (0.98 * 0.02 / n) ** 0.5)
    assert true.robust_accuracy <= 0.576 + 3 * (0.576 * 0.424 / n) ** 0.5
