"""Each further check fires on its symptom and not on an honest network; what it costs is counted, and nothing is left changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.contracts import Attack, AttackResult, CheckContext, Finding, ThreatModel
from robustkd.evaluation.checks import check_names, make_check, run_checks, run_remedies
from robustkd.evaluation.images import evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget, fingerprint
from support.small_networks import Around

THREAT = ThreatModel("linf", 0.1)


def examined(net, digits, *attacks, n=80, classes=10):
    """The context of a check on ``net`` after these attacks."""
    target = ClassifierTarget(net, num_classes=classes, input_shape=(1, 8, 8))
    batch = with_clean_logits(target, make_batch(digits[0][1200 : 1200 + n], digits[1][1200 : 1200 + n] % classes))
    evidence = {}
    for attack in attacks:
        if not isinstance(attack, Attack):
            attack = plugins.make("attacks", attack)
        found = evaluate_attack(target, attack, batch, THREAT)
        name = type(attack).__name__
        evidence[name] = evidence_of(name, attack, THREAT, found.outcome, found.adversarial.numpy())
    return CheckContext(target, batch, THREAT, evidence, 0)


def run(name, context, **params):
    plugin = plugins.load("checks", name)
    return run_checks(context, [plugin(plugin.Params(**params))])[0]


PGD = {"kind": "pgd", "steps": 20}
SMALL = {"noise-beats-attack": {"samples": 8, "points": 1000}, "binarization-test": {"samples": 8, "inner": 199}}


@pytest.mark.parametrize("name", check_names("thorough"))
def test_an_honest_network_raises_no_check(name, honest, digits):
    finding = run(name, examined(honest, digits, PGD, {"kind": "fgsm"}), **SMALL.get(name, {}))
    assert not finding.fired, finding.evidence


@pytest.mark.parametrize("name", check_names("thorough"))
def test_checks_repeat_and_leave_nothing_behind(name, honest, digits):
    context = examined(honest.train(), digits, PGD, n=30)
    before, state = fingerprint(context.target), torch.random.get_rng_state()
    first = run(name, context, **SMALL.get(name, {}))
    second = run(name, context, **SMALL.get(name, {}))
    assert first == second
    assert fingerprint(context.target) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in honest.modules())
    assert all(parameter.requires_grad for parameter in honest.parameters())
    honest.eval()


def test_standard_leaves_the_costly_ones_out():
    costly = {"noise-beats-attack", "unbounded-attack", "budget-sensitivity", "binarization-test"}
    assert set(check_names("thorough")) - set(check_names("standard")) == costly
    assert make_check("noise-beats-attack", 5).params.samples == 5
    assert make_check("output-type", 5).params.model_dump() == {}


def test_passes_are_counted(honest, digits):
    context = examined(honest, digits, PGD)
    graph = run("broken-graph", context, samples=8)
    assert (graph.forward_passes, graph.backward_passes) == (8, 8)
    assert run("randomised-output", context, samples=16, passes=5).forward_passes == 80
    loss = run("unstable-loss", context, samples=4, moves=10)
    assert (loss.forward_passes, loss.backward_passes) == (40, 0)
    zero = run("zero-gradient", context, samples=10)
    assert (zero.forward_passes, zero.backward_passes) == (20, 20)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach() + 0 * x.sum().detach()


def test_broken_graph(honest, digits):
    context = examined(honest, digits)
    cut = replace(context, target=ClassifierTarget(Around(honest, before=Detached()), num_classes=10, input_shape=(1, 8, 8)))
    finding = run("broken-graph", cut)
    assert finding.fired
    assert finding.severity == "severe"
    assert "no graph" in finding.evidence["error"]

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("one way only")

    one_way = replace(
        context, target=ClassifierTarget(Around(honest, before=Raises.apply), num_classes=10, input_shape=(1, 8, 8))
    )
    assert "one way only" in run("broken-graph", one_way).evidence["error"]


def test_dynamic_inference(honest, digits):
    class Optimises(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            from torch.autograd import grad

            with torch.enable_grad():
                z = x.detach().requires_grad_()
                (step,) = grad(self.net(z).logsumexp(1).sum(), z)
            return self.net(x - 0.01 * step)

    finding = run("dynamic-inference", examined(Optimises(honest), digits))
    assert finding.fired
    assert finding.evidence["autograd_calls"] == 1

    class Counts(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.register_buffer("asked", torch.zeros(()))

        def forward(self, x):
            self.asked += 1
            return self.net(x)

    counting = Counts(honest)
    finding = run("dynamic-inference", examined(counting, digits))
    assert finding.fired
    assert finding.evidence["changed_tensors"] == 1

    class Centres(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    assert run("dynamic-inference", examined(Around(honest, before=Centres()), digits)).evidence["gap_between_batches"] > 1e-3


def test_unstable_loss(honest, digits):
    rough = run("unstable-loss", examined(Around(honest, before=lambda x: x + 0.5 * (1000 * x).sin()), digits))
    assert rough.fired
    assert rough.evidence["relative_change"] > 0.1
    # The change of a linear margin is known: moves are uniform in +-eps / 10, so its mean follows from the weights.
    assert run("unstable-loss", examined(honest, digits)).evidence["relative_change"] < 0.03


def test_too_few_classes(digits):
    torch.manual_seed(0)
    binary = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    assert run("too-few-classes", examined(binary, digits, PGD, classes=2)).fired
    assert not run("too-few-classes", examined(binary, digits, PGD | {"loss": "margin"}, classes=2)).fired


class Still(Attack):
    """Looks and returns the clean image."""

    def run(self, target, batch, threat, rng):
        ones = torch.ones(len(batch), dtype=torch.int64)
        return AttackResult(batch.inputs, ~ones.bool(), ones, ones)


class Forgets(Attack):
    """Visits the point of another attack and returns the clean image."""

    def run(self, target, batch, threat, rng):
        met = plugins.make("attacks", PGD).run(target, batch, threat, rng)
        return AttackResult(batch.inputs, met.success, met.forwards, met.backwards)


def test_an_attack_that_does_nothing_loses_to_noise_and_to_a_substitute(honest, digits):
    context = examined(honest, digits, Still())
    assert run("transfer-beats-white-box", context).fired
    # Near the boundary any direction will do.
    near = replace(context, threat=ThreatModel("linf", 0.5))
    near = replace(near, attacks={n: replace(a, threat=near.threat) for n, a in near.attacks.items()})
    assert run("noise-beats-attack", near, samples=16, points=500).fired


def test_an_attack_that_cannot_break_anything_is_found_out_without_bounds(honest, digits):
    assert run("unbounded-attack", examined(honest, digits, Still())).evidence["robust_accuracy_unbounded"] == 1
    assert run("unbounded-attack", examined(honest, digits, Still())).fired
    assert not run("unbounded-attack", examined(honest, digits, PGD)).fired


def test_silent_success(honest, digits):
    context = examined(honest, digits, Forgets())
    finding = run("silent-success", context)
    assert finding.fired
    assert finding.evidence["forgotten"]["Forgets"] > 0
    assert not run("silent-success", examined(honest, digits, PGD, {"kind": "square", "queries": 50})).fired


def test_incomplete_optimisation(honest, digits):
    short = {"kind": "pgd", "steps": 20, "step_size": 0.002, "random_start": False}
    finding = run("incomplete-optimisation", examined(honest, digits, short))
    assert finding.fired
    # Steps of 0.002 on a nearly linear margin: the last 5 of 20 bring a quarter of the climb.
    assert finding.evidence["share_of_climb"] == pytest.approx(0.25, abs=0.05)
    # The course of the same search: from the start and after each of 20 steps, never falling, still rising as steeply at its end.
    trace = finding.trace
    assert (trace.points, trace.n) == (list(range(1, 22)), finding.evidence["n"])
    rises = np.diff(trace.best)
    assert rises.min() >= 0
    assert rises[-5:].sum() == pytest.approx((trace.best[-1] - trace.best[0]) / 4, rel=0.2)
    # Of each sample by itself as well: the mean of them is the course of all.
    assert len(set(trace.samples)) == len(trace.paths) == trace.n
    np.testing.assert_allclose(np.mean(trace.paths, 0), trace.best, atol=1e-4)
    assert trace.of_sample(trace.samples[1]) == trace.paths[1]
    assert trace.of_sample(-1) == []


def test_budget_sensitivity(honest, digits):
    short = {"kind": "pgd", "steps": 8, "step_size": 0.006, "random_start": False}
    finding = run("budget-sensitivity", examined(honest, digits, short))
    assert finding.fired
    assert finding.evidence["robust_accuracy_doubled"]["steps"] < finding.evidence["ci_low"]


def test_a_larger_budget_that_protects(honest, digits):
    class Alarmed(nn.Module):
        """Further than 0.11 from an image that it knows, it answers as for that image, and lets no gradient through."""

        def forward(self, x):
            known = digits[0][1200:1280]
            away = (x.unsqueeze(1) - known).abs().flatten(2).amax(2).min(1)
            return torch.where(away.values.unsqueeze(1) > 0.11, honest(known[away.indices]), honest(x))

    finding = run("not-monotone-in-eps", examined(Alarmed(), digits))
    assert finding.fired
    assert finding.evidence["robust_accuracy_twice_eps"] == 1
    assert finding.evidence["ci_high"] < 0.9


def test_the_binarization_test(honest, digits):
    fine = run("binarization-test", examined(honest, digits, PGD), samples=12, inner=199)
    assert fine.evidence["solved_share"] == 1
    assert fine.evidence["random_search_share"] < 0.5
    weak = run("binarization-test", examined(honest, digits, Still()), samples=12, inner=199)
    assert weak.fired
    assert weak.severity == "severe"
    assert weak.evidence["solved_share"] == 0
    ensemble = nn.ModuleList([honest, honest])
    both = Around(honest)
    both.members, both.forward = ensemble, lambda x: honest(x) + honest(x)
    assert not run("binarization-test", examined(both, digits, PGD)).applicable


def test_a_check_that_raises_takes_no_other_down(honest, digits):
    from robustkd.contracts import Check

    class Broken(Check):
        name = "broken"

        def run(self, context):
            raise ZeroDivisionError("no samples")

    context = examined(honest, digits, PGD)
    broken, other = run_checks(context, [Broken(), make_check("output-type")])
    assert broken.outcome == "not run"
    assert not broken.fired
    assert broken.evidence == {"reason": "ZeroDivisionError: no samples", "again": True}
    assert not other.fired


def test_remedies_run_on_what_stands_and_are_recorded(honest, digits):
    masked = Around(honest, before=lambda x: (x * 16).round() / 16)
    context = examined(masked, digits, PGD)
    before = float(context.attacks["PGD"].standing.mean())
    finding = run("zero-gradient", context)
    remedy = run_remedies(context, [finding])
    assert "bpda" in remedy.skipped
    assert next(iter(remedy.steps)) == "square"  # what the finding names comes first, what is stronger after it
    assert list(remedy.steps.values()) == sorted(remedy.steps.values(), reverse=True)
    assert remedy.left[-1] == remedy.robust_accuracy
    assert remedy.left[-3] == remedy.left[-1]  # the last two attacks broke nothing more
    assert remedy.names[-1] != remedy.names[-2]
    assert remedy.robust_accuracy < before - 0.1
    assert remedy.ci_low <= remedy.robust_accuracy <= remedy.ci_high
    assert remedy.broken == round((before - remedy.robust_accuracy) * 80)
    assert remedy.forward_passes > remedy.backward_passes > 0
    assert run_remedies(context, [Finding("quiet", "severe", False)]) is None


def test_a_remedy_ends_when_its_passes_are_spent(honest, digits, monkeypatch):
    context = examined(Around(honest, before=lambda x: (x * 16).round() / 16), digits, PGD)
    monkeypatch.setattr("robustkd.evaluation.checks.PASSES_OF_A_REMEDY", 1)
    remedy = run_remedies(context, [Finding("weak", "severe", True, remedies=[{"kind": "fgsm"}, {"kind": "pgd", "steps": 3}])])
    assert remedy.names == ["fgsm"]
    assert remedy.stopped == "1 passes a sample are spent"


def test_a_stronger_attack_is_tried_on_a_few_samples_and_not_longer_where_it_breaks_none(honest, digits, monkeypatch):
    context = examined(honest, digits, {"kind": "pgd", "steps": 40, "loss": "margin"})
    standing = int(context.attacks["PGD"].standing.sum())
    stronger = [{"kind": "pgd", "loss": "margin", "steps": steps} for steps in (3, 300)]
    monkeypatch.setattr("robustkd.evaluation.checks.escalation", lambda *_: iter(stronger))
    monkeypatch.setattr("robustkd.evaluation.checks.AT_FIRST", 4)
    remedy = run_remedies(context, [Finding("weak", "severe", True, remedies=[{"kind": "fgsm"}])])
    assert remedy.attacks == [{"kind": "fgsm"}, stronger[0]]
    assert remedy.broken == 0
    fgsm, few = standing * 3, 4 * 4
    assert remedy.forward_passes <= fgsm + few + 64 * 5 + 4  # what is asked of a target beforehand


def test_randomness_with_eot_is_no_reason_to_doubt(honest, digits):
    noisy = Around(honest, before=lambda x: x + 0.05 * torch.randn_like(x))
    assert run("randomised-output", examined(noisy, digits, PGD)).severity == "severe"
    eot = {"kind": "eot", "attack": PGD, "samples": 4}
    finding = run("randomised-output", examined(noisy, digits, eot))
    assert finding.fired
    assert finding.severity == "info"
    assert np.isfinite(finding.evidence["relative_gap"])
