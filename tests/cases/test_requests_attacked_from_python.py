"""``robustkd.attack("gcg", model, requests)``: the numbers of a campaign, from whatever form a model and its requests have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import robustkd
from robustkd.contracts import DataError, Prompts, TargetError, UsageError
from robustkd.targets import save_target
from support.chat_server import of_model, serving
from support.scripted_answers import ScriptedTarget
from support.toy_language_model import toy_language_model

WORDS = ("say", "it", "hello", "I", "please", "cannot", "a", "b", "c", "d", "e", "f", "word", "open", "door")
REQUESTS = ["say it hello", "please say it", "open door", "hello word I", "a b c d", "I cannot say"]
BEGINNINGS = ["it hello"] * len(REQUESTS)
SEARCH = {"kind": "random-search", "tokens": 4, "steps": 6, "width": 6}
CAMPAIGN = """\
version: 1
name: the-same
data: {name: behaviors, file: r.csv, benign: r.csv}
threat: {attempts: 3}
judges: {says-it: {kind: code, code: "judge.py:says_it"}}
defenses: {toy: {kind: causal-lm, path: model, max_new_tokens: 128}}
attacks:
  direct: {kind: direct}
  search: {kind: random-search, tokens: 4, steps: 6, width: 6}
  gcg: {kind: gcg, tokens: 4, steps: 2, width: 6, top_k: 8}
  prefill: {kind: prefill}
