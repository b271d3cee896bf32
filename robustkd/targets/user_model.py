"""A user's own classifier from what he has: a saved target, or code and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd import plugins
from robustkd.contracts import BaseTarget, Code, UsageError
from robustkd.targets.checkpoints import load_weights
from robustkd.targets.code import call_by_reference
from robustkd.targets.files import load_target

if TYPE_CHECKING:
    from torch import nn

_WHOLE = (".pt", ".pth", ".pt2", ".ts", ".torchscript", ".onnx", ".bin", ".ckpt", ".safetensors")
"""What files of models are called, and those of weights, which are told apart by what they hold."""


def load_model(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
    code: Iterable[Code | str] = (),
    normalised: bool = False,
) -> nn.Module | BaseTarget:
    """A model to attack, in evaluation mode.

    Args:
        model: code that builds a network, ``package.module:function`` or ``path/to/file.py:function``; the name of a registered
            architecture (``robustkd list models``); a TorchScript, torch.export or ONNX file, which are programs (docs/security.md); the
            folder of an image classifier of transformers; or that of a saved target.
        weights: of code, and of an architecture, which has none without: a safetensors file or one of torch.save. Keys around the
            weights and prefixes before their names are found.
        weights_key: where in the file the weights are (``ema``), if there are several.
        kwargs: of code: the function's arguments; of an architecture: its parameters.
        input_shape, num_classes: of an architecture: (C, H, W) and K.
        code: of a saved target: what its card may call (see ``load_target``).
        normalised: whether the model is going to be given normalised images, as by ``attack(.., normalise=..)``. Otherwise weights
            with the constants of a normalisation beside them, and no place for these in the network, are refused.

    Raises:
        UsageError: there is no such code, architecture or folder, or it does not go with the other arguments.
        TargetError: the code raised, or the weights do not fit.
    """
    path = Path(model)
    saved = path.is_dir() and ((path / "card.json").is_file() or not (path / "config.json").is_file())
    whole = path.is_dir() or path.suffix in _WHOLE
    if whole and (weights is not None or kwargs):
        raise UsageError(f"{model} is a whole model, which has its weights", fix="leave out weights and arguments")
    if saved:
        return load_target(path, code)
    if whole:
        from robustkd.targets.model_files import open_model  # late: it imports torch

        return open_model(path)
    if str(model).partition(":")[0] in plugins.names("models"):
        network = _registered(str(model), weights, kwargs or {}, input_shape, num_classes)
    else:
        network = call_by_reference(str(model), dict(kwargs or {}))
    if weights is not None:
        load_weights(network, Path(weights), weights_key, normalised=normalised)
    return network.eval()


def _registered(
    name: str,
    weights: str | Path | None,
    params: Mapping[str, Any],
    input_shape: Sequence[int] | None,
    num_classes: int | None,
) -> nn.Module:
    if weights is None:
        raise UsageError(f"'{name}' without weights is an untrained network", fix="give its weights")
    if input_shape is None or num_classes is None:
        raise UsageError(
            f"'{name}' is built for images of a size and for a number of classes", fix="give input_shape and num_classes"
        )
    network: nn.Module = plugins.make("models", {"kind": name, **params}).build(tuple(input_shape), num_classes)
    return network
