"""A server that others keep, `transformers serve`, in a process of its own: what it serves is what the same model is locally."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
import transformers.utils.import_utils

from support.campaigns import tiny_campaign
from support.chat_server import table
from support.toy_language_model import toy_language_model

# The first of transformers 5 cannot tell whether they can serve.
serves = getattr(transformers.utils.import_utils, "is_serve_available", lambda: False)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not serves(), reason="pip install 'transformers[serving]'"),
]
Command = Callable[..., tuple[int, str, str]]
WORDS = ("say", "it", "hello", "I", "please", "cannot")
TEXT = tiny_campaign(
    "served",
    {
        "served": '{kind: chat-endpoint, base_url: "URL", model: FOLDER, max_new_tokens: 6, concurrency: 1}',
        "local": "{kind: causal-lm, path: model, max_new_tokens: 6}",
        "reminded": '{kind: self-reminder, model: served, before: "please ", behind: " hello"}',
        "reminded-here": '{kind: self-reminder, model: local, before: "please ", behind: " hello"}',
    },
    {
        "direct": "{kind: direct}",
        "human-jailbreaks": "{kind: human-jailbreaks}",
        "best-of-n": "{kind: best-of-n}",
        "pair": "{kind: pair, attacker: local, rounds: 1}",
    },
    data="{name: behaviors, file: r.csv, benign: b.csv}",
    threat="{attempts: 4}",
    judges="{refusal: {kind: refusal-match}}",
)


@dataclass(frozen=True)
class Server:
    text: str
    log: Path

    @property
    def answered(self) -> int:
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    model = toy_language_model(WORDS, max_position_embeddings=256)
    model.module.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    rows = [f"say it {'hello ' * count},x,it hello" for count in (1, 2, 3)]
    Path("r.csv").write_text("\n".join(["prompt,category,target", *rows]) + "\n")
    Path("b.csv").write_text("prompt\nsay\nhello\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder, log = str(tmp_path / "model"), tmp_path / "serve.log"
    call = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--device", "cpu", "--host", "127.0.0.1"]
    with log.open("w") as said:
        process = subprocess.Popen([*call, "--port", port], stdout=said, stderr=said)
    try:
        ask = build_opener(ProxyHandler({})).open
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                ask(f"http://127.0.0.1:{port}/health")
                break
            except URLError:
                time.sleep(0.5)
        yield Server(TEXT.replace("URL", f"http://127.0.0.1:{port}/v1").replace("FOLDER", folder), log)
    finally:
        process.kill()
        process.wait()


def kept() -> int:
    """Answers that are on disk whole."""
    return sum(1 for file in Path("out/answers").glob("*/*.json") if file.stat().st_size)


def transcripts(defense: str) -> dict[str, list[dict[str, Any]]]:
    """What was asked and answered. Of an answer that ends with its last allowed token, `transformers serve` says that it was cut off."""
    found = {}
    for file in Path("out").glob("cells/*/*/transcripts.jsonl"):
        meta = json.loads((file.parent / "meta.json").read_text())
        if meta["defense"] == defense:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[meta["attack"]] = [{key: value for key, value in row.items() if key != "cut_off"} for row in rows]
    return found


def test_served_is_local_and_a_killed_run_asks_nothing_twice(robustkd: Command, server: Server) -> None:
    Path("c.yaml").write_text(server.text)
    call = ["run", "c.yaml", "--no-track", "--quiet", "--workers", "0", "--json", "--out", "out"]
    run = subprocess.Popen([sys.executable, "-m", "robustkd", *call], stdout=subprocess.DEVNULL, start_new_session=True)
    while server.answered < 8:
        assert run.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(1)  # what was under way is answered to nobody
    before, asked = kept(), server.answered
    assert 0 < before <= asked <= before + 1
    code, out, err = robustkd(*call)
    assert code == 0, err
    assert server.answered - asked == kept() - before  # none that was kept is asked again
    results = json.loads(out)
    for served, local in (("served", "local"), ("reminded", "reminded-here")):
        assert {row[0] for row in table(results, served).values()} == {"done"}
        assert len(table(results, served)) == 4
        assert table(results, served) == table(results, local)
        assert transcripts(served) == transcripts(local)
