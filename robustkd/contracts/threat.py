"""The threat model: what the attacker may change, by how much, and to what end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from robustkd.contracts.errors import UsageError

Norm = Literal["linf", "l2", "l1", "l0"]
"""In which a perturbation of an image is measured."""
Space = Literal["pixels", "corruption", "prompt", "embeddings", "prefill", "seed"]
"""What the attacker chooses."""
Goal = Literal["untargeted", "targeted"]
"""Whether any wrong class is a success, or only the one that was asked for."""
Knowledge = Literal["white-box", "transfer", "black-box", "oblivious"]

_NORMS: dict[object, Norm] = {math.inf: "linf", 2: "l2", 1: "l1", 0: "l0"}


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
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size), "l0": float(size)}[norm]


def require_meant(norm: Norm, eps: float, shape: Sequence[int], what: str = "eps") -> None:
    """Refuse a budget within which every image is: its unit cannot be the one that was meant.

    Raises:
        UsageError: ``eps`` is larger than the distance between any two images.
    """
    largest = largest_distance(norm, shape)
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


BY_ATTEMPTS: dict[str, str] = {"prompt": "any wording", "prefill": "any beginning of the answer", "seed": "any seed"}
"""Spaces whose budget is a number of attempts, and what the attacker chooses there."""


@dataclass(frozen=True)
class ThreatModel:
    """Inputs within ``eps`` of the clean one in ``norm``, and inside the target's bounds, are allowed.

    ``eps`` is measured in the space's own units (pixels in [0, 1] for images), never in normalised units. In the space
    ``corruption`` any image in the pixel range is (``eps`` is its whole width): what comes there is no attacker's choice.

    A generative model is asked, and ``attempts`` answers to each request may be judged. In the space ``prompt`` the attacker
    words the request, in ``prefill`` also the beginning of the answer, in ``seed`` chooses the random numbers, and in
    ``embeddings`` moves what the prompt is embedded to. ``eps`` then is the number of attempts, but in ``embeddings`` the
    perturbation's size, relative to the mean norm of an embedding.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    space: Space = "pixels"
    goal: Goal = "untargeted"
    knowledge: Knowledge = "white-box"
    attempts: int = 1

    @classmethod
    def by_prompt(cls, attempts: int, space: Space = "prompt") -> ThreatModel:
        """The threat model of an attacker who asks: ``attempts`` answers to each request may be judged."""
        return cls(eps=float(attempts), space=space, attempts=attempts)

    def __post_init__(self) -> None:
        for name, allowed in (("norm", Norm), ("space", Space), ("goal", Goal), ("knowledge", Knowledge)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"threat model: {name} '{getattr(self, name)}' is unknown",
                    fix=f"use one of {', '.join(get_args(allowed))}",
                )
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise UsageError(f"threat model: eps is {self.eps}", fix="eps is a finite number >= 0, in pixel units of [0, 1]")

    @property
    def steps(self) -> tuple[float, ...]:
        """Of an attacker who asks: the numbers of attempts at which a curve shows success."""
        if self.space not in BY_ATTEMPTS:
            return ()
        return tuple(float(point) for point in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if point < self.attempts)

    @property
    def measure(self) -> str:
        """What results file it under: the norm, or the space of what respects none."""
        return self.norm if self.space == "pixels" else self.space

    def __str__(self) -> str:
        if self.space in BY_ATTEMPTS:
            return f"{BY_ATTEMPTS[self.space]}, {self.attempts} attempt{'s' if self.attempts > 1 else ''}"
        aim = ", targeted" if self.goal == "targeted" else ""
        return f"corruptions{aim}" if self.space == "corruption" else f"{self.measure} <= {self.eps:.4g}{aim}"


def told_apart(threats: Iterable[ThreatModel]) -> dict[ThreatModel, str]:
    """What each threat model is called: in short where that names one of them alone, else in full."""
    found = list(dict.fromkeys(threats))
    short = Counter(map(str, found))
    return {
        threat: str(threat)
        if short[str(threat)] == 1
        else f"{threat.measure} <= {threat.eps!r}, {threat.goal}, {threat.knowledge}"
        for threat in found
    }


def budget(norm: str, eps: float, goal: Goal = "untargeted") -> str:
    """What results file a threat model under, in plain letters: `linf eps 0.1`; `any wording, 20 attempts`; `corruptions`.

    Args:
        norm: a norm, or the space of an attacker who respects none (``ThreatModel.measure``).
        eps: in the units of that space.
    """
    if goal == "targeted":
        return f"{budget(norm, eps)}, targeted"
    if norm == "corruption":
        return "corruptions"
    if norm in BY_ATTEMPTS:
        return f"{BY_ATTEMPTS[norm]}, {int(eps)} attempt{'' if int(eps) == 1 else 's'}"
    return f"{norm} {'eps' if norm in get_args(Norm) else '<='} {eps:.4g}"
