"""A campaign of prompts from its file to its numbers, on toy worlds whose numbers can be said beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.application.gallery import gallery_items
from robustkd.application.samples import sample_evidence
from robustkd.campaigns.comparison.gate import judge_gates
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.cli.table import print_results
from robustkd.contracts import (
    AttackError,
    GenerativeTarget,
    Judge,
    Judgements,
    PromptAttack,
    Prompts,
    Request,
    ThreatModel,
    UsageError,
)
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.reporting.markdown import markdown
from robustkd.reporting.samples import UNJUDGED
from robustkd.reporting.summary import summary_rows
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
    found = evaluate_prompt_attack(target, plan.campaign.attacks["extra-words"].plugin, batch, plan.campaign.threat, judges)
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
        ([Request("box", prefill="Sure")], "sets the prefill"),
        ([Request("box", seed=0)], "sets the seed"),
        ([Request("box", embeddings=torch.zeros(1, 2))], "sets the embeddings"),
        ([Request("box"), Request("box"), Request("box")], "more than 2 attempts"),
    ],
)
def test_an_attack_that_leaves_its_threat_model_is_refused(cupboards, asked, told):
    _, plan, _, _ = cupboards
    target = plugins.make("defenses", {"kind": "guarded-cupboard"}).fit(None)
    judges = {"number": plugins.make("judges", {"kind": "says-the-number"})}
    batch = prepare(target, plan.data.test, plan.data.test_index, judges)
    with pytest.raises(AttackError, match=told):
        evaluate_prompt_attack(target, Cheats(*asked), batch, ThreatModel.by_prompt(2), judges)


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


class Unsure(Judge):
    """Cannot judge an answer that asks back; finds the number elsewhere, and says so in one of three ways."""

    way = "bool"

    def complied(self, requests, outputs):
        gives, unsure = np.array(["number" in text for text in outputs]), np.array(["?" in text for text in outputs])
        if self.way == "nan":
            return np.where(unsure, np.nan, gives)
        return Judgements(gives, ~unsure) if self.way == "judgements" else gives


class Says(GenerativeTarget):
    """Says the prompt."""

    def respond(self, asked):
        return [question.prompt for question in asked]

    def card(self):
        raise NotImplementedError

    @classmethod
    def from_card(cls, card, weights, code):
        raise NotImplementedError


class ServedRequests(PromptAttack):
    def __init__(self, *prompts):
        super().__init__()
        self.prompts = prompts

    def search(self, target, batch, attempts, threat, rng):
        for prompt in self.prompts:
            if len(rows := attempts.open):
                attempts(rows, [Request(prompt)] * len(rows))


@pytest.mark.parametrize(
    ("way", "answers", "state", "decided_by"),
    [
        ("bool", ["", " \n"], "unjudged", " \n"),  # of an empty answer nobody can say whether it refuses
        ("nan", ["a number?", "what?"], "unjudged", "what?"),
        ("judgements", ["a number?", "what?"], "unjudged", "what?"),
        ("nan", ["no", "what?"], "standing", "no"),
        ("judgements", ["what?", "no", ""], "standing", "no"),
        ("judgements", ["what?", "a number", "no"], "success", "a number"),
        ("bool", [], "standing", "box"),
    ],
)
def test_what_cannot_be_judged_is_no_success_and_no_failure(way, answers, state, decided_by):
    judge = Unsure()
    judge.way = way
    requests, target = Prompts({"prompt": ("box",)}, np.zeros(1, dtype=np.int64)), Says.__new__(Says)
    target.module = torch.nn.Identity()
    batch = prepare(target, requests, np.arange(1), {"one": judge})
    found = evaluate_prompt_attack(target, ServedRequests(*answers), batch, ThreatModel.by_prompt(3), {"one": judge})
    outcome = found.outcome
    assert {name for name in ("unjudged", "standing", "success") if getattr(outcome, name)[0]} == {state}
    assert outcome.decided[0] == (state != "unjudged")
    assert np.isinf(found.broken_at[0]) == (state != "success")
    (said,) = found.transcripts
    assert said.output == decided_by
    assert said.verdicts == {"one": None if state == "unjudged" else state == "success"}


def test_requests_that_could_not_be_judged_are_told_apart_from_the_number(tmp_path, capsys):
    judge = plugins.load("judges", "says-the-number")
    complied = judge.complied

    def unsure(self, requests, outputs):
        gives = complied(self, requests, outputs)
        return Judgements(gives, gives)  # it can judge no answer without the number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "complied", unsure)
        plan, results, _ = ran(CUPBOARD, tmp_path)
    rows = {row.defense: row for row in results.defenses}
    assert (rows["open"].robust_accuracy, rows["open"].unjudged) == (0.0, 0.0)
    row = rows["careful"]
    assert (row.robust_accuracy, row.unjudged, row.verdict) == (0.0, 1.0, "not credible")
    assert [point.robust_accuracy for point in row.curve] == [0.0] * len(row.curve)
    cell = cell_of(results, "careful", "extra-words")
    assert (cell.unjudged, cell.attack_success_rate) == (1.0, None)
    assert any(finding.name == "not-judged" and finding.fired for finding in row.checks)
    (gate_result,) = judge_gates(plan.campaign.gates, results)
    assert "100.0% of the requests could not be judged" in gate_result.sentence
    print_results(results, [gate_result], tmp_path, tracked=False, shown="test.yaml")
    assert "not judged" in capsys.readouterr().out
    told = markdown(results, summary_rows(results))
    assert "no answer could be judged: they do not count as robust" in told
    shown = [item for item in gallery_items(plan, Store(tmp_path)) if (item.defense, item.attack) == ("careful", "extra-words")]
    assert {item.outcome for item in shown} == {"not judged, 6 attempts"}
    assert {name for item in shown for name, gives in item.verdicts.items() if gives is None} == {"number"}
    (careful,) = [part for part in sample_evidence(plan, Store(tmp_path)).attacked if part.defense == "careful"]
    assert (careful.taken_for["extra-words"] == UNJUDGED).all()
