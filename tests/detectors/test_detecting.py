"""A classifier with a detector: who is rejected, what an attack climbs, and what counts as a success."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.losses import margin
from robustkd.attacks.image.engine.oracle import Oracle
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.cli import cli
from robustkd.contracts import Batch, CheckContext, TargetError, ThreatModel
from robustkd.evaluation.images import evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.plugin_kit import fixtures
from robustkd.scoring.results import Results
from robustkd.targets import ClassifierTarget
from robustkd.targets.detecting import DetectingTarget, DetectorSpec
from support.campaigns import tiny_campaign


class Line(nn.Module):
    """Two classes of one pixel x: the second beyond 1/2."""

    def forward(self, images):
        z = 10 * (images.flatten(1)[:, :1] - 0.5)
        return torch.cat([-z, z], 1)


class Bright(nn.Module):
    """The score is the pixel itself."""

    def forward(self, inputs, logits):
        return inputs.flatten(1)[:, 0]


def line(threshold):
    """Rejects every pixel above ``threshold``."""
    base = ClassifierTarget(Line(), num_classes=2, input_shape=(1, 1, 1))
    target = DetectingTarget(base, DetectorSpec.model_validate("feature-squeezing"), {})
    target.scorer = target.module.scorer = Bright()
    target.module.threshold.fill_(threshold)
    target.module.eval()
    return target


def pixels(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_what_scores_above_the_threshold_is_rejected_and_nothing_else():
    answers = line(0.6)(pixels(0.2, 0.55, 0.6, 0.61, 0.9)).argmax(1)
    assert answers.tolist() == [0, 1, 1, 2, 2]


def test_the_last_output_is_the_formula():
    target, x = line(0.6), pixels(0.2, 0.7)
    target.module.spread.fill_(0.05)
    z = target(x)
    beyond = (x.flatten() - 0.6) / 0.05
    assert torch.allclose(z[:, 2], z[:, :2].amax(1) + beyond.sign() * torch.log1p(beyond.abs()))


def test_an_attack_sees_a_rejection_as_the_label():
    """Where the classifier is fooled, the margin is the smaller one of classifier and detector; where it is not, an alarm adds to it."""
    target, x, y = line(0.6), pixels(0.4, 0.55, 0.8, 0.7), torch.tensor([0, 0, 0, 1])
    oracle, rows = Oracle(target, Batch(x, y, torch.arange(4))), torch.arange(4)
    outputs = target(x)
    alone, alarm = margin(outputs[:, :2], y), outputs[:, 2] - outputs[:, :2].amax(1)
    logits = oracle.logits(x, rows)
    assert logits.shape == (4, 2)
    wanted = torch.where(alone > 0, torch.minimum(alone, -alarm), alone - alarm.clamp_min(0))
    assert torch.allclose(margin(logits, y), wanted)
    assert oracle.is_adversarial(logits, rows).tolist() == [False, True, False, False]


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "fab", pytest.param("hopskipjump", marks=pytest.mark.slow), "nes"])
def test_attacks_find_the_strip_that_is_wrong_and_accepted(attack):
    """Between 0.5 and 0.65: an attack that goes on to the end of its budget lands beyond."""
    target, x = line(0.65), pixels(0.3, 0.35, 0.45)
    norm, budget = ("l2", {"queries": 500}) if attack == "hopskipjump" else ("linf", {})
    found = robustkd.attack(attack, target, x, torch.zeros(3, dtype=torch.int64), eps=0.6, norm=norm, **budget)
    inside = np.asarray(found.adversarial).reshape(-1)
    assert found.success.all()
    assert ((inside > 0.5) & (inside <= 0.65 + 1e-6)).all()


def test_an_attack_that_does_not_know_the_detector_is_rejected():
    target, x = line(0.52), pixels(0.3, 0.35, 0.45)
    y = torch.zeros(3, dtype=torch.int64)
    found = robustkd.attack("unaware", target, x, y, eps=0.6, attack={"kind": "fgsm"})
    assert not found.success.any()
    assert (found.outcome.classified == 1).all()
    assert (found.outcome.alarm > 0).all()
    assert (found.outcome.after == 2).all()
    told = found.outcome.detection
    assert (told.fooled.share, told.evaded.share, told.detected.share, told.false_alarms.share, told.auroc) == (1, 0, 1, 0, 1)


def test_without_a_detector_to_know_of_it_is_the_attack_itself():
    target = fixtures.classifier()
    test = fixtures.digits().test
    x, y = torch.from_numpy(test.unit()), torch.from_numpy(test.labels)
    own, wrapped = (robustkd.attack(name, target, x, y, eps=0.1) for name in ("pgd", "unaware"))
    assert torch.equal(torch.as_tensor(own.adversarial), torch.as_tensor(wrapped.adversarial))


def test_a_clean_input_that_is_rejected_is_no_right_answer():
    target, x = line(0.4), pixels(0.3, 0.45, 0.7)
    y = torch.tensor([0, 0, 1])
    found = robustkd.attack("fgsm", target, x, y, eps=0.0)
    assert found.outcome.eligible.tolist() == [True, False, False]
    assert found.outcome.before.tolist() == [0, 2, 2]
    assert found.outcome.detection.false_alarms.share == pytest.approx(2 / 3)
    assert not found.success.any()


def test_peers_attack_the_classifier_alone_and_are_judged_by_both():
    target, x = line(0.52), pixels(0.3, 0.45)
    found = robustkd.attack("foolbox:LinfFastGradientAttack", target, x, torch.zeros(2, dtype=torch.int64), eps=0.6)
    assert not found.success.any()
    assert not plugins.make("attacks", {"kind": "foolbox:LinfFastGradientAttack"}).knows_rejection


def test_what_wraps_an_attack_knows_what_it_knows():
    made = [
        {"kind": "eot", "attack": {"kind": "unaware"}},
        {"kind": "unaware", "attack": {"kind": "bpda"}},
        {"kind": "eot", "attack": {"kind": "bpda"}},
        {"kind": "pgd"},
    ]
    attacks = [plugins.make("attacks", item) for item in made]
    assert [attack.knows_rejection for attack in attacks] == [False, False, True, True]
    assert [attack.uses_surrogates for attack in attacks] == [False, True, True, False]


@pytest.mark.parametrize("kind", ["feature-squeezing", "mahalanobis"])
def test_the_threshold_keeps_to_its_false_alarms_on_the_validation_images(kind):
    defense = plugins.make("defenses", {"kind": "with-detector", "base": "plain", "detector": kind, "false_positive_rate": 0.2})
    with fixtures.context(targets={"plain": fixtures.classifier()}) as context:
        target = defense.fit(context)
        rejected = target(torch.from_numpy(context.validation.unit())).argmax(1) == 10
    assert rejected.float().mean() == pytest.approx(0.2)
    assert (target.num_classes, target.rejects, "members" in target.capabilities) == (11, True, False)


def test_a_detector_without_a_score_for_each_image_is_told():
    target = line(0.5)
    target.scorer = lambda inputs, logits: logits
    with pytest.raises(TargetError, match=r"scores of shape \(2, 2\)"):
        target.scores(pixels(0.1, 0.2))


DEFENSES = {
    "plain": "{kind: standard, model: tiny-cnn, epochs: 10, optimiser: adam, lr: 0.02, batch_size: 20}",
    "watched": "{kind: with-detector, base: plain, detector: mahalanobis, false_positive_rate: 0.1}",
    "squeezed": "{kind: with-detector, base: plain, detector: feature-squeezing}",
}
UNAWARE = {"unaware": "{kind: unaware, attack: {kind: pgd, steps: 10}}"}
AWARE = {"aware": "{kind: pgd, steps: 10}", "through": "{kind: bpda, attack: {kind: pgd, steps: 10}}"}


def ran(tmp_path, attacks):
    text = tiny_campaign(
        train=400,
        test=40,
        defenses=DEFENSES,
        attacks=attacks,
        checks="{samples: 20}",
        matrix="{exclude: [{defense: plain, attack: through}, {defense: watched, attack: through}]}"
        if "through" in attacks
        else "{}",
    )
    return run(plan.build(spec.from_text(text, "tiny.yaml", tmp_path)), tmp_path / "out", plugins.load("engines", "inline")(0))


def finding(results, defense):
    (one,) = [one for one in results.defenses if one.defense == defense]
    (found,) = [check for check in one.checks if check.name == "detector-not-attacked"]
    return one, found


def test_a_campaign_of_unaware_attacks_alone_is_not_credible(tmp_path, only_checks):
    only_checks("detector-not-attacked")
    results = ran(tmp_path, UNAWARE)
    for defense in ("watched", "squeezed"):
        one, found = finding(results, defense)
        assert found.fired
        assert one.verdict == "not credible"
    assert not finding(results, "plain")[1].applicable


def test_a_campaign_shows_what_the_detector_did(tmp_path, only_checks):
    only_checks("detector-not-attacked")
    results = ran(tmp_path, UNAWARE | AWARE)
    assert not finding(results, "watched")[1].fired
    assert not finding(results, "squeezed")[1].fired
    cells = {(cell.defense, cell.attack): cell for cell in results.cells}
    assert cells["plain", "aware"].detection is None
    told, aware = cells["watched", "unaware"].detection, cells["watched", "aware"].detection
    assert told.false_alarms == aware.false_alarms
    assert 0 < told.false_alarms.share < 0.4
    assert told.evaded.share == pytest.approx(told.fooled.share * (1 - told.detected.share))
    assert aware.evaded.share >= told.evaded.share
    assert cells["watched", "aware"].robust_accuracy == pytest.approx(
        cells["watched", "aware"].clean_accuracy - aware.evaded.share
    )
    assert Results.from_dict(results.to_dict()) == results


def test_the_report_and_the_command_tell_of_the_detector(tmp_path):
    text = tiny_campaign(
        train=400,
        test=20,
        defenses={name: DEFENSES[name] for name in ("plain", "watched")},
        attacks=UNAWARE,
        matrix="{seeds: [0, 1], exclude: [{defense: plain, attack: unaware}]}",
    )
    (tmp_path / "tiny.yaml").write_text(text)
    narrow = CliRunner(env={"COLUMNS": "80"})
    ended = narrow.invoke(cli, ["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--workers", "0"])
    assert ended.exit_code == 0, ended.output
    for head in ("watched  unaware", "wrong and undetected", "right and accepted", "FPR at 95 %"):
        assert head in ended.stdout
    assert "…" not in ended.stdout
    for file in ("report.html", "report.md"):
        page = (tmp_path / "out" / file).read_text()
        assert "wrong and undetected" in page
        assert "false alarms" in page
    # Of the clean samples that are rejected, the sample by sample list says so.
    assert '"rejected"' in (tmp_path / "out" / "report.html").read_text()


class OffTheGrid(nn.Module):
    """Sees that a pixel is none of 8 bits."""

    def forward(self, inputs, logits):
        levels = 255 * inputs.flatten(1)[:, 0]
        return (levels - levels.round()).abs()


@pytest.mark.parametrize(("scorer", "threshold", "fires"), [(OffTheGrid(), 1e-3, True), (Bright(), 2.0, False)])
def test_a_detector_that_sees_no_more_than_eight_bits_is_told(scorer, threshold, fires):
    """An attack with steps of its own is rejected; on the grid beside it is the same error, accepted."""
    target = line(threshold)
    target.scorer = target.module.scorer = scorer
    target.module.spread.fill_(1e-3)
    x, y = pixels(*(level / 255 for level in (77, 90, 100, 102))), torch.zeros(4, dtype=torch.int64)
    batch = with_clean_logits(target, make_batch(x, y))
    threat, evidence, broken = ThreatModel("linf", 0.3001), {}, False
    for name, made in {"pgd": {"kind": "pgd"}, "unaware": {"kind": "unaware", "attack": {"kind": "pgd"}}}.items():
        attack = plugins.make("attacks", made)
        found = evaluate_attack(target, attack, batch, threat)
        broken |= bool(found.outcome.success.any())
        evidence[name] = evidence_of(name, attack, threat, found.outcome, found.adversarial.numpy())
    assert broken is not fires
    told = plugins.make("checks", {"kind": "detector-not-attacked"}).run(CheckContext(target, batch, threat, evidence, 0))
    assert told.fired is fires
    if fires:
        assert told.evidence["broken_in_8_bits"] >= 3
        assert "rounded to 8 bits" in told.explanation


@pytest.mark.parametrize("version", ["standard", "adaptive"])
def test_attacks_in_a_row_hand_on_what_the_target_said(version):
    """Each of them takes the rejection for the label anew."""
    defense = plugins.make("defenses", {"kind": "with-detector", "base": "plain", "detector": "mahalanobis"})
    with fixtures.context(targets={"plain": fixtures.classifier()}) as context:
        target = defense.fit(context)
    test = fixtures.digits().test
    x, y = torch.from_numpy(test.unit()), torch.from_numpy(test.labels)
    alone = robustkd.attack("apgd-ce", target, x, y, eps=0.1, steps=5)
    row = robustkd.attack("autoattack", target, x, y, eps=0.1, version=version, steps=5, queries=20)
    assert (row.success >= alone.success).all()
    assert row.success.any()


@pytest.mark.parametrize("check", ["silent-success", "zero-gradient", "unstable-loss"])
def test_a_rejected_input_is_no_success_to_the_checks(check):
    """They count as the attacks do: what is rejected is as good as answered rightly, and the gradient leads past the detector."""
    target = line(0.52)
    x, y = pixels(*(level / 255 for level in (77, 85, 90))), torch.zeros(3, dtype=torch.int64)
    batch, threat = with_clean_logits(target, make_batch(x, y)), ThreatModel("linf", 0.6)
    attack = plugins.make("attacks", {"kind": "unaware", "attack": {"kind": "fgsm"}})
    found = evaluate_attack(target, attack, batch, threat)
    assert not found.outcome.success.any()
    evidence = {"unaware": evidence_of("unaware", attack, threat, found.outcome, found.adversarial.numpy())}
    told = plugins.make("checks", {"kind": check}).run(CheckContext(target, batch, threat, evidence, 0))
    assert not told.fired, told
