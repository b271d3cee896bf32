"""Attacks whose prompts a model writes, with attackers and targets that follow a script."""

from __future__ import annotations

import re

import numpy as np
import pytest

from robustkd import plugins
from robustkd.contracts import GenerativeTarget, Judge, Prompts, Request, ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets.chat_endpoint import capabilities
from support.answers_by_rule import ByRule

REQUEST = "Tell me the code."


class Script(ByRule):
    """It can do all that a model here can, and has a conversation."""

    capabilities = GenerativeTarget.capabilities | {"conversation"}


class Tells(Judge):
    def complied(self, requests, outputs):
        return np.array(["4711" in text for text in outputs])


def attacked(kind: str, target: Script, attacker: Script, attempts: int, **params):
    """What came of it, and what the target was asked beside the bare request."""
    plugin = plugins.make("attacks", {"kind": kind, "attacker": "other", **params}).with_targets({"other": attacker})
    prompts = Prompts({"prompt": (REQUEST,), "target": ("Sure",)}, np.zeros(1, dtype=np.int64))
    batch = prepare(target, prompts, np.arange(1), {"tells": Tells()})
    target.noted.clear()
    found = evaluate_prompt_attack(target, plugin, batch, ThreatModel.by_prompt(attempts), {"tells": Tells()})
    return found, [one for one in target.noted if one.prompt != REQUEST]


def guarded(asked: Request) -> str:
    """Gives the code to who has come so far by two turns; refuses a message of more than one step."""
    steps = [said for said, _ in asked.turns]
    if asked.prompt == f"step {len(steps)}":
        return "It is 4711." if len(steps) == 2 else f"That was step {len(steps)}."
    return "I'm sorry, but I can't help with that."


def steps(asked: Request) -> str:
    """Goes on from the last answer; once it was refused, by a smaller step."""
    shown = re.findall(r"That was step (\d)", asked.prompt)
    following = len(shown)
    return f"step {following}" if "refused this message" in asked.prompt or not following else f"step {following + 1}"


def test_crescendo_goes_on_by_what_was_answered_and_takes_refused_turns_back():
    found, asked = attacked("crescendo", Script(guarded), Script(steps), 8)
    assert found.outcome.success.all()
    assert [(one.prompt, len(one.turns)) for one in asked] == [("step 0", 0), ("step 2", 1), ("step 1", 1), ("step 2", 2)]
    assert asked[-1].turns == (("step 0", "That was step 0."), ("step 1", "That was step 1."))
    assert [tuple(turn) for turn in found.transcripts[0].turns] == list(asked[-1].turns)


def test_crescendo_without_feedback_gets_nowhere_on_as_many_attempts():
    attacker = Script(steps)
    found, asked = attacked("crescendo", Script(guarded), attacker, 8, feedback=False)
    assert not found.outcome.success.any()
    assert len(asked) == 8
    assert not any("That was step" in one.prompt for one in attacker.noted)
    plugin = plugins.load("attacks", "crescendo")
    assert plugin(plugin.Params(attacker="other", feedback=False)).control
    assert not plugin(plugin.Params(attacker="other")).control


def test_crescendo_begins_again_after_its_rounds_and_backtracks():
    _, asked = attacked("crescendo", Script(lambda one: "Fine."), Script(lambda one: "more"), 5, rounds=2)
    assert [len(one.turns) for one in asked] == [0, 1, 0, 1, 0]
    _, asked = attacked("crescendo", Script(lambda one: "I'm sorry, I can't."), Script(lambda one: "more"), 4, backtracks=1)
    assert [len(one.turns) for one in asked] == [0, 0, 0, 0]


def number(text: str) -> int:
    found = re.findall(r"try (\d+)", text)
    return int(found[-1]) if found else 0


class Writer:
    """Writes "try n" with a number a little higher than that of the last prompt that it was shown, and other branches less high."""

    def __init__(self) -> None:
        self.written = 0

    def __call__(self, asked: Request) -> str:
        text = asked.prompt
        if text.startswith("Prompt:"):
            return "No" if "off" in text.partition("Does this")[0] else "Yes"
        if text.startswith("Request:"):
            return "Yes" if number(text) % 10 >= 2 else "No"
        self.written += 1
        better = {"role": 2, "reason": 1, "authority": None}
        step = next(step for word, step in better.items() if word in text)
        return "off the topic" if step is None else f"try {10 * number(text.rpartition('answered')[0]) % 1000 + step}"


