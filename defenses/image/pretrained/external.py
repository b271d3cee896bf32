"""A defense that was trained elsewhere: the user's own code or a registered architecture, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from robustkd import plugins
from robustkd.contracts import (
    CampaignPath,
    Capabilities,
    Code,
    Defense,
    FitContext,
    ModelName,
    Params,
    Target,
    TargetError,
    UsageError,
)
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.params import AddedLater, ModelParams, ModelPath, saved_target
from robustkd.data.multi_label import Label
from robustkd.lazy import torch
from robustkd.normalisation.constants import Constants
from robustkd.normalisation.unit import Unit
from robustkd.plugins.onnx_files import onnx_files
from robustkd.plugins.sources import source_files
from robustkd.targets import ClassifierTarget
from robustkd.targets.checkpoints import load_weights
from robustkd.targets.code import NETWORK, call_by_reference, folders_of, source_file
from robustkd.targets.files import CARD, WEIGHTS, load_target
from robustkd.targets.frozen import require_weights
from robustkd.targets.logits import as_logits
from robustkd.targets.output_names import count_outputs, require_known_outputs
from robustkd.targets.outputs import Classes

_READ = (".json", ".safetensors")
"""What is read of a folder of transformers."""


class ExternalParams(Params):
    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "my_model.py:build"}]})

    code: str | None = Field(
        None, description="what builds the network: package.module:function, or path/to/file.py:function beside the campaign"
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="the function's arguments")
    # Left out of the identity: where it lies changes nothing. What is in it does, and files() tells.
    file: ModelPath | None = Field(
        None,
        exclude=True,
        description="instead of code: a TorchScript, torch.export or ONNX file, the folder of an image classifier of transformers, or a "
        "trained defense of a campaign that was run: first.yaml#student, runs/first#student/1 or the folder of its target",
    )
    model: ModelName | None = Field(None, description="instead of code: a registered architecture")
    model_params: ModelParams = Field(default_factory=dict)
    weights: CampaignPath | None = Field(None, description="a safetensors file, or one written by torch.save")
    weights_key: Annotated[str | None, AddedLater()] = Field(
        None, description="where in it the weights are, such as ema; default: found"
    )
    normalise: Annotated[Constants | None, AddedLater()] = Field(
        None,
        description="what is done with the pixels, in [0, 1], before the code's network sees them: imagenet, inception (to [-1, 1]), "
        "clip, cifar10, cifar100, svhn, mnist, fashion-mnist, 0..255, or {mean: [..], std: [..]}, a number for each channel",
    )
    bounds: Annotated[tuple[float | tuple[float, ...], float | tuple[float, ...]] | None, AddedLater()] = Field(
        None,
        description="the lowest and the highest value that the code's network takes, [-1, 1] or [0, 255], or a list of each, a number for "
        "each channel; the data's [0, 1] is brought there, and eps stays a distance between the data's pixels",
    )
    num_classes: int | None = Field(
        None,
        ge=2,
        description="how many outputs the network has, where labels hold together as many as labels; default: the data's classes",
    )
    classes: Annotated[tuple[int, ...] | None, AddedLater()] = Field(
        None,
        description="for each class of the data, in their order, the network's index of it: [0, 217, 482]; default: the same",
    )
    restrict: Annotated[bool | None, AddedLater()] = Field(
        None,
        description="given with classes: true where these outputs alone compete, false where the network may answer any other class as "
        "well, which is wrong",
    )
    input_shape: tuple[int, ...] | None = Field(None, description="(channels, height, width); default: the data's")

    # The places are kept apart from the text, so that moving the campaign's folder makes no other defense of it.
    _file: Path | None = PrivateAttr(None)
    _folder: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_network(self, info: ValidationInfo) -> ExternalParams:
        if [self.code, self.model, self.file].count(None) != 2:
            raise ValueError("give either code or model, or a file that holds both")
        if self.file is not None and (self.weights is not None or self.kwargs):
            raise ValueError("the file has its weights; leave out weights and kwargs")
        if self.model is not None and self.weights is None:
            raise ValueError("an architecture without weights is an untrained network; give weights")
        if self.weights_key is not None and self.weights is None:
            raise ValueError("weights_key is a place in a file; give weights")
        if self.model is not None and self.normalise is not None:
            raise ValueError("an architecture has its own normalisation: model_params: {mean: [..], std: [..]}")
        if self.bounds is not None and (self.model is not None or self.normalise is not None):
            raise ValueError("bounds are of code, and take the place of normalise")
        if self.bounds is not None:
            Constants.to(*self.bounds)
        try:
            Classes.given(self.classes, self.restrict)
        except UsageError as error:
            raise ValueError(f"{error.message} ({error.fix})") from None
        if folder := (info.context or {}).get("folder"):
            self._folder = Path(folder).resolve()
        if self.code is not None and (file := source_file(self.code)):
            self._file = TypeAdapter(CampaignPath).validate_python(file, context=info.context)
        return self

    @property
    def saved(self) -> Path | None:
        """The folder of a trained target of robustkd's own; None where the file is another one."""
        return saved_target(self.file)

    @property
    def reference(self) -> str:
        """``code`` with the file's place resolved, or the model file."""
        if self.file is not None:
            return f"{self.file.resolve()}:{NETWORK}"
        code = self.code or ""
        return f"{self._file}:{code.rpartition(':')[2]}" if self._file else code

    @property
    def folder(self) -> Path | None:
        """The campaign's, where modules that are not installed are looked for."""
        return self._folder

    @property
    def code_file(self) -> Path | None:
        """The file that ``code`` is in, as far as it can be told without running any of it."""
        code = self.code or ""
        return self._file or plugins.module_file(code.rpartition(":")[0], folders_of(code, self._folder))


