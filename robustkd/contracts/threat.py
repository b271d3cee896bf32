"""The threat model: what the attacker may change, by how much, and to what end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from typing_extensions import override

from robustkd.contracts.budget import BaseBudget, require_one_of
from robustkd.contracts.budget import Norm as Norm
from robustkd.contracts.budget import Space as Space
from robustkd.contracts.errors import UsageError
from robustkd.contracts.image_changes import Change, ImageChange, stored_change
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.region import Patch, Region, region_of, stored_region

Goal = Literal["untargeted", "targeted"]
"""Whether any wrong class is a success, or only the one that was asked for."""

_NORMS: dict[object, Norm] = {math.inf: "linf", 2: "l2", 1: "l1", 0: "l0"}


def number_written(text: str) -> float:
    """A number, or a fraction such as `8/255`.

    Raises:
        ValueError: it is neither.
        ZeroDivisionError: the fraction divides by zero.
    """
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def norm_named(value: object) -> object:
    """A norm that is written as elsewhere (``Linf``, ``L_inf``, ``inf``, ``numpy.inf``, ``2``) as it is called here; else ``value``."""
    if isinstance(value, int | float):
        return _NORMS.get(value, value)
    plain = (
        value.casefold().translate({ord(sign): None for sign in "-_ "}).replace("∞", "inf") if isinstance(value, str) else ""
    )
    plain = "linf" if plain in ("inf", "linfinity", "infinity") else f"l{plain}" if plain in ("0", "1", "2") else plain
    return plain if plain in get_args(Norm) else value


def largest_distance(norm: Norm, shape: Sequence[int]) -> float:
    """Between two images of this shape with pixels in [0, 1]."""
    size = math.prod(shape)
    pixels = size // shape[0] if len(shape) > 2 else size  # l0 counts all channels of a pixel once
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size), "l0": float(pixels)}[norm]


def require_plausible(norm: Norm, eps: float, shape: Sequence[int], what: str = "eps") -> None:
    """Refuse a budget within which every image is: its unit cannot be the one that was meant.

    Raises:
        UsageError: ``eps`` is larger than the distance between any two images.
    """
    largest = largest_distance(norm, shape)
    if eps > largest * (1 + 1e-6) and norm == "l0":
        raise UsageError(f"{what} {eps:g} is more pixels than an image has, {largest:.0f}", fix="in l0, eps counts pixels")
    if eps > largest * (1 + 1e-6):
        fix = (
            f"pixels are in [0, 1]: give {eps:g}/255"
            if norm == "linf"
            else "pixels are in [0, 1], not 0..255: divide it by 255"
        )
        raise UsageError(
            f"{what} {eps:g} is more than the distance between any two images in {norm}, {largest:.4g}: is it meant in 0..255?",
            fix=fix,
        )


_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_CHANNELS: dict[Space, str] = {
    "prompt": "any wording",
    "prefill": "any beginning of the answer",
    "seed": "any seed",
    "weights": "any weights",
}


@dataclass(frozen=True)
class PixelBudget(BaseBudget):
    """The perturbation of an image is at most ``eps`` in ``norm``, in units of pixels in [0, 1], never in normalised units.

    Attributes:
        where: the only pixels that may change; None where all may.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    where: Region | None = None
    of_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_one_of("norm", self.norm, *get_args(Norm))
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise UsageError(f"threat model: eps is {self.eps}", fix="eps is a finite number >= 0, in pixel units of [0, 1]")

    @property
    @override
    def space(self) -> Space:
        return "pixels"

    @property
    @override
    def stored(self) -> tuple[str, float]:
        return self.norm, self.eps

    @property
    @override
    def identity(self) -> tuple[str, float, Space, int]:
        return self.norm, self.eps, self.space, 1

    @property
    @override
    def region(self) -> Region | None:
        return self.where

    @property
    @override
    def plain(self) -> str:
        return f"{self.norm} eps {self.eps:.4g}{self.within}"

    @property
    def within(self) -> str:
        """` in a patch of 5 x 5 at the worst place`, or empty where all pixels may change."""
        return "" if self.where is None else f" {self.where}"

    def __str__(self) -> str:
        return f"{self.norm} <= {self.eps:.4g}{self.within}"


