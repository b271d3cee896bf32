"""The plug-in under test, and how a property of it says that a promise is not kept.

A property is a function of a ``Subject``. Its docstring is the promise; it returns when the promise is kept, raises ``Broken``
when it is not, and ``NotApplicable`` when the plug-in makes no such promise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustkd import plugins
from robustkd.contracts.random import seed_torch
from robustkd.lazy import torch
from robustkd.plugin_kit.example import example_params


class Broken(Exception):
    """A promise that is not kept: why, and what to do."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.fix = fix


class NotApplicable(Exception):
    """The plug-in makes no such promise, or it cannot be looked at here; the message says why."""


@dataclass(frozen=True)
class Subject:
    """The plug-in under test.

    Attributes:
        plugin: its class.
        settings: parameters that the tester gave, over those that the suite takes.
        memo: what several properties look at, made once.
    """

    group: plugins.Group
    name: str
    plugin: type[Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def values(self, quick: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Parameters to run it with: what is required, the settings, and those of ``quick`` that it has.

        A name of ``quick`` (an architecture) only takes the place of one that is required: it may exclude another parameter.
        """
        known, required = self.plugin.Params.model_fields, example_params(self.group, self.name)
        cheap = {
            key: value
            for key, value in (quick or {}).items()
            if key in known and (key in required or not isinstance(value, str))
        }
        return example_params(self.group, self.name, cheap | dict(self.settings))

    def make(self, quick: Mapping[str, Any] | None = None) -> Any:
        """The plug-in, made with the parameters of ``values``."""
        made = self.plugin(self.plugin.Params(**self.values(quick)))
        made.name = self.name
        return made


Property = Callable[[Subject], None]


@contextmanager
def preserved_generators() -> Iterator[None]:
    """The global generators of torch, NumPy and Python are restored on leaving."""
    numbers, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(python)


@contextmanager
def generators_at(seed: int) -> Iterator[None]:
    """The same, and seeded: what draws from them all the same comes out differently for another seed."""
    with preserved_generators():
        seed_torch(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


def require(kept: bool, why: str, fix: str) -> None:
    """``Broken`` unless the promise is kept."""
    if not kept:
        raise Broken(why, fix)


def listed(words: Iterable[str], most: int = 5) -> str:
    """The first words, and how many more there are."""
    words = list(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
