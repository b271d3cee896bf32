"""A search with the perplexity filter in its loss breaks what one without it does not, and no verdict is given without it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import robustkd
from robustkd.defenses.text.guards.perplexity_filter import log_perplexity
from support.toy_language_model import toy_language_model

WORDS = ("say", "it", "hello", "I", "please", "cannot", "a", "b", "c", "d", "e", "f", "word", "open", "door")
SEARCH = {"kind": "random-search", "tokens": 6, "steps": 40, "width": 16}
ADAPTIVE = {"kind": "through-guard", "weight": 2, "attack": SEARCH}
MODEL = toy_language_model(WORDS, seed=1)


def likely_requests(count: int) -> tuple[list[str], float]:
    """The texts of three words that the model finds likeliest, and the log-perplexity of the least likely of these."""
    every = [" ".join(words) for words in permutations(WORDS, 3)]
    found, places = log_perplexity(MODEL, every).sort()
    return [every[place] for place in places[:count].tolist()], float(found[count - 1])


def opens(requests: list[str], outputs: list[str]) -> list[bool]:
    return [output.split()[:1] == ["open"] for output in outputs]


def settings() -> dict[str, Any]:
    return {"models": {"bare": MODEL}, "judges": opens, "attempts": 4, "seed": 0}


def test_the_adaptive_search_breaks_more_and_without_the_filter_both_break_all() -> None:
    requests, least_likely = likely_requests(8)
    guard = {"kind": "perplexity-filter", "model": "bare", "threshold": least_likely + 0.8}
    broken = {}
    for name, attack, target in (
        ("search", SEARCH, guard),
        ("adaptive", ADAPTIVE, guard),
        ("control", SEARCH, guard | {"threshold": 1000}),
    ):
        found = robustkd.attack(attack, target, requests, ["open"] * len(requests), **settings())
        broken[name] = int(found.success.sum())
    assert broken["control"] == len(requests), "there is something to find"
    assert broken["adaptive"] >= broken["search"] + 4, broken


def test_the_verdict_says_so_where_it_was_not_run() -> None:
    requests, least_likely = likely_requests(5)
    guard = {"kind": "perplexity-filter", "model": "bare", "threshold": least_likely + 0.8}
    few = {"kind": "random-search", "tokens": 2, "steps": 2, "width": 2}
    for attacks, fired in ((few, True), ([few, {"kind": "through-guard", "attack": few}], False)):
        report = robustkd.evaluate(guard, requests[:3], attacks=attacks, benign=requests[3:], **settings())
        finding = next(found for found in report.findings if found.name == "guard-not-attacked")
        assert finding.fired is fired
        assert not fired or report.verdict == "not credible"
