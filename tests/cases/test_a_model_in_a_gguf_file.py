"""A GGUF file is dequantised as it is read, so its model is a target like any other: it answers, is attacked, and is stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import Request
from robustkd.targets import load_target, save_target
from support.gguf_file import write_gguf

pytest.importorskip("gguf")


def test_it_is_loaded_and_comes_back_from_the_store(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf")
    defense = plugins.make("defenses", {"kind": "causal-lm", "path": str(tmp_path / "small.gguf"), "max_new_tokens": 4})
    target = defense.fit(SimpleNamespace(device=torch.device("cpu")))
    asked = [Request("say it"), Request("hello")]
    answers = target.respond(asked)
    assert all(answers)
    (tmp_path / "stored").mkdir()
    save_target(target, tmp_path / "stored")
    assert load_target(tmp_path / "stored").respond(asked) == answers
