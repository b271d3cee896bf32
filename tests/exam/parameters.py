"""Ranges from which a family's parameters are drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Value = float | int | str | bool


class Range(Protocol):
    def draw(self, rng: random.Random) -> Value: ...


@dataclass(frozen=True)
class Uniform:
    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        return float(f"{rng.uniform(self.low, self.high):.3g}")


@dataclass(frozen=True)
class Log:
    """Uniform on a logarithmic scale."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")


@dataclass(frozen=True)
class Whole:
    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


class Choice:
    def __init__(self, *values: Value) -> None:
        self.values = values

    def draw(self, rng: random.Random) -> Value:
        return rng.choice(self.values)


def drawn(ranges: Mapping[str, Range], seed: str) -> dict[str, Value]:
    """One value for each parameter; ``seed`` is a text, so that it may name what is drawn."""
    rng = random.Random(seed)
    return {name: each.draw(rng) for name, each in ranges.items()}
