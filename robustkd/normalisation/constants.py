"""The constants of a normalisation, given or by name. It imports no torch: campaigns are read without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from robustkd.contracts import UsageError, suggestion
from robustkd.lazy import nn, torch

NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5,), (0.5,)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "0..255": ((0.0,), (1 / 255,)),
}
"""The usual constants, mean and std of each channel, by name. ``inception`` brings pixels to [-1, 1], ``0..255`` to bytes."""


class Constants(BaseModel):
    """The constants of a normalisation: one of ``NAMED`` by its name, or ``{mean: [..], std: [..]}``, one number for each channel."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in NAMED:
                raise ValueError(f"no constants are called '{value}' ({suggestion(value, NAMED) or ', '.join(NAMED)})")
            value = NAMED[value]
        return {"mean": value[0], "std": value[1]} if isinstance(value, list | tuple) and len(value) == 2 else value

    @model_validator(mode="after")
    def _as_many(self) -> Constants:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std has {len(self.std)}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(NAMED)}, handler(core)]}

    @classmethod
    def of(cls, value: str | Sequence[Sequence[float]] | Mapping[str, Sequence[float]] | Constants) -> Constants:
        """A name, a pair of mean and std, or a mapping of them.

        Raises:
            UsageError: it is none of these.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"{part}: " for part in first["loc"])
            raise UsageError(
                f"normalise: {key}{first['msg'].removeprefix('Value error, ')}",
                fix="give a name, such as imagenet, or a mean and a std for each channel: {mean: [..], std: [..]}",
            ) from None

    @classmethod
    def to(cls, low: float | Sequence[float], high: float | Sequence[float]) -> Constants:
        """The constants that bring [0, 1] to these bounds, for all channels or for each.

        Raises:
            ValueError: they are no ranges.
        """
        lows, highs = (list(each) if isinstance(each, Sequence) else [each] for each in (low, high))
        size = max(len(lows), len(highs))
        lows, highs = (each * size if len(each) == 1 else each for each in (lows, highs))
        if len(lows) != len(highs) or not all(each < other for each, other in zip(lows, highs, strict=True)):
            raise ValueError("bounds are a lowest and a highest value, [-1, 1], or two lists of as many numbers")
        widths = [other - each for each, other in zip(lows, highs, strict=True)]
        return cls(
            mean=tuple(-each / width for each, width in zip(lows, widths, strict=True)),
            std=tuple(1 / width for width in widths),
        )

    def before(self, network: nn.Module, channels: int) -> nn.Sequential:
        """The network behind the normalisation; it keeps its own ``state_dict``, under the prefix ``1.`` in the whole's.

        Raises:
            UsageError: there are more constants than one, and not one for each channel.
        """
        if len(self.mean) not in (1, channels):
            raise UsageError(
                f"normalise: mean has {len(self.mean)} numbers, the images have {channels} channel{'s' if channels > 1 else ''}",
                fix="give one for each channel",
            )
        from robustkd.normalisation.layer import Normalise  # late: it imports torch

        first = next((each for each in network.parameters() if each.is_floating_point()), torch.zeros(0))
        return nn.Sequential(Normalise(self.mean, self.std).to(first.device, first.dtype), network)