@dataclass(frozen=True)
class Corruptions(BaseBudget):
    """Any image in the pixel range, of width 1, is allowed: what comes there is no attacker's choice."""

    norm: ClassVar[Norm] = "linf"
    eps: ClassVar[float] = 1.0
    of_images: ClassVar[bool] = True

    @property
    @override
    def space(self) -> Space:
        return "corruption"

    @property
    @override
    def stored(self) -> tuple[str, float]:
        return self.space, self.eps

    @property
    @override
    def identity(self) -> tuple[str, float, Space, int]:
        return self.norm, self.eps, self.space, 1

    def __str__(self) -> str:
        return "corruptions"


@dataclass(frozen=True)
class AttemptBudget(BaseBudget):
    """A generative model is asked, and ``count`` answers to each request may be judged.

    Attributes:
        channel: what the attacker chooses in each attempt: ``prompt`` (the wording of the request), ``prefill`` (also the
            beginning of the answer), ``seed`` (the random numbers) or ``weights`` (the model's own: the attacker holds them).
    """

    count: int
    channel: Space = "prompt"
    unit: ClassVar[str] = "attempts"

    def __post_init__(self) -> None:
        require_one_of("channel", self.channel, *_CHANNELS)
        _require_attempts(self.count)

    @property
    def attempts(self) -> int:
        """How many answers to each request may be judged."""
        return self.count

    @property
    @override
    def space(self) -> Space:
        return self.channel

    @property
    @override
    def stored(self) -> tuple[str, float]:
        return self.channel, float(self.count)

    @property
    @override
    def identity(self) -> tuple[str, float, Space, int]:
        return "linf", float(self.count), self.channel, self.count

    @property
    @override
    def points(self) -> tuple[float, ...]:
        return tuple(float(point) for point in _STEPS if point < self.count)

    def __str__(self) -> str:
        return f"{_CHANNELS[self.channel]}, {self.count} attempt{'' if self.count == 1 else 's'}"


@dataclass(frozen=True)
class EmbeddingRadius(BaseBudget):
    """The embeddings of a request may be moved by ``eps``, relative to the mean norm of an embedding.

    Attributes:
        attempts: how many answers to each request may be judged; results do not store it.
        norm: in which an attack measures the distance; results do not store it.
    """

    eps: float
    attempts: int = 1
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        require_one_of("norm", self.norm, *get_args(Norm))
        _require_attempts(self.attempts)
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise UsageError(
                f"threat model: eps is {self.eps}", fix="eps is a finite number >= 0, in mean norms of an embedding"
            )

    @property
    @override
    def space(self) -> Space:
        return "embeddings"

    @property
    @override
    def stored(self) -> tuple[str, float]:
        return self.space, self.eps

    @property
    @override
    def identity(self) -> tuple[str, float, Space, int]:
        return self.norm, self.eps, self.space, self.attempts

    def __str__(self) -> str:
        return f"embeddings <= {self.eps:.4g}"


Budget = PixelBudget | Corruptions | Change | AttemptBudget | EmbeddingRadius
"""What a threat model allows."""


def stored_budget(norm: str, eps: float, where: Mapping[str, Any] | None = None) -> Budget:
    """The budget that results file under these values: the inverse of ``stored`` and of its region's.

    Raises:
        UsageError: there is no such budget.
    """
    if norm == "corruption":
        return Corruptions()
    if norm == "embeddings":
        return EmbeddingRadius(eps)
    if (change := stored_change(norm, eps)) is not None:
        return change
    for channel in _CHANNELS:
        if channel == norm:
            return AttemptBudget(int(eps), channel)
    require_one_of("norm", norm, *(names := get_args(Norm)))
    return PixelBudget(names[names.index(norm)], eps, stored_region(where))


def default_eps(norm: Norm, region: Region | None) -> float | None:
    """eps where none is given: of a patch in linf the whole range of pixels, which are free; None where it has to be given."""
    return 1.0 if isinstance(region, Patch) and norm == "linf" else None


