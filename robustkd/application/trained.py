"""A trained defense of a campaign as a model: named by ``campaign.yaml#student``, and written in forms that others read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd.application import pretrained
from robustkd.application.campaign import campaign_named
from robustkd.campaigns.store.planned import trained_cell
from robustkd.contracts import BaseTarget, Code, RobustkdError, Target, TargetError, UsageError
from robustkd.contracts.extras import installation
from robustkd.lazy import nn, torch
from robustkd.targets.files import load_target, save_target
from robustkd.targets.image import ImageTarget
from robustkd.targets.user_model import load_model as load_plain

if TYPE_CHECKING:
    from torch import Tensor

MARK = "#"
OPSET = 18
"""Of ONNX files."""
TRIED = 4
"""Inputs on which a written model is compared with the one that was trained."""
TOLERANCE = 1e-4


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
        model: a trained defense of a campaign that was run, ``campaign.yaml#student`` or ``runs/campaign#student``, with a seed
            ``#student/1``; code that builds a network, ``package.module:function`` or ``path/to/file.py:function``; the name of a
            registered architecture (``robustkd list models``); a TorchScript, torch.export or ONNX file, which are programs
            (docs/security.md); the folder of an image classifier of transformers; or that of a saved target.
        weights: of code, and of an architecture, which has none without: a safetensors file or one of torch.save. Keys around the
            weights and prefixes before their names are found.
        weights_key: where in the file the weights are (``ema``), if there are several.
        kwargs: of code: the function's arguments; of an architecture: its parameters.
        input_shape, num_classes: of an architecture: (C, H, W) and K.
        code: of a saved target: what its card may call.
        normalised: whether the model is going to be given normalised images, as by ``attack(.., normalise=..)``. Otherwise weights
            with the constants of a normalisation beside them, and no place for these in the network, are refused.

    Raises:
        UsageError: there is no such defense, code, architecture or folder, or it does not go with the other arguments.
        StoreError: the defense is not trained.
        TargetError: the code raised, or the weights do not fit.
    """
    return load_plain(
        trained_folder(str(model)) or model,
        weights=weights,
        weights_key=weights_key,
        kwargs=kwargs,
        input_shape=input_shape,
        num_classes=num_classes,
        code=code,
        normalised=normalised,
    )


def trained_folder(reference: str) -> Path | None:
    """The folder of the trained target that ``campaign#defense`` or ``campaign#defense/seed`` names; None of another reference.

    Raises:
        UsageError: there is no such campaign, defense or seed.
        StoreError: it is not trained.
    """
    campaign, mark, defense = reference.rpartition(MARK)
    if not mark or not campaign or Path(reference).exists():
        return None
    _, folder = campaign_named(campaign)
    return trained_cell(folder, defense, campaign)


def export_model(folder: Path, path: Path, form: str, card: str, code: Iterable[Code | str] = ()) -> str:
    """Write the target in ``folder`` to ``path``, which is not there yet, and say what was written.

    Every program is read back, and must answer as the trained model does on random inputs.

    Args:
        form: a folder with a README.md: ``safetensors`` (weights and card), ``transformers`` (of a language model) or ``diffusers`` (of
            one that draws); or a program from pixels in the model's bounds to logits: ``torchscript`` (traced), ``torch-export`` (.pt2)
            or ``onnx``.
        card: the text of the model card.
        code: what the target's card may call.

    Raises:
        UsageError: the path cannot be used, or the form is for other models.
        TargetError: the model cannot be written in this form, or answers differently afterwards.
    """
    if path.exists() or not path.resolve().parent.is_dir():
        raise UsageError(f"{path} {'is there already' if path.exists() else 'lies in no folder'}", fix="name a new one")
    target = load_target(folder, code)
    if form == "safetensors":
        path.mkdir()
        save_target(target, path)
        (path / "README.md").write_text(card, encoding="utf-8")
        return f"{path}   (robustkd.load_model reads it)"
    if form in pretrained.FORMS:
        return pretrained.export(target, path, form, card)
    if not isinstance(target, Target):
        raise UsageError(
            f"a model that draws or writes is no program from pixels to logits: {form}",
            fix=f"--format {' or '.join(['safetensors', *pretrained.forms_of(target)])}",
        )
    inputs = _inputs(target)
    with torch.no_grad():
        expected = target(inputs)
    with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".export-") as scratch:
        partial = Path(scratch, path.name)
        try:
            answer = _WRITERS[form](_Logits(target).eval(), inputs, partial)
        except RobustkdError:
            raise
        except Exception as error:  # torch's exporters raise whatever a network's code makes them meet
            said = (str(error).strip().splitlines() or [""])[0][:300]
            raise TargetError(
                f"this model cannot be written as {form}: {type(error).__name__}: {said}", fix="try another --format"
            ) from error
        worst = float((answer - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not worst <= TOLERANCE:
            raise TargetError(
                f"written as {form} the model answers differently: by {worst:.2g} of its largest logit",
                fix="try another --format",
            )
        os.replace(partial, path)  # noqa: PTH105
    return f"{path}   ({'x'.join(map(str, target.input_shape))} pixels in {list(target.bounds)} -> {target.num_classes} logits)"


class _Logits(nn.Module):
    """A classifier as a network of its own."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.module, self._target = target.module, target

    def forward(self, pixels: Tensor) -> Tensor:
        # Not the checks of a call, which ask for the size of a batch: it is open in a program.
        answer: Tensor = self._target.answer(pixels) if isinstance(self._target, ImageTarget) else self._target(pixels)
        return answer


def _inputs(target: Target) -> Tensor:
    low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in target.bounds)
    return low + (high - low) * torch.rand(TRIED, *target.input_shape, generator=torch.Generator().manual_seed(0))


def _torchscript(network: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    torch.jit.trace(network, inputs).save(str(path))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        answer: Tensor = torch.jit.load(str(path))(inputs)  # type: ignore[no-untyped-call]
    return answer


def _torch_export(network: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (inputs,), dynamic_shapes=({0: batch},)), str(path))
    with torch.no_grad():
        answer: Tensor = torch.export.load(str(path)).module()(inputs)
    return answer


def _onnx(network: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("an ONNX file is checked by onnxruntime", fix=installation("onnx")) from error
    axes = {"pixels": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        network,
        (inputs,),
        str(path),
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"pixels": inputs.numpy()})[0])


_WRITERS: Mapping[str, Callable[[nn.Module, Tensor, Path], Tensor]] = {
    "torchscript": _torchscript,
    "torch-export": _torch_export,
    "onnx": _onnx,
}
FORMS = ("safetensors", *pretrained.FORMS, *_WRITERS)
