"""A search for prompts that is killed goes on where it was: requests that were finished are not attacked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd.attacks.text.suffixes.gcg import GCG
from robustkd.campaigns.store.shards import ShardFiles
from support.toy_language_model import toy_language_model

Command = Callable[..., tuple[int, str, str]]
WORDS = ("say", "it", "hello", "I", "please", "cannot", "word", "open", "door")
TEXT = """\
version: 1
name: long
data: {name: behaviors, file: r.csv, benign: b.csv}
threat: {attempts: 2}
judges: {refusal: {kind: refusal-match}, other: {kind: refusal-match, phrases: [door]}}
defenses: {local: {kind: causal-lm, path: model, max_new_tokens: 4}}
attacks: {gcg: {kind: gcg, tokens: 3, steps: 2, width: 4, top_k: 4}}
checks: none
"""


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The campaign's files; how many requests each search was given."""
    monkeypatch.chdir(tmp_path)
    model = toy_language_model(WORDS)
    model.module.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    rows = [f"say {WORDS[place % 9]} {WORDS[place // 9]},x,it hello" for place in range(18)]
    Path("r.csv").write_text("\n".join(["prompt,category,target", *rows]) + "\n")
    Path("b.csv").write_text("prompt\nsay\nhello\n")
    Path("c.yaml").write_text(TEXT)
    found, search = list[int](), GCG.search

    def noted(self, target, batch, *others) -> None:
        found.append(len(batch))
        search(self, target, batch, *others)

    monkeypatch.setattr(GCG, "search", noted)
    return found


def ran(robustkd: Command, out: str) -> int:
    return robustkd("run", "c.yaml", "--no-track", "--quiet", "--workers", "0", "--out", out)[0]


def content(out: str) -> dict[str, bytes]:
    names = ("samples.parquet", "transcripts.jsonl")
    return {file.name: file.read_bytes() for file in Path(out).glob("cells/*/*/*") if file.name in names}


def test_it_goes_on_from_the_requests_that_were_finished(
    robustkd: Command, searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(robustkd, "whole") == 0
    assert searched == [16, 2]
    searched.clear()
    with monkeypatch.context() as patch:
        patch.setattr("robustkd.evaluation.modality.REQUEST_SHARD", 18)
        assert ran(robustkd, "at-once") == 0
    assert searched == [18]
    assert content("at-once") == content("whole")
    write = ShardFiles.write

    def killed(self, first, *rest) -> None:
        if first:
            raise KeyboardInterrupt
        write(self, first, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFiles, "write", killed)
        assert ran(robustkd, "out") != 0
    assert [file.name for file in Path("out/checkpoints").rglob("shard-*")] == ["shard-00000000"]
    searched.clear()
    assert ran(robustkd, "out") == 0
    assert searched == [2]
    assert content("out") == content("whole")
    assert len(content("out")) == 2
    assert not list(Path("out/checkpoints").iterdir())