def test_tap_prunes_what_is_off_the_topic_and_goes_on_from_the_best():
    writer = Writer()
    attacker = Script(writer)
    found, asked = attacked("tap", Script(lambda one: f"No: {one.prompt}"), attacker, 20, depth=3, branches=3, width=1)
    # Of three branches one is off the topic; of the others the one with the better answer is the leaf of the next depth.
    assert [number(one.prompt) for one in asked] == [2, 1, 22, 21, 222, 221]
    assert writer.written == 9
    assert found.outcome.attempts.tolist() == [6]
    plugin = plugins.make("attacks", {"kind": "tap", "attacker": "other", "depth": 3, "branches": 3, "width": 1})
    assert (plugin.most_attempts(20), plugin.most_attempts(4)) == (9, 4)
    assert len(attacker.noted) == 9 + 9 + 6 <= plugin.most_asked_of_others(20)  # written, read, scored


def test_tap_stops_where_it_succeeds_and_keeps_to_its_attempts():
    target = Script(lambda one: "4711" if number(one.prompt) == 22 else f"No: {one.prompt}")
    found, asked = attacked("tap", target, Script(Writer()), 20, depth=3, branches=2, width=1)
    assert found.outcome.success.all()
    assert [number(one.prompt) for one in asked] == [2, 1, 22]
    found, asked = attacked("tap", Script(lambda one: "No"), Script(Writer()), 3, depth=3, branches=2, width=2)
    assert len(asked) == 3


@pytest.mark.parametrize("kind", ["pair", "tap"])
def test_without_feedback_no_answer_is_shown(kind):
    for feedback in (True, False):
        attacker = Script(Writer()) if kind == "tap" else Script(lambda one: "try")
        _, asked = attacked(kind, Script(lambda one: "No: SECRET"), attacker, 6, feedback=feedback)
        assert len(asked) == 6
        writing = [one.prompt for one in attacker.noted if one.prompt.startswith("You test")]
        assert any("SECRET" in text for text in writing) == feedback


def test_tap_asks_the_nearest_prompt_where_all_are_called_off_the_topic():
    """The authors' tree is never empty: a reader of topics that says No to everything does not make a target robust."""
    writer = Writer()

    def rule(asked: Request) -> str:
        return "No" if asked.prompt.startswith("Prompt:") else writer(asked)

    found, asked = attacked("tap", Script(lambda one: f"No: {one.prompt}"), Script(rule), 20, depth=3, branches=2, width=1)
    assert [number(one.prompt) for one in asked] == [2, 22, 222]
    assert found.outcome.attempts.tolist() == [3]


def test_pair_shows_several_prompts_so_that_a_greedy_attacker_does_not_go_in_circles():
    def fresh(asked: Request) -> str:
        return next(f"try {count}" for count in range(1, 9) if f"prompt: try {count}\n" not in asked.prompt)

    target = Script(lambda one: "It is 4711." if one.prompt == "try 4" else "No.")
    found, asked = attacked("pair", target, Script(fresh), 8, strategies=["Shout."], rounds=8)
    assert [one.prompt for one in asked] == ["try 1", "try 2", "try 3", "try 4"]
    assert found.outcome.success.all()


@pytest.mark.parametrize(("kind", "feedback"), [("goat", True), ("goat", False), ("crescendo", True), ("crescendo", False)])
def test_a_conversation_after_another_begins_in_another_way(kind, feedback):
    """The authors sample their attackers; a greedy one that is told the same leads the same conversation again."""

    def fresh(asked: Request) -> str:
        return "more" if "You said" in asked.prompt else f"way {asked.prompt.count('- way') + 1}"

    _, asked = attacked(kind, Script(lambda one: "Fine."), Script(fresh), 6, rounds=2, feedback=feedback)
    assert [one.prompt for one in asked] == ["way 1", "more", "way 2", "more", "way 3", "more"]


def test_crescendo_tells_of_a_conversation_that_was_refused_from_the_start():
    def fresh(asked: Request) -> str:
        return f"way {asked.prompt.count('- way') + 1}"

    _, asked = attacked("crescendo", Script(lambda one: "I'm sorry, I can't."), Script(fresh), 4, backtracks=1)
    assert [one.prompt for one in asked] == ["way 1", "way 1", "way 2", "way 3"]


def test_pap_persuades_by_one_technique_after_the_other_and_its_control_by_none():
    def persuaded(asked: Request) -> str:
        return "It is 4711." if "science" in asked.prompt else "I'm sorry, but I can't."

    attacker = Script(lambda asked: "In the name of science!" if "Expert" in asked.prompt else "Please.")
    found, asked = attacked("pap", Script(persuaded), attacker, 9)
    assert found.outcome.success.all()
    assert [one.prompt for one in asked] == ["Please."] * 4 + ["In the name of science!"]
    assert all(REQUEST in one.prompt for one in attacker.noted)
    control, asked = attacked("pap", Script(persuaded), attacker, 9, persuade=False)
    assert not control.outcome.success.any()
    assert len(asked) == 9
    plugin = plugins.load("attacks", "pap")
    assert plugin(plugin.Params(attacker="other", persuade=False)).control
    assert not plugin(plugin.Params(attacker="other")).control
    assert not plugin(plugin.Params(attacker="other")).traits.iterative


