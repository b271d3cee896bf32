"""Targets on disk: ``weights.safetensors`` and ``card.json``, never pickle."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from robustkd.contracts import BaseTarget, Code, RobustkdError, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import torch
from robustkd.plugins.sources import is_installed, source_files
from robustkd.targets.cards import target_from_card
from robustkd.targets.checkpoints import load_weights, tied
from robustkd.targets.code import allowing

WEIGHTS, CARD = "weights.safetensors", "card.json"


def save_target(target: BaseTarget, folder: Path) -> None:
    """Write a target's weights and card into ``folder``, which exists. What two names share (tied weights) is written once."""
    from safetensors.torch import save_file  # late: it imports torch

    shared = tied(target.module)
    state = {
        name: tensor.detach().contiguous().cpu().clone()
        for name, tensor in target.module.state_dict().items()
        if name not in shared
    }
    save_file(state, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(target.card(), indent=1, sort_keys=True))


def load_target(folder: Path, code: Iterable[Code | str] = ()) -> BaseTarget:
    """Read a target back, in evaluation mode.

    Args:
        code: what its card may call (a reference stands for it with any arguments). The card's own word does not count: a folder
            from somebody else would run what it likes.

    Raises:
        TargetError: the folder holds no target, a damaged one, or one that needs other code.
    """
    try:
        card: JsonObject = json.loads((folder / CARD).read_text())
        with allowing(item if isinstance(item, Code) else Code(item) for item in code):
            target = target_from_card(card)
    except RobustkdError as error:
        raise TargetError(f"{folder / CARD}: {error.message}", fix=error.fix) from error
    except Exception as error:  # a card is anybody's JSON, and every target reads it in its own way
        said = (str(error).splitlines() or [""])[0][:200]
        raise TargetError(
            f"{folder} holds no saved target ({type(error).__name__}: {said})", fix=f"a target is {WEIGHTS} and {CARD}"
        ) from error
    load_weights(target.module, folder / WEIGHTS)
    target.module.eval()
    return target


def fingerprint(target: BaseTarget) -> str:
    """SHA-256 over a target's card and every parameter and buffer: what it computes, whatever device it is on."""
    state = hashlib.sha256(_card_if_any(target))
    for name, tensor in sorted(target.module.state_dict().items()):
        state.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor_bytes(tensor))
    return state.hexdigest()


def fingerprint_of_built(target: BaseTarget) -> str:
    """SHA-256 over what somebody's own code built: its weights, every other tensor that its modules hold, and their classes' source.

    The place of the code does not count.
    """
    state = hashlib.sha256(fingerprint(target).encode())
    for name, module in target.module.named_modules():
        held = {**vars(module), **module._buffers}
        for key, tensor in sorted(held.items()):
            if isinstance(tensor, torch.Tensor):
                state.update(f"{name}.{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
                state.update(tensor_bytes(tensor))
    files = {file for kind in {type(module) for module in target.module.modules()} for file in _files_of(kind)}
    for source in sorted({source for file in files if not is_installed(file) for source in source_files(file)}):
        state.update(hashlib.sha256(source.read_bytes()).digest())
    return state.hexdigest()


def _files_of(kind: type) -> set[Path]:
    """The file of a class: of its module, and of its own functions, since another module may have that name by now."""
    places = {getattr(sys.modules.get(kind.__module__), "__file__", None)}
    places |= {code.co_filename for item in vars(kind).values() if (code := getattr(item, "__code__", None))}
    return {Path(place).resolve() for place in places if place and Path(place).is_file()}


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of a tensor, also of a sparse or a quantised one; nothing of one that has none (on the meta device)."""
    tensor = tensor.detach()
    if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
        return memoryview(b"")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    data: memoryview = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def _card_if_any(target: BaseTarget) -> bytes:
    try:
        card = target.card()
    except TargetError:  # it cannot be saved
        return b""
    origin = card.get("origin")
    if isinstance(origin, Mapping) and "code" in origin:
        card = {**card, "origin": {**origin, "code": Path(str(origin["code"])).name}}  # wherever it lies
    return json.dumps(card, sort_keys=True).encode()
