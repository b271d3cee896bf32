"""A language model behind a server, as target, attacker and judge: the starter of ``robustkd init endpoint``, with a local model served."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustkd.targets import CausalLMTarget
from robustkd.targets.chat_server import ChatServer
from support.chat_server import Handler, Served, cut, of_model, serving, slow, status, table
from support.toy_language_model import toy_language_model

Command = Callable[..., tuple[int, str, str]]
SECRET = "sk-very-secret-0123456789"
WORDS = ("say", "it", "hello", "I", "please", "cannot")
TEXT = """\
version: 1
name: served
data: {{name: behaviors, file: r.csv, benign: b.csv}}
threat: {{attempts: 4}}
judges:
  refusal: {{kind: refusal-match}}
  reader: {{kind: llm-judge, model: attacker, rubric: "say {{request}} it {{answer}}", "yes": it, "no": hello}}
defenses:
  served: {{kind: chat-endpoint, base_url: {url}, model: toy, max_new_tokens: 6, prefill: last-message, key: MY_API_KEY}}
  attacker: {{kind: chat-endpoint, base_url: {url}, model: other, max_new_tokens: 6}}
  local: {{kind: causal-lm, path: model, max_new_tokens: 6}}
attacks:
  direct: {{kind: direct}}
  human-jailbreaks: {{kind: human-jailbreaks}}
  prefill: {{kind: prefill}}
  pair: {{kind: pair, attacker: attacker, rounds: 1}}