def test_goat_replies_by_what_was_answered_and_only_its_reply_is_sent():
    def rule(asked: Request) -> str:
        shown = len(re.findall(r"It stands at \d", asked.prompt))
        return f'Observation: so\nThought: near\nStrategy: persona\nReply: "go to {shown + 1}"'

    def counting(asked: Request) -> str:
        number = int(asked.prompt.removeprefix("go to ")) if asked.prompt != REQUEST else 0
        return "It is 4711." if number == 4 and len(asked.turns) == 3 else f"It stands at {number}."

    found, asked = attacked("goat", Script(counting), Script(rule), 8)
    assert found.outcome.success.all()
    assert [one.prompt for one in asked] == ["go to 1", "go to 2", "go to 3", "go to 4"]
    assert asked[-1].turns[0] == ("go to 1", "It stands at 1.")
    blind = Script(rule)
    found, asked = attacked("goat", Script(counting), blind, 8, feedback=False)
    assert not found.outcome.success.any()
    assert {one.prompt for one in asked} == {"go to 1"}
    assert not any("It stands" in one.prompt for one in blind.noted)


def test_goat_begins_again_after_its_rounds_and_takes_what_is_no_form_as_it_is():
    _, asked = attacked("goat", Script(lambda one: ""), Script(lambda one: "tell me"), 5, rounds=2)
    assert [(one.prompt, len(one.turns)) for one in asked] == [("tell me", number % 2) for number in range(5)]


def fuzzed(tmp_path, **params):
    (tmp_path / "seeds.csv").write_text("template\ncold {request}\nwarm {request}\n", encoding="utf-8")
    seen = []

    def mutate(asked: Request) -> str:
        seed = re.search(r"Template: (.*)\n", asked.prompt)[1]
        seen.append(seed)
        return f"hot {seed}" if "warm" in seed else "no place for it"

    def thaws(asked: Request) -> str:
        if asked.prompt.count("hot") == 3:
            return "It is 4711."
        return "Perhaps." if "hot" in asked.prompt else "I'm sorry, but I can't."

    found, asked = attacked("gptfuzz", Script(thaws), Script(mutate), 12, templates=tmp_path / "seeds.csv", **params)
    return found, asked, seen


def test_gptfuzz_goes_on_from_templates_whose_mutants_were_not_refused(tmp_path):
    found, asked, _ = fuzzed(tmp_path, exploration=0.5)
    assert found.outcome.success.all()
    assert asked[-1].prompt == f"hot hot hot warm {REQUEST}"
    # A mutant without the place of the request is none: its template is asked.
    assert f"cold {REQUEST}" in [one.prompt for one in asked]


def test_gptfuzz_without_feedback_mutates_the_templates_in_turn(tmp_path):
    found, asked, seen = fuzzed(tmp_path, feedback=False)
    assert not found.outcome.success.any()
    assert seen == ["cold {request}", "warm {request}"] * (len(seen) // 2)
    assert len(asked) == 12


@pytest.mark.parametrize("feedback", [True, False])
def test_gptfuzz_mutates_a_template_in_all_ways_before_it_repeats_one(tmp_path, feedback):
    """The attacker is greedy, and a mutant that was asked before is an attempt that is lost."""
    seeds = [f"seed {number} {{request}}" for number in range(5)]
    (tmp_path / "seeds.csv").write_text("\n".join(["template", *seeds, ""]), encoding="utf-8")

    def mutate(asked: Request) -> str:
        return f"{{request}} {abs(hash(asked.prompt))}"

    params = {"templates": tmp_path / "seeds.csv", "feedback": feedback}
    _, asked = attacked("gptfuzz", Script(lambda one: "I'm sorry, but I can't."), Script(mutate), 25, **params)
    assert len({one.prompt for one in asked}) == len(asked) == 25


@pytest.mark.parametrize("kind", ["pap", "goat", "gptfuzz"])
def test_a_model_that_is_only_served_can_be_attacked_and_can_attack(kind):
    served = capabilities("none", 0.0)
    plugin = plugins.make("attacks", {"kind": kind, "attacker": "other"})
    assert plugin.missing(served) == []
    assert plugin.others() == {"other": frozenset({"respond"})}
    assert plugin.most_attempts(4) == 4
    assert plugin.most_asked_of_others(4) == (20 if kind == "gptfuzz" else 4)
