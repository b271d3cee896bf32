"""Families of networks: a function of a few parameters, and the ranges that they are drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exam.data import digits
from exam.lab import Lab, Subject
from exam.parameters import Range, Value, drawn

Build = Callable[..., Subject]


@dataclass(frozen=True)
class Family:
    """Networks of one idea.

    Attributes:
        name: as the table says it.
        honest: whether its robustness is what it seems.
        ranges: of the parameters of ``build``.
        build: (lab, **parameters) -> the trained subject.
    """

    name: str
    honest: bool
    ranges: dict[str, Range]
    build: Build


FAMILIES: dict[str, Family] = {}


def _family(honest: bool, ranges: dict[str, Range]) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        name = build.__name__.replace("_", "-")
        assert name not in FAMILIES, name
        FAMILIES[name] = Family(name, honest, ranges, build)
        return build

    return register


def artefact(**ranges: Range) -> Callable[[Build], Build]:
    """Registers a function that builds networks which look more robust than they are."""
    return _family(False, ranges)


def honest(**ranges: Range) -> Callable[[Build], Build]:
    """Registers a function that builds networks with nothing to hide."""
    return _family(True, ranges)


@dataclass(frozen=True)
class Network:
    """One drawn member of a family: ``seed`` says which."""

    family: str
    seed: str

    @property
    def parameters(self) -> dict[str, Value]:
        return drawn(FAMILIES[self.family].ranges, f"{self.family}/{self.seed}")

    @property
    def name(self) -> str:
        return f"{self.family}/{self.seed}"

    @property
    def honest(self) -> bool:
        return FAMILIES[self.family].honest

    def build(self, test: int) -> Subject:
        """Train it, to be judged on ``test`` samples."""
        lab = Lab(*digits(test), seed=self.name)
        return FAMILIES[self.family].build(lab, **self.parameters)


def networks(draws: int, seed: str) -> list[Network]:
    """``draws`` networks of each family that are always the same, and as many held out, which ``seed`` draws."""
    seeds = [*(f"fixed-{number}" for number in range(draws)), *(f"{seed}-{number}" for number in range(draws))]
    return [Network(family, each) for family in FAMILIES for each in seeds]
