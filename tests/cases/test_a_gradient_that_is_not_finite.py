"""Networks with finite answers whose gradient is NaN or infinite at some pixels: a square root at 0, a blank image."""

import functools

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.contracts import AttackError, Batch, TargetError
from robustkd.data import SplitParams, load_splits
from robustkd.targets import ClassifierTarget
from support.small_networks import learn

EPS = {"linf": 0.08, "l2": 0.5, "l1": 2.0, "l0": 4.0}
ATTACKS = {
    "fgsm": {},
    "bim": {"steps": 5},
    "pgd": {"steps": 10},
    "mi-fgsm": {"steps": 5},
    "ni-fgsm": {"steps": 5},
    "si-fgsm": {"steps": 5},
    "ti-fgsm": {"steps": 5},
    "di2-fgsm": {"steps": 5},
    "vmi-fgsm": {"steps": 5, "neighbours": 3},
    "apgd-ce": {"steps": 10},
    "apgd-dlr": {"steps": 10},
    "apgd-t": {"steps": 10, "targets": 3},
    "autoattack": {"version": "adaptive", "steps": 10, "queries": 30},
    "eot": {"attack": {"kind": "pgd", "steps": 10}, "samples": 2},
    "universal": {"epochs": 2},
    "cw-l2": {"steps": 20, "binary_steps": 2},
    "cw-linf": {"steps": 20},
    "ddn": {"steps": 20},
    "ead": {"steps": 20, "binary_steps": 2},
    "deepfool": {"steps": 10},
    "fab": {"steps": 10},
    "fab-t": {"steps": 10, "targets": 3},
    "fmn": {"steps": 20},
}
IN_NORMS = [(name, norm) for name in ATTACKS for norm in plugins.load("attacks", name).norms if (name, norm) != ("eot", "l0")]


class Root(nn.Module):
    """sqrt(x) on [0, 1]; its slope at 0 is NaN in one form, infinite in another, and 0 in the third."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        if self.form == "nan":
            return torch.where(x > 0, x.sqrt(), 0.0)
        return x**0.5 if self.form == "inf" else x.clamp(0, 1).sqrt()


class Norm(nn.Module):
    """An image by its own length: NaN in every entry of the gradient of a blank image."""

    def forward(self, x):
        length = x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return x / length.clamp_min(0.1) + 0 * length


@functools.cache
def data():
    splits = load_splits("digits", {}, SplitParams(test=24))
    train = torch.as_tensor(splits.train.unit()), torch.as_tensor(splits.train.labels).long()
    return train, torch.as_tensor(splits.test.unit()), torch.as_tensor(splits.test.labels).long()


@functools.cache
def trained(kind):
    torch.manual_seed(0)
    first = Norm() if kind is Norm else Root("zero")
    net = nn.Sequential(first, nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    (x, y), _, _ = data()
    return learn(net, x, y, steps=80).eval()


def root(form):
    return nn.Sequential(Root(form), *trained(Root)[1:]).eval()


def attacked(name, net, x, y, norm):
    train, _, _ = data()
    params = ATTACKS[name]
    fit = tuple(part[:100] for part in train) if name == "universal" else None
    return robustkd.attack(name, net, x, y, norm=norm, eps=EPS[norm], fit_data=fit, **params)


@pytest.mark.parametrize(("name", "norm"), IN_NORMS)
def test_the_same_function_has_the_same_numbers(name, norm):
    _, x, y = data()
    nan, inf, twin = (attacked(name, root(form), x, y, norm).robust_accuracy for form in ("nan", "inf", "zero"))
    # The twin's own slope is 0 at white pixels too, which costs or gains a sample or two of the 24.
    assert nan == pytest.approx(twin, abs=0.1)
    assert inf == pytest.approx(twin, abs=0.1)
    assert twin < 1 or name == "universal"


@pytest.mark.parametrize(("name", "norm"), IN_NORMS)
def test_one_blank_image_touches_no_other(name, norm):
    _, x, y = data()
    net = trained(Norm)
    x = x.clone()
    x[7] = 0
    y[7] = net(x[7:8]).argmax()
    rows = [row for row in range(len(x)) if row != 7]
    if name == "universal":
        assert attacked(name, net, x, y, norm).robust_accuracy <= 1
        return
    index = torch.tensor(rows)
    together, apart = attacked(name, net, x, y, norm), alone(name, net, x[index], y[index], index, norm)
    assert (together.success[rows] == apart).all()


def alone(name, net, x, y, index, norm):
    """The other samples, with the random streams that they have in the whole batch."""
    from robustkd.contracts import ThreatModel
    from robustkd.evaluation.images import evaluate_attack, make_batch, with_clean_logits

    target = ClassifierTarget(net, num_classes=10, input_shape=(1, 8, 8))
    batch = with_clean_logits(target, make_batch(x, y, index=index))
    attack = plugins.make("attacks", {"kind": name, **ATTACKS[name]})
    return evaluate_attack(target, attack, batch, ThreatModel(norm, EPS[norm])).outcome.success


@pytest.mark.usefixtures("no_remedies")
@pytest.mark.parametrize(("form", "kind"), [("nan", "NaN"), ("inf", "inf")])
def test_a_finding_names_the_samples(only_checks, form, kind):
    only_checks("zero-gradient")
    _, x, y = data()
    report = robustkd.evaluate(root(form), x, y, eps=EPS["linf"])
    finding = next(finding for finding in report.findings if finding.name == "zero-gradient")
    assert (finding.fired, finding.severity) == (True, "warning")
    assert kind in finding.evidence["explanation"]
    assert finding.evidence["samples_not_finite"]
    assert report.verdict != "credible"


def test_a_model_that_is_nan_itself_is_still_blamed():
    _, x, _ = data()

    class Log(nn.Module):
        def forward(self, x):
            return torch.where(x.flatten(1).mean(1, keepdim=True) > 0.32, torch.nan, 1.0) * x.flatten(1)[:, :10]

    x = x.clone() * 0.3
    with pytest.raises(TargetError, match="the model returned NaN"):
        robustkd.attack("pgd", Log(), x, Log()(x).argmax(1), eps=0.9)


def test_an_attack_that_asks_about_nan_pixels_is_blamed_itself():
    from robustkd.attacks.image.engine.oracle import Oracle

    _, x, y = data()
    target = ClassifierTarget(trained(Root), num_classes=10, input_shape=(1, 8, 8))
    rows = torch.arange(len(x))
    x = x.clone()
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(AttackError, match="asked about NaN or infinite pixels in 1 of 24"):
        Oracle(target, Batch(x, y, rows)).logits(x, rows)
