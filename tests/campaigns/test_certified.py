"""Certificates in a campaign: the bracket, where it is exact, and a certificate that an attack contradicts."""

import itertools

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import robustkd
from robustkd.analyses.certified import Certified, CertifiedParams
from robustkd.contracts import AttackError, Batch, TargetError, ThreatModel
from robustkd.evaluation.images import TESTED
from robustkd.reporting.summary import summary_rows
from robustkd.scoring.results import Results
from robustkd.targets import ClassifierTarget
from support.campaigns import tiny_campaign

ONE = {"one": "{kind: standard, model: tiny-cnn, epochs: 6, optimiser: adam, lr: 0.01}"}
PLAIN = tiny_campaign("proved", ONE, {"pgd": "{kind: pgd, steps: 10}"}, train=300, test=30, eps=0.02)
TEXT = PLAIN + "analyses: {proof: {kind: certified, defenses: [one]}}\n"


def results_of(text, folder):
    (folder / "proved.yaml").write_text(text)
    return robustkd.run(folder / "proved.yaml", out=folder / "out", workers=0, track=False)


def tiny(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()


def smallest_margin(net, x, label, eps):
    """min over the box of z_y - max_t z_t: a linear program for each pattern of the ReLUs."""
    one, two, three = (net[number] for number in (1, 3, 5))
    low, high = (x - eps).clamp(0, 1).flatten(), (x + eps).clamp(0, 1).flatten()
    least = torch.inf
    for pattern in itertools.product([0.0, 1.0], repeat=7):
        first, second = torch.tensor(pattern[:4]).double(), torch.tensor(pattern[4:]).double()
        w1, b1 = one.weight.detach(), one.bias.detach()
        w2, b2 = two.weight.detach() * first @ w1, two.weight.detach() * first @ b1 + two.bias.detach()
        w3, b3 = three.weight.detach() * second @ w2, three.weight.detach() * second @ b2 + three.bias.detach()
        signs = 1 - 2 * torch.tensor(pattern).double()
        rows, most = signs.unsqueeze(1) * torch.cat([w1, w2]), -signs * torch.cat([b1, b2])
        for wrong in {0, 1, 2} - {label}:
            found = linprog(
                (w3[label] - w3[wrong]).numpy(),
                A_ub=rows.numpy(),
                b_ub=most.numpy(),
                bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
            )
            if found.status == 0:
                least = min(least, found.fun + float(b3[label] - b3[wrong]))
    return least


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
@pytest.mark.slow
def test_certified_exact_and_attacked_are_in_order_on_a_tiny_network(seed):
    net = tiny(seed)
    x = torch.rand(12, 1, 1, 3, dtype=torch.float64)
    y = net(x).argmax(1)
    target = ClassifierTarget(net, num_classes=3, input_shape=(1, 1, 3))
    batch, threat = Batch(x, y, torch.arange(12)), ThreatModel("linf", 0.08)
    truth = [smallest_margin(net, x[i : i + 1], int(y[i]), 0.08) > 0 for i in range(12)]

    def certificate(**params):
        return Certified(CertifiedParams(**params)).run(target, batch, threat, 0).certificate

    attacked = ~robustkd.attack("apgd-t", net, x, y, eps=0.08, params={"targets": 2}).success
    by_bounds, exact = certificate(), certificate(exact=True)
    assert exact.robust == truth
    assert exact.broken == [not one for one in truth]
    for bounded, true, standing in zip(by_bounds.robust, truth, attacked.tolist(), strict=True):
        assert bounded <= true <= standing
    assert certificate(method="interval").robust <= by_bounds.robust
    assert certificate(samples=5).robust == by_bounds.robust[:5]


def test_the_bracket_is_in_the_results_the_table_and_the_report(tmp_path, capfd):
    found = results_of(TEXT, tmp_path)
    (one,) = found.defenses
    bracket = one.bracket
    assert bracket.n == 30
    assert 0 < bracket.certified <= bracket.attacked == one.robust_accuracy
    assert bracket.open == round(30 * (bracket.attacked - bracket.certified))
    assert bracket.passes_on_certified > 0
    assert one.analyses["proof"].metrics["certified_accuracy"] == bracket.certified
    assert not [finding for finding in one.checks if finding.fired]
    assert Results.from_dict(found.to_dict()).defenses[0].bracket == bracket
    assert "certified to attacked" in (tmp_path / "out" / "report.md").read_text()
    assert "certified to attacked" in (tmp_path / "out" / "report.html").read_text()
    exact = results_of(TEXT.replace("defenses: [one]}", "defenses: [one], exact: true}"), tmp_path)
    assert exact.defenses[0].bracket.exact
    assert "Highs" not in capfd.readouterr().out  # its own lines
    (row,) = summary_rows(exact)
    assert row.exact
    assert row.certified == row.attacked
    assert "% exact" in (tmp_path / "out" / "report.md").read_text()
    plain = results_of(PLAIN, tmp_path)
    assert "bracket" not in plain.to_dict()["defenses"][0]


SPARING = (
    TEXT.replace("test: 30}", "test: 60}")
    .replace("eps: 0.02}", "eps: 0.02, curve: [0.01, 0.1]}")
    .replace(
        "pgd: {kind: pgd, steps: 10}",
        """\
pgd: {kind: pgd, steps: 10}
  smaller: {kind: pgd, steps: 10, threat: {norm: linf, eps: 0.01}}
  nearest: {kind: ddn, steps: 10, threat: {norm: l2, eps: 0.2}}
  further: {kind: pgd, steps: 5}""",
    )
)


def test_attacks_leave_certified_samples_alone_and_no_number_changes(tmp_path):
    """All but some, on which the certificate is put to the test."""
    spared = results_of(SPARING, tmp_path)
    bracket = spared.defenses[0].bracket
    certified = round(60 * bracket.certified)
    assert certified > TESTED
    all_of_them = results_of(SPARING.replace("defenses: [one]}", "defenses: [one], spare: false}"), tmp_path)
    whole = all_of_them.defenses[0].bracket
    assert (whole.certified, whole.attacked, whole.passes_saved) == (bracket.certified, bracket.attacked, 0)
    for one, other in zip(spared.cells, all_of_them.cells, strict=True):
        assert (one.robust_accuracy, one.curve) == (other.robust_accuracy, other.curve), one.attack
        saves = one.attack in ("pgd", "further")
        assert (one.forward_passes < other.forward_passes) == saves, one.attack  # the others speak of another threat model
    # PGD makes all its steps on a sample that it cannot break, and the backward passes of the steps.
    of_two = 2 * 10 + 1 + 2 * 5 + 1
    assert bracket.passes_saved == (certified - TESTED) * of_two
    assert whole.passes_on_certified == bracket.passes_on_certified + bracket.passes_saved
    assert "saved about" not in (tmp_path / "out" / "report.md").read_text()
    results_of(SPARING, tmp_path)
    assert "left certified samples alone, which saved about" in (tmp_path / "out" / "report.md").read_text()


def test_an_analysis_that_fails_spares_nothing(tmp_path):
    text = SPARING.replace("tiny-cnn, epochs: 6", "tiny-vit, epochs: 1")
    found = results_of(text, tmp_path)
    assert "no bounds are known of this network" in found.defenses[0].error
    assert all(cell.forward_passes for cell in found.cells), found.cells


def test_a_success_on_a_certified_sample_is_a_severe_finding(tmp_path, installed):
    installed("credulous", {"analyses": {"credulous": "support.credulous_analysis:Credulous"}})
    found = results_of(TEXT.replace("kind: certified", "kind: credulous").replace("eps: 0.02", "eps: 0.1"), tmp_path)
    (one,) = found.defenses
    assert one.robust_accuracy < 1
    (finding,) = [finding for finding in one.checks if finding.fired]
    assert (finding.name, finding.severity) == ("broken-certificate", "severe")
    assert "pgd" in finding.explanation
    assert finding.evidence["contradicted"] == one.bracket.contradicted == round(30 * (1 - one.robust_accuracy))
    assert one.verdict == "not credible"
    assert not one.bracket.exact
    assert "one of the two is wrong" in (tmp_path / "out" / "report.md").read_text()


def test_a_layer_without_bounds_is_named_and_the_rest_of_the_campaign_stands(tmp_path):
    found = results_of(TEXT.replace("tiny-cnn, epochs: 6", "tiny-vit, epochs: 1"), tmp_path)
    assert found.defenses[0].robust_accuracy is not None
    assert "no bounds are known of this network" in found.defenses[0].error


def test_another_threat_model_is_refused():
    target = ClassifierTarget(tiny(0), num_classes=3, input_shape=(1, 1, 3))
    x = torch.rand(2, 1, 1, 3, dtype=torch.float64)
    batch = Batch(x, target(x).argmax(1), torch.arange(2))
    with pytest.raises(TargetError, match="linf and l2"):
        Certified(CertifiedParams()).run(target, batch, ThreatModel("l1", 1.0), 0)
    with pytest.raises(AttackError, match="exact certificates are for linf"):
        Certified(CertifiedParams(exact=True)).run(target, batch, ThreatModel("l2", 1.0), 0)
    smooth = ClassifierTarget(nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(3, 3)), num_classes=3, input_shape=(1, 1, 3))
    with pytest.raises(AttackError, match="Tanh"):
        Certified(CertifiedParams(exact=True)).run(smooth, batch, ThreatModel("linf", 0.1), 0)


