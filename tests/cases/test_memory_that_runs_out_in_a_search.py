"""Memory runs out while a perturbation is learned, or while prompts are searched and answered: fewer at once, and the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.contracts import GenerativeTarget, Judge, Prompts, ThreatModel
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from support.begins_as_aimed import BeginsAsAimed
from support.toy_language_model import toy_language_model
from support.toy_text_to_image import ShowsThePicture, requests, toy

MOST = 3
"""Rows that the memory holds."""
WORDS = tuple("abcdefghijklmn")
TEXTS = {"prompt": ("a b c", "d e", "f g h i", "b d"), "target": ("j k", "l", "m n", "a")}
TEXT_ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "gcg": {"tokens": 3, "steps": 2, "width": 8, "top_k": 6},
    "random-search": {"tokens": 3, "steps": 4},
    "beast": {"tokens": 3, "beams": 2, "branches": 3},
    "embedding": {"eps": [0.5], "steps": 2},
    "no-attack": {},
}
PICTURE_ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "unlearndiffatk": {"steps": 2, "tokens": 2},
    "seed-search": {},
}


@contextmanager
def small_memory(*modules: nn.Module) -> Iterator[None]:
    """Until the end of the block the modules raise where they are called with more rows than ``MOST``."""

    def refuse(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor) and value.ndim > 1)
        if len(given) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hooks = [module.register_forward_pre_hook(refuse, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def attacked(
    name: str, params: Mapping[str, Any], target: GenerativeTarget, asked: Prompts, judge: Judge, attempts: int = 2
) -> Evaluation:
    plugin = plugins.make("attacks", {"kind": name, **params})
    batch = prepare(target, asked, np.arange(len(asked)), {"one": judge})
    threat = plugin.threat_for(ThreatModel.by_prompt(attempts))
    return evaluate_prompt_attack(target, plugin, batch, threat, {"one": judge})


def require_alike(run: Callable[[], Evaluation], *modules: nn.Module) -> None:
    whole = run()
    with small_memory(*modules), pytest.warns(RuntimeWarning, match="memory ran out with 4 samples at once; going on with 2"):
        parts = run()
    assert parts.transcripts == whole.transcripts
    assert parts.outcome.attempts.tolist() == whole.outcome.attempts.tolist()
    assert parts.outcome.forwards.tolist() == whole.outcome.forwards.tolist()
    assert torch.allclose(parts.adversarial, whole.adversarial, atol=1e-5)


@pytest.mark.parametrize("name", TEXT_ATTACKS)
def test_a_language_model(name: str) -> None:
    target = toy_language_model(WORDS, hidden_size=32)
    asked = Prompts(TEXTS, np.zeros(4, dtype=np.int64))
    require_alike(lambda: attacked(name, TEXT_ATTACKS[name], target, asked, BeginsAsAimed()), target.module)


@pytest.mark.parametrize("name", PICTURE_ATTACKS)
def test_a_text_to_image_model(name: str) -> None:
    target = toy("church")
    require_alike(
        lambda: attacked(name, PICTURE_ATTACKS[name], target, requests(4), ShowsThePicture()),
        target.unet,
    )


def test_an_attack_that_learns() -> None:
    class Small(nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.most = most
            self.head = nn.Linear(16, 3, bias=False)
            self.head.weight.data = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.head(x.flatten(1))

    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = Small(100)(x).argmax(1)
    given = {"eps": 0.2, "fit_data": (x[8:], y[8:]), "epochs": 2}
    with pytest.warns(RuntimeWarning, match="memory ran out with 32 samples at once; going on with 16"):
        found = robustkd.attack("universal", Small(20), x[:8], y[:8], **given)
    whole = robustkd.attack("universal", Small(100), x[:8], y[:8], **given)
    assert torch.allclose(torch.as_tensor(found.adversarial), torch.as_tensor(whole.adversarial), atol=1e-5)