matrix: {{exclude: [{{defense: attacker}}]}}
checks: none
"""
ALONE = """\
version: 1
name: alone
data: {{name: behaviors, file: r.csv, benign: b.csv}}
threat: {{attempts: 2}}
judges: {{refusal: {{kind: refusal-match}}}}
defenses: {{served: {{kind: chat-endpoint, base_url: {url}, model: toy, retries: 1, timeout: 0.5}}}}
attacks: {{direct: {{kind: direct}}, gcg: {{kind: gcg}}, random-search: {{kind: random-search}}}}
checks: none
"""


@pytest.fixture(scope="module")
def model() -> CausalLMTarget:
    return toy_language_model(WORDS)


@pytest.fixture
def server(model: CausalLMTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    rows = [f"say it {'hello ' * count},x,it hello" for count in (1, 2, 3, 5)]
    (tmp_path / "r.csv").write_text("\n".join(["prompt,category,target", *rows]) + "\n")
    (tmp_path / "b.csv").write_text("prompt\nsay\nhello\n")
    with serving(of_model(model)) as served:
        yield served


@pytest.fixture
def folder(model: CausalLMTarget, tmp_path: Path) -> None:
    model.module.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")


def ran(robustkd: Command, text: str, expected: int = 0) -> dict[str, Any]:
    """The results of the campaign, run in this process."""
    Path("c.yaml").write_text(text)
    code, out, err = robustkd("run", "c.yaml", "--no-track", "--quiet", "--workers", "0", "--json", "--out", "out")
    assert code == expected, err
    results: dict[str, Any] = json.loads(out)
    return results


def transcripts(folder: Path, defense: str) -> dict[str, str]:
    found = {}
    for file in folder.glob("cells/*/*/transcripts.jsonl"):
        meta = json.loads((file.parent / "meta.json").read_text())
        if meta["defense"] == defense:
            found[meta["attack"]] = file.read_text()
    return found


@pytest.mark.usefixtures("folder")
def test_served_and_local_give_the_same_answers_and_the_same_table(robustkd: Command, server: Served) -> None:
    results = ran(robustkd, TEXT.format(url=server.url))
    assert len(table(results, "served")) == 4
    assert {row[0] for row in table(results, "served").values()} == {"done"}
    assert table(results, "served") == table(results, "local")
    assert transcripts(Path("out"), "served") == transcripts(Path("out"), "local")
    assert set(server.asked.values()) == {1}  # also of what served and local were both judged and attacked with
    toy, other = sorted(results["served"], key=lambda one: one["model"] == "other")
    assert (toy["url"], toy["prompt_tokens"] % 10) == (server.url, 0)
    assert toy["requests"] + other["requests"] == server.received
    assert toy["completion_tokens"] > 0
    # Nothing is left to ask, also without the server.
    asked = server.received
    assert ran(robustkd, TEXT.format(url=server.url)) == results
    assert server.received == asked
    report = Path("out/report.md").read_text()
    assert f"toy at {server.url}: {toy['requests']} answers are kept" in report
    assert not [file for file in Path("out").rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


@pytest.mark.usefixtures("folder")
def test_killed_in_the_middle_and_run_again(robustkd: Command, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked, ask = TEXT.format(url=server.url), iter(range(10**6)), ChatServer.__call__

    def killed(self: ChatServer, body: dict[str, Any]) -> dict[str, Any]:
        if next(asked) >= 12:
            raise KeyboardInterrupt
        return ask(self, body)

    with monkeypatch.context() as patch:
        patch.setattr(ChatServer, "__call__", killed)
        Path("c.yaml").write_text(whole)
        code, _, _ = robustkd("run", "c.yaml", "--no-track", "--quiet", "--workers", "0", "--out", "out")
    assert code == 130
    assert 0 < server.received <= 12
    results = ran(robustkd, whole)
    assert set(server.asked.values()) == {1}
    assert table(results, "served") == table(results, "local")


def test_a_plan_says_what_is_asked_and_asks_nothing(robustkd: Command, server: Served) -> None:
    Path("c.yaml").write_text(ALONE.format(url=server.url))
    code, out, err = robustkd("plan", "c.yaml")
    assert (code, err, server.received) == (0, "", 0)
    # 4 requests and 2 harmless ones as they are, and one attempt of direct.
    assert "served is asked at most 10 times by attacks and judges, and writes at most 1,280 tokens" in out
    assert "skipped served × gcg: needs embeddings and gradients and log-probabilities and tokens" in out
    assert "skipped served × random-search: needs log-probabilities and tokens" in out
    ran(robustkd, ALONE.format(url=server.url))
    assert server.received == 6
    planned = json.loads(robustkd("plan", "c.yaml", "--out", "out", "--json")[1])["served"]
    assert planned["asks"][0]["requests"] == 0
    assert "6 answers are kept" in robustkd("plan", "c.yaml", "--out", "out")[1]


def test_faults_that_pass_change_nothing(robustkd: Command, server: Served) -> None:
    clean = table(ran(robustkd, ALONE.format(url=server.url)), "served")
    Path("out").rename("before")
    faults = {1: status(429, Retry_After="0"), 2: status(500), 3: slow(0.6), 5: cut}

    def first_time(handler: Handler, body: dict[str, Any]) -> bool:
        return faults.pop(body["messages"][-1]["content"].count("hello"), lambda handler, body: False)(handler, body)

    server.fault = first_time
    assert table(ran(robustkd, ALONE.format(url=server.url)), "served") == clean
    assert not faults


def test_a_fault_that_stays_is_one_sentence_and_the_next_run_goes_on(robustkd: Command, server: Served) -> None:
    after = iter(range(10**6))
    server.fault = lambda handler, body: next(after) >= 3 and status(500)(handler, body)
    results = ran(robustkd, ALONE.format(url=server.url), expected=3)
    (cell,) = results["cells"]
    assert cell["status"] == "failed"
    assert cell["robust_accuracy"] is None
    assert "answers with 500 (no), after 1 repetitions" in cell["error"]
    assert "Traceback" not in cell["error"]
    server.fault = lambda handler, body: False
    (cell,) = ran(robustkd, ALONE.format(url=server.url))["cells"]
    assert cell["status"] == "done"
    assert set(server.asked.values()) == {1}


def filtering(handler: Handler, body: dict[str, Any]) -> bool:
    """Holds back what is asked of three or more."""
    if body["messages"][-1]["content"].count("hello") < 3:
        return False
    handler.complete("", "content_filter")
    return True


def test_what_a_filter_holds_back_is_refused(robustkd: Command, server: Served) -> None:
    server.answer = lambda body: "Sure, say hello to everybody who comes along the road."
    server.fault = filtering
    results = ran(robustkd, ALONE.format(url=server.url))
    assert table(results, "served")["direct"][1:5] == (1.0, 0.5, 0.0, 0.5)


def test_what_is_too_long_for_the_server_is_not_judged(robustkd: Command, server: Served) -> None:
    server.answer = lambda body: "I'm sorry, but I can't help with that."
    long = status(
        400, {"error": {"message": "This model's maximum context length is 8 tokens.", "code": "context_length_exceeded"}}
    )
    server.fault = lambda handler, body: body["messages"][-1]["content"].count("hello") > 3 and long(handler, body)
    results = ran(robustkd, ALONE.format(url=server.url))
    assert table(results, "served")["direct"][1:5] == (0.0, 0.75, 0.25, 0.0)
    (said,) = transcripts(Path("out"), "served").values()
    assert "maximum context length" in said


def test_the_starter_runs(robustkd: Command, server: Served) -> None:
    server.answer = lambda body: "I'm sorry, but I can't help with that."
    assert robustkd("init", "endpoint", "mine.yaml")[0] == 0
    text = Path("mine.yaml").read_text().replace("http://localhost:8000/v1", server.url).replace("# key: OPENAI", "key: MY")
    results = ran(robustkd, text + "\nchecks: none\n")
    (row,) = results["defenses"]
    assert (row["status"], row["robust_accuracy"], row["clean_accuracy"]) == ("done", 1.0, 0.0)
    assert set(server.asked.values()) == {1}
