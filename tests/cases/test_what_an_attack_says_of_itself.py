"""An attack's traits and its threat model are the object's own: what it wraps and its parameters decide, not its name."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.gradient.fgsm import FGSM
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.contracts import PluginError, ThreatModel, UsageError
from robustkd.plugin_kit.properties.attacks import nothing_from_nothing
from robustkd.plugin_kit.properties.attacks import threat_model as stays_inside
from robustkd.plugin_kit.subject import Subject


class OwnEOT(PGD):
    """Somebody's own expectation over transformation."""

    averages = True


class VersionedParams(PGDParams):
    version: str = "rand"


class Versioned(PGD):
    """Has a parameter ``version``, and does not average."""

    Params = VersionedParams


class Half(FGSM):
    """Is judged under half of the budget that is asked for."""

    def threat_for(self, threat):
        return replace(threat, eps=threat.eps / 2)


class Noisy(nn.Module):
    def forward(self, x):
        return 4 * x.flatten(1) + 0.1 * torch.randn_like(x.flatten(1))


@pytest.fixture
def images():
    x = torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return x, x.flatten(1).argmax(1)


def spec(kind, **params):
    return {"kind": kind, **params}


SHORT_PGD = spec("pgd", steps=2)


@pytest.mark.parametrize(
    ("attack", "averages"),
    [
        (spec("eot", attack=spec("bpda", attack=SHORT_PGD), samples=2), True),
        (spec("bpda", attack=spec("eot", attack=SHORT_PGD, samples=2)), True),
        (spec("bpda", attack=SHORT_PGD), False),
        (spec("bpda", attack=spec("autoattack", version="rand")), True),
        (spec("autoattack", version="standard"), False),
        (SHORT_PGD, False),
    ],
    ids=["eot(bpda)", "bpda(eot)", "bpda", "bpda(rand)", "standard", "pgd"],
)
def test_a_wrapper_averages_where_what_it_wraps_does(attack, averages):
    assert plugins.make("attacks", attack).traits.averages is averages


@pytest.mark.usefixtures("no_remedies")
@pytest.mark.parametrize(
    ("attack", "severity"),
    [
        (lambda: spec("eot", attack=SHORT_PGD, samples=2), "info"),
        (lambda: OwnEOT(PGDParams(steps=2)), "info"),
        (lambda: Versioned(VersionedParams(steps=2)), "severe"),
        (lambda: SHORT_PGD, "severe"),
    ],
    ids=["eot", "one's own", "a parameter called version", "pgd"],
)
def test_a_random_target_is_excused_by_an_attack_that_averages(only_checks, images, attack, severity):
    only_checks("randomised-output")
    report = robustkd.evaluate(Noisy(), *images, attacks=[attack()], eps=0.02)
    finding = next(finding for finding in report.findings if finding.name == "randomised-output")
    assert (finding.outcome, finding.severity) == ("fired", severity)


def test_traits_follow_the_parameters():
    assert plugins.make("attacks", spec("fmn", norm="l2")).traits.norms == ("l2",)
    assert plugins.make("attacks", spec("fmn")).traits.norms == ("linf", "l2", "l1", "l0")
    wrapped = plugins.make("attacks", spec("eot", attack=spec("fmn", norm="l2")))
    assert (wrapped.traits.kind, wrapped.traits.norms) == ("minimum-norm", ("l2",))


def test_an_attack_that_asks_for_another_threat_model_is_judged_under_it(images):
    x, y = images
    found = robustkd.attack(Half(), nn.Flatten(), x, y, eps=0.2)
    assert float((found.adversarial - x).abs().max()) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("call", [robustkd.evaluate, robustkd.audit])
def test_a_robust_accuracy_is_about_one_threat_model(images, call):
    name = {"attacks": [Half()]} if call is robustkd.evaluate else {"attack": Half()}
    with pytest.raises(UsageError, match=r"'Half' is judged under linf <= 0\.1, .* linf <= 0\.2"):
        call(nn.Flatten(), *images, eps=0.2, **name)


def test_the_plugin_kit_asks_for_the_attack_s_own_threat_model():
    class Narrow(FGSM):
        """Leaves half of the budget that is asked for, and says so."""

        seen: list[ThreatModel] = []  # noqa: RUF012

        def threat_for(self, threat):
            return replace(threat, eps=threat.eps / 2)

        def run(self, target, batch, threat, rng):
            self.seen.append(threat)
            return super().run(target, batch, threat, rng)

    for looked_at in (stays_inside, nothing_from_nothing):
        looked_at(Subject("attacks", "fgsm", Narrow))
    from robustkd.plugin_kit import fixtures

    assert {threat.eps for threat in Narrow.seen} == {0.0, *(fixtures.EPS[norm] / 2 for norm in FGSM.norms)}


@pytest.mark.parametrize("former", ["own_threat", "judged_under"])
def test_the_former_ways_to_say_it_are_refused_with_the_new_one(former):
    with pytest.raises(PluginError, match=f"Old defines '{former}'") as caught:
        type("Old", (FGSM,), {former: ThreatModel()})
    assert "threat_for(self, threat)" in caught.value.fix