def test_a_targeted_attacker_only_has_to_be_kept_from_the_goal():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).double()
    net[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    net[1].bias.data.copy_(torch.tensor([0.0, 0.0, -5.0]))
    target = ClassifierTarget(net, num_classes=3, input_shape=(1, 1, 2))
    x, y = torch.tensor([[[[0.6, 0.4]]]]).double(), torch.tensor([0])

    def robust(goal, eps):
        batch = Batch(x, y, torch.arange(1), goals=None if goal is None else torch.tensor([goal]))
        threat = ThreatModel("linf", eps, "untargeted" if goal is None else "targeted")
        return Certified(CertifiedParams()).run(target, batch, threat, 0).certificate.robust[0]

    assert robust(None, 0.09)  # z_0 - z_1 is 0.2, and falls by 2 eps
    assert not robust(None, 0.11)
    assert not robust(1, 0.11)
    assert robust(2, 0.11)


SMOOTHED = tiny_campaign(
    "smoothed",
    {"voting": "{kind: randomised-smoothing, model: tiny-cnn, epochs: 8, optimiser: adam, lr: 0.01, sigma: 0.25, draws: 5}"},
    {"eot": "{kind: eot, samples: 2, attack: {kind: pgd, steps: 3}}"},
    train=300,
    test=12,
    threat="{norm: l2, eps: 0.2}",
    analyses="{proof: {kind: certified, defenses: [voting], smoothing_draws: 1000}}",
)


def test_a_smoothed_classifier_has_a_bracket_that_is_never_exact_and_contradicts_nothing(tmp_path):
    (voting,) = results_of(SMOOTHED, tmp_path).defenses
    assert voting.error is None
    assert voting.draws > 1
    bracket = voting.bracket
    assert 0 < bracket.certified < 1
    assert bracket.error == 0.001
    assert not bracket.exact
    assert not [finding for finding in voting.checks if finding.fired]
    assert voting.analyses["proof"].metrics["abstained"] >= 0
    assert "an error of at most 0.001" in (tmp_path / "out" / "report.md").read_text()
