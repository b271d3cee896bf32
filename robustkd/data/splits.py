"""From a dataset by name to the samples of a campaign: sub-sampled, split, checked and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Generic, Literal

import numpy as np
from pydantic import Field, field_validator

from robustkd import plugins
from robustkd.contracts import Arrays, DataError, Dataset, DeferredArrays, Modality, Params, Prompts, RawData, UsageError
from robustkd.contracts.data import Data
from robustkd.contracts.params import AddedLater
from robustkd.data.arrays import as_arrays
from robustkd.data.long_tail import thinned
from robustkd.data.multi_label import Label, with_success
from robustkd.data.order import stratified_order
from robustkd.lazy import torch
from robustkd.normalisation.unit import Unit

Ends = float | tuple[float, ...]
"""One end of the range of valid inputs: for all features, or for each."""
_TEST, _TRAIN = 0, 1  # the two parts are ordered by independent random streams


class Flipped(Params):
    """One label that is to be flipped."""

    label: Annotated[int, Field(ge=0)] | str = Field(description="its number from 0, or its name", examples=[3])


class SplitParams(Params):
    """How much of a dataset a campaign uses."""

    train: int | None = Field(None, ge=1, description="training samples, the validation part included; all by default")
    test: int | None = Field(None, ge=1, description="test samples; all by default")
    validation: int | float = Field(0.1, ge=0, description="samples (or, below 1, the fraction) carved from the training ones")
    seed: int = Field(0, ge=0, description="chooses the samples and their order")
    bounds: tuple[Ends, Ends] | None = Field(
        None,
        description="the lowest and the highest valid value of the inputs, where that is not [0, 1]: [-1, 1], or two lists with a number "
        "for each feature (the last axis of a sample); eps of the threat is then in this unit",
    )
    imbalance: Annotated[float | None, AddedLater()] = Field(
        None,
        ge=1,
        description="how many times as many training images the first class has as the last: the classes are thinned along an exponential "
        "(a long tail); validation and test images stay as they are",
    )
    success: Literal["any"] | Flipped | None = Field(
        None,
        description="of labels (N, L), 0 or 1, that may hold together, what the attacker is after: {label: 3}, that label 3 is flipped, or "
        "any, that any of ten labels at most is",
    )

    @property
    def scale(self) -> float:
        """How wide the widest range within ``bounds`` is."""
        return 1.0 if self.bounds is None else float((np.asarray(self.bounds[1]) - np.asarray(self.bounds[0])).max())

    @field_validator("bounds")
    @classmethod
    def _bounds_are_ranges(cls, value: tuple[Ends, Ends] | None) -> tuple[Ends, Ends] | None:
        if value is not None:
            low, high = map(np.asarray, value)
            if 1 not in (low.size, high.size) and low.size != high.size:
                raise ValueError(f"{low.size} lowest values and {high.size} highest ones: give as many of both")
            if not low.size or not high.size or not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
                raise ValueError("bounds are no ranges: give finite numbers, each lowest value below its highest")
        return value

    @field_validator("validation")
    @classmethod
    def _validation_is_a_count_or_a_fraction(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"{value} is neither a fraction below 1 nor a whole number of samples")
        return value


@dataclass(frozen=True)
class Splits(Generic[Data]):
    """The samples of a campaign.

    Attributes:
        train, validation: disjoint, both from the dataset's training part, unless it has a validation part of its own; None
            when it has none (``validation`` also when none was asked for).
        test: from the dataset's test part; any prefix is a fair sample.
        test_index: (N,) int64, the position of each test sample in the dataset's test part.
        classes: the K class names.
        input_shape: of one sample, such as (C, H, W) or (F,); () of prompts.
        modality: ``images`` when the parts are ``Arrays``, else they are ``Prompts``.
        benign: of prompts, harmless test requests; all that the dataset has.
        notes: what the dataset says is to be read with every number.
        unit: what brought the inputs to [0, 1]; None where they lie there by themselves.
        label: of data whose labels may hold together, which one counts, or ``"any"``; the classes are made of them then.
        outputs_known: whether the user said which output of a model each class is (``classes`` of a folder).
    """

    train: Data | None
    validation: Data | None
    test: Data
    test_index: np.ndarray
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    modality: Modality = "images"
    benign: Prompts | None = None
    notes: tuple[str, ...] = ()
    unit: Unit | None = None
    label: Label | None = None
    outputs_known: bool = False

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each has samples."""
        return len(self.classes)

    @cached_property
    def test_digests(self) -> list[str]:
        """SHA-256 of what the numbers are of: the test samples and, of prompts, the harmless requests."""
        return [part.digest() for part in (self.test, self.benign) if part is not None]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the parts, their order and the class names; every image is decoded for it, unless its hash is known."""
        parts = (self.train, self.validation, self.test, *([self.benign] if self.benign else []))
        contents = [None if part is None else part.digest() for part in parts]
        return hashlib.sha256(json.dumps([self.classes, contents]).encode()).hexdigest()


def load_splits(name: str, params: Mapping[str, Any] | None = None, split: SplitParams | None = None) -> Splits[Any]:
    """Load the dataset called ``name`` and take the samples that ``split`` asks for.

    Samples are drawn by class proportions, by ``split.seed`` alone: the test samples do not depend on the other
    sizes, and of two sizes the larger sample contains the smaller.

    Args:
        params: the dataset's own parameters.

    Raises:
        PluginError: there is no such dataset.
        UsageError: a parameter of it is missing, unknown or out of range.
        DataError: the data are missing or out of range, or more is asked for than there is.
    """
    split = split or SplitParams()
    plugin = plugins.make("datasets", {**(params or {}), "kind": name})
    raw, label = with_success(_loaded(plugin, name), None if split.success is None else split.model_dump()["success"], name)
    unit = None if split.bounds is None else _unit(split.bounds, raw, name)
    raw = _checked(raw if unit is None else _in_unit(raw, unit, name), name)
    test_index = stratified_order(raw.test.labels, split.seed, _TEST)[: _count(split.test, len(raw.test), "test", name)]
    test = raw.test.select(test_index)
    train, validation = _training(raw, split, name)
    shape = test.sample_shape or (train.sample_shape if train else ())
    notes = [*raw.notes, *_told(shape, unit)]
    if split.imbalance is not None:
        train, counts = thinned(train, len(raw.classes), split.imbalance, name)
        notes.append(
            f"the training images are a long tail: {counts.max()} of the most frequent class, {counts.min()} of the rarest"
        )
    return Splits(
        train,
        validation,
        test,
        test_index,
        raw.classes,
        shape,
        plugin.modality,
        raw.benign,
        tuple(notes),
        unit,
        label,
        raw.outputs_known,
    )


def _loaded(plugin: Dataset, name: str) -> RawData:
    try:
        return plugin.load()
    except MemoryError as error:
        raise DataError(f"data '{name}': they do not fit into memory: {error}", fix="use fewer or smaller samples") from error


def _told(shape: Sequence[int], unit: Unit | None) -> list[str]:
    """What is to be read with the numbers of inputs that are no images in [0, 1]."""
    told = []
    if unit is not None and unit.scale != 1:
        told.append(
            f"the inputs are divided by {unit.scale:g}, their widest range: eps and distances (except in l0) times {unit.scale:g} are "
            "those in the unit of the data"
        )
    if shape and len(shape) != 3:
        told.append(f"the inputs have the shape {tuple(shape)} and are no images, so none are shown")
    return told


def _unit(bounds: tuple[Ends, Ends], raw: RawData[Any], name: str) -> Unit | None:
    if not isinstance(raw.test, Arrays):
        raise DataError(f"data '{name}' are prompts, which have no bounds", fix="leave out 'bounds'")
    try:
        return Unit.of(bounds, raw.test.sample_shape)
    except UsageError as error:
        raise DataError(
            f"data '{name}': {error.message}", fix="give two numbers, or one for each number of the last axis"
        ) from None


def _in_unit(raw: RawData[Any], unit: Unit, name: str) -> RawData[Any]:
    """The data brought to [0, 1]; those that are decoded where they are used are brought there after that."""

    def read(part: Arrays) -> np.ndarray:
        try:
            return unit.inputs(torch.as_tensor(np.asarray(part.images, dtype=np.float64))).float().numpy()
        except DataError as error:
            raise DataError(f"data '{name}': {error.message}", fix="widen 'bounds', or clamp the inputs") from None

    def brought(part: Arrays | None) -> Arrays | None:
        if not isinstance(part, DeferredArrays):
            return None if part is None else Arrays(read(part), part.labels)
        return DeferredArrays(lambda rows: read(part.select(rows)), part.labels, part.sample_shape)

    return replace(raw, train=brought(raw.train), test=brought(raw.test), validation=brought(raw.validation))


def _training(raw: RawData[Data], split: SplitParams, name: str) -> tuple[Data | None, Data | None]:
    part = raw.train
    if part is None:
        if split.train is not None:
            raise DataError(
                f"data '{name}': {split.train} training samples are asked for, but there is only a test part",
                fix="add the training files beside the test files, or leave 'train' out and load trained models",
            )
        return None, None
    total = _count(split.train, len(part), "training", name)
    wanted = split.validation
    if wanted and raw.validation is not None:
        return part.select(stratified_order(part.labels, split.seed, _TRAIN)[:total]), raw.validation
    held = wanted if isinstance(wanted, int) else max(round(wanted * total), int(wanted > 0))
    if held >= total:
        raise DataError(
            f"data '{name}': {held} of {total} training samples are asked for as validation, which leaves none to train on",
            fix="lower 'validation' or raise 'train'",
        )
    order = stratified_order(part.labels, split.seed, _TRAIN)[:total]
    return part.select(order[held:]), part.select(order[:held]) if held else None


def _count(asked: int | None, available: int, part: str, name: str) -> int:
    if asked is not None and asked > available:
        raise DataError(
            f"data '{name}': {asked} {part} samples are asked for, there are {available}",
            fix=f"ask for at most {available}, or leave the number out to use all",
        )
    return available if asked is None else asked


def _checked(raw: RawData[Any], name: str) -> RawData[Any]:
    def checked(part: Any) -> Arrays | Prompts:
        typed = part if isinstance(part, (Prompts, DeferredArrays)) else as_arrays(part.images, part.labels, name)
        return typed.validated(name, len(raw.classes))

    parts = (raw.train, raw.test, raw.benign, raw.validation)
    train, test, benign, validation = (None if part is None else checked(part) for part in parts)
    if isinstance(test, Arrays) and isinstance(train, Arrays) and train.sample_shape != test.sample_shape:
        raise DataError(
            f"data '{name}': training images are {train.sample_shape}, test images {test.sample_shape}",
            fix="bring all images to one size and number of channels",
        )
    assert test is not None
    return RawData(train, test, tuple(raw.classes), benign, validation, tuple(raw.notes), raw.outputs_known)