checks: none
"""
JUDGE = "def says_it(requests, outputs):\n    return ['it' in output.split()[:2] for output in outputs]\n"


def says_it(requests: list[str], outputs: list[str]) -> list[bool]:
    return ["it" in output.split()[:2] for output in outputs]


def said(report: Any) -> list[tuple[str, str, bool]]:
    return [(one.prompt, one.output, bool(broken)) for one, broken in zip(report.transcripts, report.success, strict=True)]


def test_numbers_by_hand() -> None:
    answers = {"one": "yes it is", "two": "no", "three": "it", "four": ""}
    model = ScriptedTarget({**answers, "may I": "it", "and I": "no", "or I": "no it"})
    report = robustkd.attack(
        "direct", model, ["one", "two", "three", "four"], judges=says_it, benign=["may I", "and I", "or I"]
    )
    assert report.success.tolist() == [True, False, True, False]
    assert report.robust_accuracy == 1 / 4  # an empty answer has withstood nothing
    assert report.unjudged == 1 / 4
    assert report.useful == 2 / 3
    assert [row["output"] for row in report.rows()] == list(answers.values())
    assert json.loads(report.to_json())["attempts"] == 4
    assert "25.0% not judged" in repr(report)


def test_the_same_as_a_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = toy_language_model(WORDS)
    made.module.save_pretrained("model")
    made.tokenizer.save_pretrained("model")
    Path("judge.py").write_text(JUDGE)
    rows = [f"{request},{aim}" for request, aim in zip(REQUESTS, BEGINNINGS, strict=True)]
    Path("r.csv").write_text("\n".join(["prompt,target", *rows]) + "\n")
    Path("c.yaml").write_text(CAMPAIGN)
    results = robustkd.run("c.yaml", workers=0, track=False)
    attacks = {
        "direct": "direct",
        "search": SEARCH,
        "gcg": {"kind": "gcg", "tokens": 4, "steps": 2, "width": 6, "top_k": 8},
        "prefill": "prefill",
    }
    report = robustkd.evaluate(
        "model", REQUESTS, BEGINNINGS, attacks=list(attacks.values()), judges=says_it, benign=REQUESTS, attempts=3, level="none"
    )
    (defense,) = results.defenses
    assert (report.robust_accuracy, report.useful, report.interval) == (
        defense.robust_accuracy,
        defense.clean_accuracy,
        (defense.ci_low, defense.ci_high),
    )
    assert dict(zip(report.attacks, [one.robust_accuracy for one in report.attacks.values()], strict=True)) == {
        label: next(cell.robust_accuracy for cell in results.cells if cell.attack == name)
        for label, name in zip(report.attacks, attacks, strict=True)
    }
    assert list(report.beside.values()) == ["prefill"]
    order = robustkd.samples(results)
    assert sum(int(one.outcome.attempts.sum()) for one in report.attacks.values()) == int(order.attempts.sum())
    # An attack by itself asks what it asks among others.
    alone = robustkd.attack(SEARCH, (made.module, made.tokenizer), REQUESTS, BEGINNINGS, judges=says_it, attempts=3)
    assert said(alone) == said(report.attacks["random-search(tokens=4, steps=6, width=6)"])
    assert 0 < alone.success.sum() < len(REQUESTS)


def test_every_form_of_a_model_and_of_requests(tmp_path: Path) -> None:
    made = toy_language_model(WORDS)
    folder, saved = tmp_path / "model", tmp_path / "saved"
    made.module.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    saved.mkdir()
    save_target(made, saved)
    models = {
        "target": made,
        "pair": (made.module, made.tokenizer),
        "pipeline": SimpleNamespace(model=made.module, tokenizer=made.tokenizer),
        "folder": folder,
        "saved": str(saved),
        "defense": {"kind": "causal-lm", "path": str(folder)},
    }
    made.max_new_tokens = 128
    rows = [{"prompt": request, "target": "it hello"} for request in REQUESTS[:3]]
    pandas = pytest.importorskip("pandas")
    table = Prompts({"prompt": tuple(REQUESTS[:3]), "target": ("it hello",) * 3}, np.zeros(3, dtype=np.int64))
    forms: list[Any] = [(REQUESTS[:3], BEGINNINGS[:3]), (rows, None), (pandas.DataFrame(rows), None), (table, None)]
    first = robustkd.attack(SEARCH, made, *forms[0], judges=says_it, attempts=2)
    for requests in forms[1:]:
        assert said(robustkd.attack(SEARCH, made, *requests, judges=says_it, attempts=2)) == said(first)
    for name, model in models.items():
        if name == "saved":
            continue  # its answers have the length that it was saved with
        assert said(robustkd.attack(SEARCH, model, *forms[0], judges=says_it, attempts=2)) == said(first), name
    assert len(robustkd.attack("direct", saved, REQUESTS, judges=says_it).transcripts) == len(REQUESTS)


def test_a_served_model_and_models_that_help(tmp_path: Path) -> None:
    local = toy_language_model(WORDS)
    attack = {"kind": "pair", "attacker": "writer", "rounds": 1}
    with serving(of_model(local)) as server:
        served = {"kind": "chat-endpoint", "base_url": server.url, "model": "toy", "max_new_tokens": 6}
        kept = {"answers": tmp_path / "answers", "judges": says_it, "attempts": 3}
        one = robustkd.attack(attack, served, REQUESTS, models={"writer": served}, **kept)
        asked = server.received
        again = robustkd.attack(attack, served, REQUESTS, models={"writer": served}, **kept)
        assert server.received == asked > 0
        two = robustkd.attack(attack, local, REQUESTS, models={"writer": local}, judges=says_it, attempts=3)
        assert said(one) == said(again) == said(two)
        with pytest.raises(TargetError, match=r"attack 'gcg' needs .*tokens, which this target"):
            robustkd.attack("gcg", served, REQUESTS, judges=says_it)
    guarded = {"kind": "perplexity-filter", "model": "bare", "threshold": 0}
    report = robustkd.attack("direct", guarded, REQUESTS, models={"bare": local}, judges=says_it)
    assert all(one.output.startswith("[held back by the guard") for one in report.transcripts)


def test_it_is_left_as_found_and_says_what_it_is_worth() -> None:
    made = toy_language_model(WORDS)
    made.module.train()
    some = next(made.module.parameters())
    report = robustkd.evaluate((made.module, made.tokenizer), REQUESTS, attacks="direct", judges=says_it, benign=REQUESTS)
    assert made.module.training
    assert some.requires_grad
    assert some.grad is None
    assert report.verdict == "not credible"
    assert "no-discrete-search" in repr(report)
    searched = robustkd.evaluate(made, REQUESTS, attacks=SEARCH, judges=says_it, attempts=2)
    assert {finding.name: finding.fired for finding in searched.findings}["over-refusal"]  # nobody knows of what use it is
    assert not {finding.name: finding.fired for finding in searched.findings}["no-discrete-search"]
    failing = robustkd.audit(
        ScriptedTarget(dict.fromkeys(REQUESTS, "no")),
        REQUESTS,
        attacks=["direct", "best-of-n"],
        judges=says_it,
        benign=REQUESTS,
    )
    assert list(failing.failed) == ["best-of-n"]
    assert failing.verdict == "not credible"


def test_what_was_found_can_be_used_again(tmp_path: Path) -> None:
    made = toy_language_model(WORDS)
    report = robustkd.attack(SEARCH, made, REQUESTS, BEGINNINGS, judges=says_it, attempts=3)
    file = tmp_path / "found.jsonl"
    assert f"{int(report.success.sum())} of them broken" in report.save(file)
    again = robustkd.attack({"kind": "test-cases", "files": [str(file)]}, made, REQUESTS, judges=says_it, attempts=1)
    assert again.success.tolist() == report.success.tolist()


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda m: robustkd.attack("gcg", m.module, REQUESTS), "has no tokenizer"),
        (lambda m: robustkd.attack("pgd", m, REQUESTS), "attack 'pgd' is for images"),
        (lambda m: robustkd.attack("direct", m, REQUESTS, eps=0.1), "eps: of images"),
        (lambda m: robustkd.attack("direct", m, REQUESTS, judges="clip-score"), "judge 'clip-score'"),
        (lambda m: robustkd.attack("direct", m, REQUESTS, judges=3), "3 is no judge"),
        (lambda m: robustkd.attack("direct", m, REQUESTS, ["Sure"]), "6 requests and 1 beginnings"),
        (lambda m: robustkd.attack("direct", m, REQUESTS, attempts=0), "attempts is 0"),
        (lambda m: robustkd.attack("direct", "nowhere", REQUESTS), "there is no model at nowhere"),
        (lambda m: robustkd.attack("direct", {"kind": "refusal-sft", "model": "x"}, REQUESTS), "is trained"),
        (lambda m: robustkd.attack("direct", {"kind": "standard", "model": "tiny-cnn"}, REQUESTS), "is for images"),
        (lambda m: robustkd.attack("direct", m, np.zeros((2, 3))), "y is missing"),
        (lambda m: robustkd.attack("direct", m, [""]), "requests are no texts"),
        (lambda m: robustkd.evaluate(m, REQUESTS, level="all"), "level is 'all'"),
        (lambda m: robustkd.attack("pair", m, REQUESTS, attacker="writer"), "refers to 'writer', which was not handed over"),
    ],
)
def test_what_cannot_be(call: Callable[[Any], Any], problem: str) -> None:
    with pytest.raises((UsageError, DataError, TargetError)) as refused:
        call(toy_language_model(WORDS))
    assert problem in str(refused.value)
    assert refused.value.fix
