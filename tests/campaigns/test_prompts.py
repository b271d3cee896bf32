"""A campaign of prompts from its file to its numbers, on toy worlds whose numbers can be said beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.application.gallery import gallery_items
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.contracts import Asked, AttackError, PromptAttack, ThreatModel, UsageError
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.scoring.summaries import ThreatSummary
from support.toy_prompts import CUPBOARD, SQUARES, registered


@pytest.fixture(scope="module", autouse=True)
def worlds(tmp_path_factory):
    with registered(tmp_path_factory.mktemp("site")):
        yield


class Begun(Observer):
    def __init__(self):
        self.titles = []

    def started(self, cell):
        self.titles.append(cell.title)


def ran(text, folder):
    plan = planning.build(spec.from_text(text, "test.yaml", Path()))
    begun = Begun()
    return plan, run(plan, folder, InlineEngine(), device="cpu", observers=[begun]), begun.titles


@pytest.fixture(scope="module")
def cupboards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cupboards")
    plan, results, begun = ran(CUPBOARD, folder)
    return folder, plan, results, begun


def cell_of(results, defense, attack):
    (cell,) = [cell for cell in results.cells if (cell.defense, cell.attack) == (defense, attack)]
    return cell


def test_the_numbers_are_those_of_the_rules(cupboards):
    _, _, results, _ = cupboards
    assert not results.incomplete
    assert (results.modality, results.data.n, results.data.benign) == ("text", 12, 12)
    assert results.threat == ThreatSummary("prompt", 6.0)
    rows = {row.defense: row for row in results.defenses}
    # Nothing guards the open one; one word in front of "box" does not hide it from the short-sighted one, three mostly do.
    assert (rows["open"].robust_accuracy, rows["careful"].robust_accuracy) == (0.0, 1.0)
    assert cell_of(results, "short-sighted", "as-it-is").robust_accuracy == 1.0
    assert rows["short-sighted"].robust_accuracy == 0.0
    # Of four of twelve numbers nothing is known any more: neither robust, nor the attack's success.
    assert rows["forgetful"].robust_accuracy == pytest.approx(8 / 12)
    assert cell_of(results, "forgetful", "extra-words").attack_success_rate == 0.0
    # Harmless requests: all that is remembered is told.
    assert {name: row.clean_accuracy for name, row in rows.items()} == pytest.approx(
        {"open": 1, "short-sighted": 1, "careful": 1, "forgetful": 8 / 12}
    )
    # The beginning of the answer is another threat than the wording of a request.
    assert rows["careful"].attacks == ["as-it-is", "extra-words"]
    assert rows["careful"].other_threats == {"any beginning of the answer, 6 attempts": 0.0}


def test_the_curve_is_over_attempts_and_falls(cupboards):
    folder, plan, results, _ = cupboards
    curve = cell_of(results, "short-sighted", "extra-words").curve
    assert [point.eps for point in curve] == [1, 2, 5, 6]
    (cell,) = [cell for cell in plan.of("attack") if (cell.defense, cell.attack) == ("short-sighted", "extra-words")]
    said = samples.transcripts(Store(folder).get(cell.id))
    for point in curve:
        assert point.robust_accuracy == np.mean([one.attempts > point.eps for one in said])
    assert 0 < curve[0].robust_accuracy < 1


def test_transcripts_hold_what_decided_and_what_every_judge_says(cupboards):
    folder, plan, results, _ = cupboards
    store = Store(folder)
    found = {(cell.defense, cell.attack): samples.transcripts(store.get(cell.id)) for cell in plan.of("attack")}
    one = found["short-sighted", "extra-words"][0]
    assert "box" in one.request
    assert sorted(set(one.request.split(" "))) == sorted(set(one.prompt.split(" ")) - {"please", "kindly", "now", "really"})
    assert one.output.startswith("It is number <")
    assert one.verdicts == {"number": True, "tone": True}
    assert all(one.verdicts == {"number": False, "tone": False} for one in found["careful", "extra-words"])
    # A forgotten number is no number, but no refusal either.
    forgotten = cell_of(results, "forgetful", "first-words")
    assert forgotten.agreement == {"tone": pytest.approx(8 / 12)}
    assert {one.verdicts["tone"] for one in found["forgetful", "first-words"]} == {True}
    # One forward pass for each answer that was judged.
    assert cell_of(results, "careful", "extra-words").forward_passes == 12 * 6


def test_a_finished_campaign_does_nothing_again(cupboards):
    folder, _, results, begun = cupboards
    assert len(begun) == 4 + 4 * 3 + 4  # trainings, attacks, sets of checks
    _, again, begun = ran(CUPBOARD, folder)
    loaded = [title for title in begun if " train " in title]  # a plug-in of another package that trains nothing: built anew
    assert begun == loaded
    assert len(loaded) == 4
    assert again.to_dict() == results.to_dict()
    _, _, begun = ran(CUPBOARD.replace("looks_at: 7", "looks_at: 8"), folder)
    assert len(begun) == 4 + 3 + 1


def test_a_result_does_not_depend_on_the_other_requests(cupboards):
    folder, plan, _, _ = cupboards
    (cell,) = [cell for cell in plan.of("attack") if (cell.defense, cell.attack) == ("short-sighted", "extra-words")]
    whole = samples.transcripts(Store(folder).get(cell.id))
    target = plugins.make("defenses", {"kind": "guarded-cupboard", "looks_at": 7}).fit(None)
    judges = {"number": plugins.make("judges", {"kind": "says-the-number"})}
    rows = np.array([7, 2])
    batch = prepare(target, plan.data.test.select(rows), plan.data.test_index[rows], judges)
    found = evaluate_prompt_attack(
        target, plan.campaign.attacks["extra-words"].plugin, batch, plan.campaign.threat, judges, num_classes=3
    )
    assert [(one.prompt, one.attempts) for one in found.transcripts] == [(whole[i].prompt, whole[i].attempts) for i in rows]


def test_pictures_are_kept_beside_those_of_the_unattacked(tmp_path):
    plan, results, _ = ran(SQUARES, tmp_path)
    assert not results.incomplete
    assert results.modality == "text-to-image"
    (cell,) = plan.of("attack")
    entry = Store(tmp_path).get(cell.id)
    record, before, after = samples.read(entry), samples.perturbed(entry, "clean"), samples.perturbed(entry)
    assert before.shape == after.shape == (8, 3, 16, 16)
    changed = np.abs(after - before).reshape(8, -1).max(1) > 0.1
    assert record.outcome.success.any()
    assert (changed == record.outcome.success).all()
    shown = gallery_items(plan, Store(tmp_path))
    assert [item.broken for item in shown] == [True, True, True, False]
    assert all(np.abs(item.after - item.before).max() > 0.1 for item in shown[:3])
    # Each request draws with its own seed; an attack on the prompt cannot choose another.
    assert {one.seed for one in samples.transcripts(entry)} == {int(seed) for seed in plan.data.test["seed"]}


class Cheats(PromptAttack):
    def __init__(self, *asked):
        super().__init__()
        self.asked = asked

    def search(self, target, batch, attempts, threat, rng):
        for question in self.asked:
            attempts(torch.arange(1), [question])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([Asked("box", prefill="Sure")], "sets the prefill"),
        ([Asked("box", seed=0)], "sets the seed"),
        ([Asked("box", embeddings=torch.zeros(1, 2))], "sets the embeddings"),
        ([Asked("box"), Asked("box"), Asked("box")], "more than 2 attempts"),
    ],
)
def test_an_attack_that_leaves_its_threat_model_is_refused(cupboards, asked, told):
    _, plan, _, _ = cupboards
    target = plugins.make("defenses", {"kind": "guarded-cupboard"}).fit(None)
    judges = {"number": plugins.make("judges", {"kind": "says-the-number"})}
    batch = prepare(target, plan.data.test, plan.data.test_index, judges)
    with pytest.raises(AttackError, match=told):
        evaluate_prompt_attack(target, Cheats(*asked), batch, ThreatModel.by_prompt(2), judges, num_classes=3)


@pytest.mark.parametrize(
    ("old", "new", "line", "told", "fix"),
    [
        ("{kind: extra-words}", "{kind: pgd}", 12, "'pgd' is for images, the data are text", "list attacks --modality text"),
        ("{kind: guarded-cupboard}", "{kind: standard, model: tiny-cnn}", 8, "'standard' is for images", "list defenses"),
        ("{attempts: 6}", "{norm: linf, eps: 0.1}", 4, "this key is missing: attempts", "such as {attempts: 20}"),
        ("{attempts: 6}", "{attempts: 6, eps: 0.1}", 4, "eps: prompts have no such budget", "give 'attempts' alone"),
        (
            "{name: cupboard}",
            "{name: squares}",
            6,
            "'guarded-cupboard' is for text, the data are text-to-image",
            "list defenses",
        ),
        (
            "gates:",
            "judges: {colour: {kind: is-the-colour}}\ngates:",
            14,
            "'is-the-colour' is for text-to-image",
            "list judges",
        ),
        ("{name: cupboard}", "{name: digits}", 4, "attempts are for models that are asked", "'norm' and 'eps'"),
    ],
)
def test_what_is_for_other_data_is_refused_with_its_line(old, new, line, told, fix):
    assert CUPBOARD.count(old) == 1
    with pytest.raises(UsageError) as error:
        spec.from_text(CUPBOARD.replace(old, new), "test.yaml", Path())
    message = str(error.value)
    assert told in message
    assert fix in message
    assert f"test.yaml:{line}:" in message


def test_a_campaign_s_own_judges_decide(tmp_path):
    judged = CUPBOARD.replace("gates:", "judges: {mine: {kind: does-not-refuse}}\ngates:")
    _, results, _ = ran(judged, tmp_path)
    # Whoever says a forgotten number does not refuse: by this judge it could have complied.
    assert cell_of(results, "forgetful", "first-words").attack_success_rate == 1.0
    assert {row.defense: row.clean_accuracy for row in results.defenses}["forgetful"] == 1.0
    assert json.loads((tmp_path / "results.json").read_text())["cells"][0]["agreement"] == {}