@dataclass(frozen=True, init=False)
class ThreatModel:
    """What the attacker may do, and to what end.

    ``ThreatModel("linf", 8 / 255)`` allows perturbations of an image; ``ThreatModel(where=Patch(5))`` those in a patch, whose pixels
    are free unless ``eps`` says otherwise. Another kind of budget is given as ``budget``.
    """

    budget: Budget
    goal: Goal

    def __init__(
        self,
        norm: Norm | None = None,
        eps: float | None = None,
        goal: Goal = "untargeted",
        *,
        budget: Budget | None = None,
        where: Region | Mapping[str, Any] | None = None,
    ) -> None:
        require_one_of("goal", goal, *get_args(Goal))
        region = None if where is None else region_of(where)
        if budget is None and eps is None:
            eps = default_eps(norm or "linf", region)
        named = {"norm": norm, "eps": eps, "where": region}
        given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        object.__setattr__(self, "budget", replace(budget or PixelBudget(), **given))
        object.__setattr__(self, "goal", goal)

    @classmethod
    def by_prompt(cls, attempts: int, channel: Space = "prompt") -> ThreatModel:
        """The threat model of an attacker who asks: ``attempts`` answers to each request may be judged."""
        return cls(budget=AttemptBudget(attempts, channel))

    def with_eps(self, eps: float) -> ThreatModel:
        """The same threat model with another radius."""
        return ThreatModel(eps=eps, goal=self.goal, budget=self.budget)

    @property
    def space(self) -> Space:
        """What the attacker chooses."""
        return self.budget.space

    @property
    def where(self) -> Region | None:
        """Where in an image pixels may change; None where they may everywhere, and of what is no budget of pixels."""
        return self.budget.region

    @property
    def norm(self) -> Norm:
        """The norm of a budget that has one.

        Raises:
            UsageError: the budget is a number of attempts, or says how an image changes.
        """
        if isinstance(self.budget, AttemptBudget | ImageChange):
            raise self._without("norm")
        return self.budget.norm

    @property
    def eps(self) -> float:
        """The radius of a budget that has one.

        Raises:
            UsageError: the budget is a number of attempts.
        """
        if isinstance(self.budget, AttemptBudget):
            raise self._without("eps")
        return self.budget.eps

    @property
    def attempts(self) -> int:
        """How many answers of a generative model to each request may be judged.

        Raises:
            UsageError: the budget is one of images.
        """
        if isinstance(self.budget, PixelBudget | Corruptions | ImageChange):
            raise self._without("attempts")
        return self.budget.attempts

    @property
    def stored_values(self) -> tuple[str, float, dict[str, JsonValue] | None]:
        """The values under which results file its budget: ``norm``, ``eps`` and ``where``."""
        return *self.budget.stored, None if self.where is None else self.where.stored

    @classmethod
    def stored(cls, norm: str, eps: float, goal: Goal = "untargeted", where: Mapping[str, Any] | None = None) -> ThreatModel:
        """The threat model that results file under these values.

        Raises:
            UsageError: there is no such budget or goal.
        """
        return cls(budget=stored_budget(norm, eps, where), goal=goal)

    @property
    def plain(self) -> str:
        """The threat model in words for a terminal, such as `linf eps 0.1` or `linf eps 0.1, targeted`."""
        return f"{self.budget.plain}{self.aim}"

    @property
    def aim(self) -> str:
        """The end of a sentence about the goal: `, targeted`, or nothing."""
        return ", targeted" if self.goal == "targeted" else ""

    def _without(self, what: str) -> UsageError:
        fix = "use a threat model in pixels" if self.budget.of_images else "use it where the data are of its modality"
        return UsageError(f"the threat model ({self}) has no {what}", fix=fix)

    def __str__(self) -> str:
        return f"{self.budget}{self.aim}"


def distinct_names(threats: Iterable[ThreatModel]) -> dict[ThreatModel, str]:
    """A distinct name for each threat model: the short one where it is unambiguous, else the full one."""
    distinct = list(dict.fromkeys(threats))
    short = Counter(map(str, distinct))

    def full(threat: ThreatModel) -> str:
        measure, eps = threat.budget.stored
        where = "" if threat.where is None else f", {threat.where.stored}"
        return f"{measure} <= {eps!r}{where}, {threat.goal}"

    return {threat: str(threat) if short[str(threat)] == 1 else full(threat) for threat in distinct}


def _require_attempts(count: int) -> None:
    if count < 1:
        raise UsageError(f"threat model: {count} attempts", fix="allow 1 or more")
