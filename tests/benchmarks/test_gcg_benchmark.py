"""GCG beside nanoGCG, on a model of a few thousand parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("nanogcg")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _harness  # noqa: E402
import gcg  # noqa: E402

from support.toy_language_model import toy_language_model  # noqa: E402


def test_both_begin_alike_and_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token is searched, and every word is looked at, so nothing is left to chance."""
    model = toy_language_model(("what", "is", "the", "code", "of", "gold", "?", "a", "b", "c", "d", "e", "f"))
    monkeypatch.setattr(gcg.CausalLM, "fit", lambda self, context: model)
    monkeypatch.setattr(gcg, "REQUESTS", (("what is the code ?", "a b"), ("the code of gold ?", "c d e")))
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    # nanoGCG takes the tokens of the chat's roles for words.
    monkeypatch.setattr("nanogcg.gcg.get_nonascii_toks", lambda tokenizer, device: torch.arange(5))
    done = CliRunner().invoke(gcg.main, ["--steps", "3", "--width", "60", "--top-k", "13", "--tokens", "1"])
    assert done.exception is None, done.output
    rows = json.loads((tmp_path / "gcg.json").read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["robustkd", "nanogcg"] * 2
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["start"] == theirs["start"] > ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        # The prefix and the start; then the gradient and every other word. Once a length, three passes prove the prefix's cache.
        assert ours["forwards"] == 2 + 3 * (12 + 1) + (3 if ours is rows[0] else 0)
        assert theirs["forwards"] == 1 + 3 * (60 + 1)
