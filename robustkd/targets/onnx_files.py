"""A classifier in an ONNX file: as a network of torch where the file can be converted, else in onnxruntime, without gradients.

The conversion is by the package onnx2pytorch. Nobody has to trust it: before it is used, its answers are compared with those of
onnxruntime, and where they differ, or an operator is unknown to it, the file stays a black box and the log says why.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkd.contracts import PluginError, TargetError
from robustkd.contracts.extras import installation
from robustkd.contracts.random import preserved_rng
from robustkd.plugins.onnx_files import onnx_files
from robustkd.targets.modules import WithoutGradients
from robustkd.targets.whole import Whole, in_batches

_LOG = logging.getLogger(__name__)
_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
_SIDE = 64  # pixels each way of the images that it is tried on, where the file leaves their size open
_CLOSE = 1e-3  # how far the conversion's answers may be from onnxruntime's, in parts of the largest of these


class NotConverted(Exception):
    """Why a file stays a black box, in words."""


def open_onnx(file: Path) -> nn.Module:
    """The network in an ONNX file, for batches of any size.

    Raises:
        PluginError: onnxruntime is not installed.
        TargetError: it has not one input, of floating-point images.
    """
    black_box = Onnx(file)
    try:
        return Whole(_converted(file, black_box), black_box.batch)
    except NotConverted as error:
        _LOG.warning("%s has no gradients here, so only attacks without them can be run on it: %s", file, error)
        return black_box


def gives_gradients(file: Path) -> bool:
    """Whether ``open_onnx`` makes a network with gradients of the file; False also where it cannot be opened at all."""
    try:
        state = file.stat()
    except OSError:
        return False
    return _gives_gradients(file, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=16)
def _gives_gradients(file: Path, changed: int, size: int) -> bool:
    try:
        _converted(file, Onnx(file))
    except Exception:  # what is wrong with the file is said where it is opened
        return False
    return True


class Onnx(WithoutGradients):
    """An ONNX file in onnxruntime, on the CPU.

    Attributes:
        outputs: the names of what it returns.
        batch: the only B that the file takes; None where it takes any.
        shape: of one of its images, as far as the file says it.

    Raises:
        PluginError: onnxruntime is not installed.
        TargetError: it has not one input, of floating-point images, or a file with its weights is missing.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise PluginError(f"{file} needs onnxruntime", fix=installation("onnx")) from error
        parts = onnx_files(file)
        for part in parts[1:]:
            if not part.is_file():
                raise TargetError(f"{file} keeps weights in {part}, which is missing", fix="copy that file beside it")
        self._session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES:
            raise TargetError(f"{file} does not take one batch of floating-point images", fix="export the classifier alone")
        self._input, self.dtype = inputs[0].name, _TYPES[inputs[0].type]
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        batch, *shape = [side if isinstance(side, int) else None for side in inputs[0].shape] or [None]
        self.batch, self.shape = batch, tuple(shape)
        digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).digest()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8), persistent=False)  # its fingerprint

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) -> (B, K), for any B; of a file with several outputs, each by its name."""
        return in_batches(self._answer, images, self.batch)

    def __deepcopy__(self, memo: dict[int, Any]) -> Onnx:
        return self  # it holds nothing that changes, and a session cannot be copied

    def _answer(self, images: Tensor) -> Any:
        given = images.detach().cpu().to(self.dtype).contiguous().numpy()
        found = dict(zip(self.outputs, self._session.run(None, {self._input: given}), strict=True))
        return _alone(
            {name: torch.from_numpy(each).to(images.device) for name, each in found.items() if isinstance(each, np.ndarray)}
        )


class Named(nn.Module):
    """A network that returns several tensors in a list, each by its name."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) -> the one tensor, or a mapping of several."""
        returned = self.network(images)
        return returned if isinstance(returned, Tensor) else _alone(dict(zip(self.names, returned, strict=True)))


def _alone(outputs: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """The only output; all of them by name where there are several, so that what is taken for the logits is found out."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _by_name(outputs: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that are floating-point numbers."""
    found = {"": outputs} if isinstance(outputs, Tensor) else outputs
    return {name: each for name, each in found.items() if each.is_floating_point()}


def _converted(file: Path, black_box: Onnx) -> nn.Module:
    """The file's network in torch.

    Raises:
        NotConverted: onnx2pytorch is missing, does not know an operator, or answers otherwise than onnxruntime.
    """
    try:
        import onnx
        from onnx2pytorch import ConvertModel
    except ImportError:
        raise NotConverted(f"the package onnx2pytorch is not installed ({installation('onnx')})") from None
    samples = _samples(black_box)
    with warnings.catch_warnings(), preserved_rng(torch.device("cpu")):
        warnings.simplefilter("ignore")
        try:
            network = Named(ConvertModel(_in_its_words(onnx.load(str(file)))).eval(), black_box.outputs)
            found = _by_name(network(samples))
        except Exception as error:  # of whatever type an operator's conversion raises
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise NotConverted(f"onnx2pytorch cannot convert it: {type(error).__name__}: {said}") from error
    wanted = _by_name(black_box(samples))
    if {name: each.shape for name, each in found.items()} != {name: each.shape for name, each in wanted.items()}:
        raise NotConverted("what onnx2pytorch makes of it does not answer with the same tensors as onnxruntime")
    if not all(each.requires_grad for each in found.values()):
        raise NotConverted("what onnx2pytorch makes of it does not answer with tensors that have gradients")
    for name, each in wanted.items():
        apart = float((found[name].detach() - each).abs().max() / each.abs().max().clamp_min(torch.finfo(each.dtype).tiny))
        if not apart <= _CLOSE:
            raise NotConverted(
                f"what onnx2pytorch makes of it answers otherwise than onnxruntime, by {apart:.1e} of the largest output"
            )
    return network


def _samples(black_box: Onnx) -> Tensor:
    shape = [side or _SIDE for side in black_box.shape]
    random = torch.Generator().manual_seed(0)
    return torch.rand(black_box.batch or 3, *shape, generator=random, dtype=torch.float32).to(black_box.dtype).requires_grad_()


def _in_its_words(model: Any) -> Any:
    """The same graph without two things that exporters write and the converter does not know.

    Weights that several layers share reach the others through Identity, and are taken directly; a batch normalisation may say that
    it is not in training, which is the default.
    """
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    other: dict[str, str] = {}
    kept = []
    for node in graph.node:
        given = [other.get(name, name) for name in node.input]
        if node.op_type == "Identity" and given[0] in weights and node.output[0] not in {each.name for each in graph.output}:
            other[node.output[0]] = given[0]
            continue
        node.input[:] = given
        if node.op_type == "BatchNormalization":
            attributes = [each for each in node.attribute if each.name != "training_mode" or each.i]
            del node.attribute[:]
            node.attribute.extend(attributes)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return model
