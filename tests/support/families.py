"""What tests over all attacks have to know of some: names that are none, and what an attack may do that knows no norm of pixels."""

from __future__ import annotations

from typing import Any

from robustkd import plugins
from robustkd.plugin_kit.fixtures import CHANGES

FAMILIES = frozenset({"adv-lib", "art", "foolbox", "torchattacks"})
"""Names that stand for all attacks of another library, which are no attacks themselves."""


FEW = {"steps": 5, "queries": 20, "training_steps": 5, "epochs": 1, "rounds": 1}


def brief(name: str) -> dict[str, int]:
    """The fewest steps, queries and epochs with which an attack still does everything that it does."""
    fields = plugins.load("attacks", name).Params.model_fields
    return {key: few for key, few in FEW.items() if key in fields and isinstance(fields[key].default, int)}


def allowed(name: str) -> dict[str, Any]:
    """Arguments of ``robustkd.attack`` that say what this attack may do: in its first norm, in a patch, or of its own space."""
    kind = plugins.load("attacks", name)
    if kind.space in CHANGES:
        return {"budget": CHANGES[kind.space]}
    if ".patch." in kind.__module__:
        return {"where": {"patch": 3}}
    norm = next(iter(kind.norms), "linf")
    return {"norm": norm, "eps": {"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 5.0}[norm]}
