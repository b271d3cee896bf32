"""A universal suffix is found on training requests, and counts on others: on the attacked model, on several, on one that only answers."""

from __future__ import annotations

from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import robustkd
from robustkd import plugins
from robustkd.cli import cli
from robustkd.contracts import RobustkdError
from support.answers_by_rule import ByRule
from support.toy_language_model import toy_language_model

WORDS = ("say", "it", "hello", "I", "please", "cannot", "a", "b", "c", "d", "e", "f", "word", "open", "door")
EVERY = [" ".join(words) for words in permutations(("say", "please", "open", "door", "hello"), 3)]
TRAINING, REQUESTS = EVERY[1::4], list(islice(EVERY, 0, 60, 5))
SEARCH = {"kind": "universal-gcg", "tokens": 6, "steps": 60, "width": 24, "top_k": 8, "requests": 4, "kept": 2}


def settings(word: str, **more: Any) -> dict[str, Any]:
    """The answer is to begin with a word."""
    rows = [{"prompt": prompt, "target": word} for prompt in TRAINING]
    judge = lambda requests, outputs: [output.split()[:1] == [word] for output in outputs]  # noqa: E731
    return {"judges": judge, "attempts": 2, "fit_data": rows, "seed": 0} | more


def broken(attack: Any, target: Any, word: str = "open", **more: Any) -> int:
    found = robustkd.attack(attack, target, REQUESTS, [word] * len(REQUESTS), **settings(word, **more))
    return int(found.success.sum())


def test_it_breaks_requests_that_it_was_not_found_on_and_its_control_breaks_fewer() -> None:
    target, words = toy_language_model(WORDS, seed=1), ("I", "a", "c", "open")
    searched, control = (sum(broken(attack, target, word) for word in words) for attack in (SEARCH, SEARCH | {"steps": 0}))
    assert searched >= control + 12, (searched, control, "of", 4 * len(REQUESTS))


def test_all_requests_get_the_same_suffixes_and_no_more_attempts_than_are_kept() -> None:
    found = robustkd.attack(SEARCH, toy_language_model(WORDS), REQUESTS, ["d"] * len(REQUESTS), **settings("d", attempts=9))
    said = {one.prompt.removeprefix(one.request) for one in found.transcripts if one.attempts}
    assert 1 <= len(said) <= 2
    assert max(one.attempts for one in found.transcripts) <= 2


def test_found_on_two_models_it_is_tried_on_one_that_only_answers() -> None:
    known = toy_language_model(WORDS, seed=1)
    served = ByRule(lambda asked: known.respond([asked])[0])
    models = {"one": toy_language_model(WORDS, seed=1), "other": toy_language_model(WORDS)}
    alone = broken(SEARCH | {"models": ["one"]}, served, models=models)
    assert alone >= broken(SEARCH | {"models": ["one"], "steps": 0}, served, models=models) + 4
    broken(SEARCH | {"models": ["one", "other"], "steps": 3}, served, models=models)
    attack = plugins.make("attacks", SEARCH | {"models": ["one"]})
    assert attack.missing(served.capabilities) == []
    assert plugins.make("attacks", SEARCH).missing(served.capabilities)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fit_data": None}, "learns from training requests"),
        ({"fit_data": [{"prompt": prompt, "target": "it"} for prompt in REQUESTS]}, "no training request"),
    ],
)
def test_without_other_requests_to_learn_from_it_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(RobustkdError, match=said):
        broken(SEARCH, toy_language_model(WORDS), **more)


def test_models_of_different_tokenizers_are_refused_by_name() -> None:
    models = {"one": toy_language_model(WORDS), "other": toy_language_model((*WORDS, "more"))}
    with pytest.raises(RobustkdError, match="'one' and 'other' have different tokenizers"):
        broken(SEARCH | {"models": ["one", "other"]}, toy_language_model(WORDS), models=models)


@pytest.mark.parametrize("attack", ["human-jailbreaks", SEARCH])
def test_templates_and_suffixes_of_other_requests_are_no_search(attack: Any) -> None:
    report = robustkd.evaluate(
        toy_language_model(WORDS), REQUESTS[:3], ["d"] * 3, attacks=["direct", attack], benign=REQUESTS[3:5], **settings("d")
    )
    finding = next(found for found in report.findings if found.name == "no-discrete-search")
    assert finding.fired
    assert report.verdict == "not credible"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "attack 'all' learns, but the data 'behaviors' have no training part"),
        (
            {"training": "other.csv"},
            "attack 'all' needs embeddings and gradients and log-probabilities and tokens of the targets of 'served'",
        ),
    ],
)
def test_what_it_cannot_learn_from_is_refused_when_a_campaign_is_planned(
    tmp_path: Path, data: dict[str, str], said: str
) -> None:
    for name, words in {"asked": ("it",), "other": ("one", "two", "three", "four")}.items():
        rows = "".join(f"say {word},Sure\n" for word in words)
        (tmp_path / f"{name}.csv").write_text(f"prompt,target\n{rows}", encoding="utf-8")
    campaign = {
        "version": 1,
        "name": "asked",
        "data": {"name": "behaviors", "file": "asked.csv", **data},
        "threat": {"attempts": 2},
        "judges": {"phrases": {"kind": "refusal-match"}},
        "defenses": {"served": {"kind": "chat-endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m"}},
        "attacks": {"all": {"kind": "universal-gcg", "models": ["served"]}},
    }
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(campaign), encoding="utf-8")
    done = CliRunner().invoke(cli, ["plan", str(tmp_path / "asked.yaml")])
    assert said in str(done.exception)
