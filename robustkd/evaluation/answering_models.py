"""A model that answers requests, from what somebody has in Python: objects of transformers, a folder, a defense's parameters."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from robustkd import plugins
from robustkd.contracts import BaseTarget, Defense, FitContext, GenerativeTarget, TargetError, ThreatModel, UsageError
from robustkd.contracts.devices import device_named
from robustkd.contracts.target import of_kind
from robustkd.lazy import nn
from robustkd.targets import CausalLMTarget, load_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_NEW_TOKENS = 128
"""The most tokens of an answer of a model of transformers, as of ``causal-lm``."""
_SAVED, _PIPELINE = "card.json", "model_index.json"
_FIX = (
    "give a causal language model of transformers with its tokenizer, (model, tokenizer), a folder, or a defense and its parameters, such "
    "as {'kind': 'chat-endpoint', 'base_url': 'http://localhost:8000/v1', 'model': 'my-model'}"
)


def answering_target(
    model: Any,
    tokenizer: Any = None,
    *,
    answers: Path,
    threat: ThreatModel,
    seed: int = 0,
    others: Mapping[str, BaseTarget] | None = None,
) -> GenerativeTarget:
    """The target that ``model`` stands for.

    Args:
        model: a ``GenerativeTarget``; a causal language model of transformers, with ``tokenizer`` or as a pair (model, tokenizer), or a
            pipeline that has both, where it is; a folder or a GGUF file as ``causal-lm`` takes it, a folder of diffusers, that of a
            saved target; or a mapping, the ``kind`` and the parameters of a defense that needs no training data.
        answers: the folder where the answers of served models are kept.
        threat: what a defense is told that asks for a threat model.
        others: the targets that the defense's parameters refer to, by name.

    Raises:
        UsageError: it is nothing of these, or its defense has to be trained.
        TargetError: it cannot be loaded.
    """
    if isinstance(model, GenerativeTarget):
        return model
    if isinstance(model, BaseTarget):
        raise UsageError(f"the model is a {model.kind}, which answers no requests", fix=_FIX)
    if isinstance(model, str | Path):
        return _from_place(Path(model), answers, threat, seed)
    if isinstance(model, Mapping):
        return _from_defense(model, answers, threat, seed, others or {})
    if isinstance(model, tuple) and len(model) == 2:
        model, tokenizer = model
    elif not isinstance(model, nn.Module) and hasattr(model, "model") and hasattr(model, "tokenizer"):  # a pipeline
        model, tokenizer = model.model, tokenizer or model.tokenizer
    return _from_transformers(model, tokenizer)


def _from_transformers(model: Any, tokenizer: Any) -> CausalLMTarget:
    if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings") or not hasattr(model, "config"):
        raise UsageError(f"the model is a {type(model).__name__}", fix=_FIX)
    if tokenizer is None:
        raise UsageError(
            f"the {type(model).__name__} has no tokenizer", fix="give tokenizer=.., or the pair (model, tokenizer)"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"the tokenizer is a {type(tokenizer).__name__}, which does not tell where its tokens are in a text",
            fix="give a fast one: AutoTokenizer.from_pretrained(..)",
        )
    if getattr(model, "is_quantized", False):
        raise TargetError(
            "the model is quantised, through which gradients and embeddings are not what they seem",
            fix="give it dequantised (model.dequantize()), or serve it and use chat-endpoint",
        )
    return CausalLMTarget(cast("PreTrainedModel", model), tokenizer, max_new_tokens=MAX_NEW_TOKENS)


def _from_place(place: Path, answers: Path, threat: ThreatModel, seed: int) -> GenerativeTarget:
    if (place / _SAVED).is_file():
        return of_kind(load_target(place), str(place), GenerativeTarget)
    if not place.exists() and "#" in place.name:
        raise UsageError(
            f"there is no model at {place}", fix=f"of a campaign that was run: robustkd.load_model({str(place)!r})"
        )
    if not place.exists():
        raise UsageError(
            f"there is no model at {place}", fix="correct the path; of a name on the hub: {'kind': 'causal-lm', 'hub': NAME}"
        )
    drawn = (place / _PIPELINE).is_file()
    spec = {"kind": "text-to-image", "folder": os.fspath(place)} if drawn else {"kind": "causal-lm", "path": os.fspath(place)}
    return _from_defense(spec, answers, threat, seed, {})


def _from_defense(
    spec: Mapping[str, Any], answers: Path, threat: ThreatModel, seed: int, others: Mapping[str, BaseTarget]
) -> GenerativeTarget:
    defense: Defense = plugins.make("defenses", spec)
    if set(defense.modalities) == {"images"}:
        raise UsageError(f"defense '{defense.name}' is for images, and here requests are answered", fix=_FIX)
    if defense.uses_data:
        raise UsageError(
            f"defense '{defense.name}' is trained, and here are no training data",
            fix="train it in a campaign, and give the folder of its target",
        )
    with tempfile.TemporaryDirectory() as scratch:
        context: FitContext[Any] = FitContext(
            train=None,
            validation=None,
            input_shape=(),
            num_classes=1,
            threat=threat,
            seed=seed,
            device=device_named("auto"),
            checkpoints=Path(scratch),
            targets=others,
        )
        target = of_kind(defense.fit(context), defense.name, GenerativeTarget)
    target.module.eval()
    defense.connect(target, answers)
    return target