class External(Defense):
    """A network from elsewhere. It is run once on a few images, so that a mistake shows before the attacks begin."""

    Params = ExternalParams
    inputs = "any"
    uses_data = False
    source = "the user's own network"
    version = "2"  # 1 took output k for the data's class k, whatever else the network has

    @property
    def rebuilt(self) -> bool:
        """Code may read weights by itself, which no file of ``files()`` stands for."""
        return self.params.model is None and self.params.saved is None

    def files(self) -> list[Path]:
        """The code's file, the modules beside the installed packages that it imports, and the weights."""
        code, weights, file = self.params.code_file, self.params.weights, self.params.file
        if self.params.saved is not None:
            return [self.params.saved / name for name in (CARD, WEIGHTS)]  # what else lies there says when it was trained
        inside = sorted(path for path in file.iterdir() if path.suffix in _READ) if file and file.is_dir() else []
        whole = inside or (onnx_files(file) if file else [])
        return [*(source_files(code) if code else []), *([weights] if weights else []), *whole]

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of a network; of an ONNX file that cannot be converted, no gradients."""
        file, found = self.params.file, super().target_capabilities(others)
        if file is None or file.suffix != ".onnx":
            return found
        from robustkd.targets.onnx_files import gives_gradients  # late: it imports torch

        return found if gives_gradients(file) else found - {"gradients"}

    def code(self) -> list[Code]:
        """The function that builds the network, with its arguments."""
        plain = self.params.model is not None or self.params.saved is not None
        return [] if plain else [Code(self.params.reference, self.params.kwargs, self.params.folder)]

    def fit(self, context: FitContext) -> Target:
        """Build the network, load its weights and try it.

        Raises:
            TargetError: it cannot be built, the weights do not fit, or it gives no logits.
        """
        return _trained(self.params, context) if self.params.saved is not None else self._built(context)

    def _built(self, context: FitContext) -> Target:
        p = self.params
        shape = p.input_shape or context.input_shape
        classes = p.num_classes or context.num_classes
        if p.classes is not None and len(p.classes) != context.num_classes:
            raise UsageError(
                f"classes names {len(p.classes)} outputs of the model, the data have {context.num_classes} classes",
                fix="give one for each class of the data, in their order",
            )
        if p.model is not None:
            target = ClassifierTarget.from_model(p.model, p.model_params, input_shape=shape, num_classes=classes)
        else:
            network = call_by_reference(p.reference, p.kwargs, p.folder)
            origin: JsonObject = {"code": p.reference, "kwargs": p.kwargs}
            target = ClassifierTarget(network, num_classes=classes, input_shape=shape, origin=origin)
        if p.weights is not None:
            normalised = p.normalise is not None or p.bounds is not None
            load_weights(target.module, p.weights, p.weights_key, normalised=normalised)
        if context.bounds is not None and (p.bounds is not None or p.normalise is not None):
            what = (
                "bounds, and so has this defense"
                if p.bounds is not None
                else "bounds, and this defense normalises pixels in [0, 1]"
            )
            raise UsageError(
                f"the data have {what}",
                fix="leave that out of the defense: its network is given the data in their own unit, which is that of the bounds",
            )
        constants = p.normalise if p.bounds is None else Constants.to(*p.bounds)
        if constants is not None and len(shape) != 3:
            raise UsageError(
                f"'normalise' and 'bounds' of a defense are for images (C, H, W), and the inputs have the shape {tuple(shape)}",
                fix="normalise inside the network, and give the range of the inputs as the 'bounds' of the data",
            )
        if constants is not None:
            origin = {**origin, "normalise": constants.model_dump(mode="json")}
            module = constants.before(target.module, shape[0])
            target = ClassifierTarget(module, num_classes=classes, input_shape=shape, origin=origin)
        if context.bounds is not None and (unit := Unit.of(context.bounds, shape)):
            target = ClassifierTarget(
                unit.before(target.module),
                num_classes=classes,
                input_shape=shape,
                origin={**(target.origin or {}), "unit": unit.written},
                bounds=unit.box(torch.zeros(0)),
            )
        known = Classes.given(p.classes, p.restrict)
        if known is None and context.label is None:
            _require_known_outputs(target, context)
        if known is not None and context.label is not None:
            raise UsageError(
                "classes of a model, on data with a success", fix="leave out 'classes': labels that hold together are none"
            )
        found = validated(target, context, known, context.label)
        if context.label is not None and found.num_classes != context.num_classes:
            labels = context.num_classes.bit_length() - 1
            raise UsageError(
                f"the model has {found.num_classes.bit_length() - 1} outputs, the data have {labels} labels",
                fix="give a model with an output for each label, or 'success: {label: ..}' where one counts",
            )
        return found


def _trained(params: ExternalParams, context: FitContext) -> Target:
    """A target of robustkd's own, for the data that it was trained on.

    Raises:
        UsageError: see ``trained_classifier``, or it is one of other data.
    """
    target = trained_classifier(params)
    wanted, found = (context.input_shape, context.num_classes), (tuple(target.input_shape), target.num_classes)
    if (tuple(wanted[0]), wanted[1]) != found:
        raise UsageError(
            f"the trained defense takes {found[0]} and knows {found[1]} classes, the data have {tuple(wanted[0])} and {wanted[1]}",
            fix="use the data that it was trained on",
        )
    return target.to(context.device)


def trained_classifier(params: ExternalParams) -> Target:
    """A classifier of robustkd's own, which has all that it needs.

    Raises:
        UsageError: parameters are given that are of other models, or it is no classifier.
    """
    assert params.saved is not None
    given = [
        name for name in ("normalise", "bounds", "classes", "num_classes", "input_shape") if getattr(params, name) is not None
    ]
    if given:
        raise UsageError(f"a trained defense has its own {' and '.join(given)}", fix=f"leave out {', '.join(given)}")
    target = load_target(params.saved)
    if not isinstance(target, Target):
        raise UsageError(f"{params.saved} is no classifier", fix="name a defense of a campaign on images")
    return target


def _require_known_outputs(target: ClassifierTarget, context: FitContext) -> None:
    """See ``output_names.require_known_outputs``."""
    require_weights(target.module)
    target.to(context.device)
    target.module.eval()
    outputs = count_outputs(target, _few(target, context))
    if outputs is not None:
        require_known_outputs(outputs, context.classes, known=context.outputs_known, network=target.module)


def _few(target: ClassifierTarget, context: FitContext) -> torch.Tensor:
    """(2, *shape) images to try the network on."""
    # A defense that uses no data is given none.
    samples = context.validation or context.train
    images = torch.from_numpy(samples.select(np.arange(2)).unit()) if samples else torch.zeros(2, *target.input_shape)
    return images.to(context.device)


def validated(
    target: ClassifierTarget, context: FitContext, classes: Classes | None = None, label: Label | None = None
) -> ClassifierTarget:
    """The target in evaluation mode on the context's device, after forward passes over a few images.

    Where they show that it returns anything but logits, these are made of it (``as_logits``).

    Raises:
        TargetError: the network raised, has layers without weights yet, or returned anything but finite logits of the right shape.
    """
    require_weights(target.module)
    target.to(context.device)
    target.module.eval()
    images = _few(target, context)
    target = as_logits(target, "the model", samples=images, classes=classes, label=label)
    with torch.no_grad():
        logits = target(images)
    if not torch.isfinite(logits).all():
        raise TargetError(
            "the model returned NaN or infinite logits for an ordinary image",
            fix="check that the weights belong to this network and that it takes pixels in [0, 1]",
        )
    return target
