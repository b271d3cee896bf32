"""What is asked of every plug-in: its class, its parameters, its documentation."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any, get_args

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from robustkd import contracts, plugins
from robustkd.contracts import Params
from robustkd.contracts.attack import AttackKind
from robustkd.contracts.check import Severity
from robustkd.contracts.threat import Goal, Norm, Space
from robustkd.plugin_kit.subject import Subject, listed, require

CONTRACTS: dict[plugins.Group, type[Any]] = {
    "attacks": contracts.BaseAttack,
    "defenses": contracts.Defense,
    "judges": contracts.Judge,
    "checks": contracts.Check,
    "analyses": contracts.Analysis,
    "datasets": contracts.Dataset,
    "models": contracts.Model,
    "transforms": contracts.Transform,
    "detectors": contracts.Detector,
    "condensers": contracts.Condenser,
}

_WORDS = {"kind": AttackKind, "norms": Norm, "goals": Goal, "space": Space, "severity": Severity}


def contract(subject: Subject) -> None:
    """It is a class of the contract, whole, with attributes that mean something, and no other plug-in has its name."""
    plugin, base = subject.plugin, CONTRACTS[subject.group]
    changed = plugins.refusal(subject.group, subject.name)
    require(
        not changed,
        changed or "",
        f'change the plug-in and say "{contracts.CONTRACT_VERSION}" in its entry point robustkd.contract',
    )
    require(
        isinstance(plugin, type) and issubclass(plugin, base),
        f"it is no subclass of robustkd.contracts.{base.__name__}",
        f"class {getattr(plugin, '__name__', 'It')}({base.__name__}): ..",
    )
    missing = getattr(plugin, "__abstractmethods__", ())
    require(not missing, f"it does not implement {listed(sorted(missing))}", "write the method")
    require(
        issubclass(plugin.Params, Params),
        "its Params are no subclass of robustkd.contracts.Params",
        "derive them from it: that refuses unknown keys",
    )
    for attribute, allowed in _WORDS.items():
        if hasattr(base, attribute) or hasattr(plugin, attribute):
            value = getattr(plugin, attribute)
            words = value if isinstance(value, tuple) else (value,)
            wrong = [str(word) for word in words if word not in get_args(allowed)]
            require(
                bool(words) and not wrong, f"{attribute} is {value!r}", f"choose from {', '.join(map(str, get_args(allowed)))}"
            )
    version = getattr(plugin, "version", "1")
    require(isinstance(version, str) and bool(version), f"version is {version!r}", 'a text such as version = "1"')
    points = importlib.metadata.entry_points(group=f"robustkd.{subject.group}")
    owners = {point.dist.name for point in points if point.dist and point.name == subject.name.partition(":")[0]}
    require(len(owners) < 2, f"{listed(sorted(owners))} all register the name '{subject.name}'", "choose another name")


def parameters(subject: Subject) -> None:
    """Each parameter has a text, and numbers have a range; what is required shows how it is written."""
    undocumented = [key for key, field in _fields(subject.plugin.Params) if not field.description]
    require(
        not undocumented, f"{listed(undocumented)}: no description", 'steps: int = Field(10, ge=1, description="steps of ..")'
    )
    boundless = [key for key, field in _fields(subject.plugin.Params) if _is_number(field) and not _bounds(field)]
    require(
        not boundless, f"{listed(boundless)}: any number is accepted", "say the range: Field(.., ge=0), or allow_inf_nan=False"
    )
    subject.values()


def mistakes(subject: Subject) -> None:
    """Unknown keys, numbers outside their range and NaN are refused."""
    values, schema = subject.values(), subject.plugin.Params
    _refused(schema, values | {"no_such_key": 1}, "an unknown key")
    for key, field in schema.model_fields.items():
        for outside in _outside(field):
            _refused(schema, values | {key: outside}, f"{key}: {outside}")


def written_down(subject: Subject) -> None:
    """Its parameters come back from JSON as they were, as they are stored and hashed."""
    schema = subject.plugin.Params
    params = schema(**subject.values())
    again = schema.model_validate(params.model_dump(mode="json"))
    require(
        again == params,
        "written to JSON and read back, the parameters differ",
        "use plain types, or give the type a serialiser and a validator that agree",
    )


def documentation(subject: Subject) -> None:
    """It has a docstring of its own; an attack or a defense names its source, a check its rule."""
    plugin = subject.plugin
    text = (vars(plugin).get("__doc__") or "").strip()
    require(len(text) > 10, "the class has no docstring of its own", "say in a sentence what it does")
    if subject.group in ("attacks", "defenses", "checks"):
        require(bool(plugin.source), "it names no source", 'source = "Author et al. 2025, arXiv:.."; or "this package"')
    if subject.group == "checks":
        require(bool(plugin.rule), "it states no rule", 'rule = "more than 5 % of ..", with its threshold')


EVERY = (contract, parameters, mistakes, written_down, documentation)


def _fields(schema: type[Any]) -> list[tuple[str, FieldInfo]]:
    return list(schema.model_fields.items())


def _bounds(field: FieldInfo) -> list[Any]:
    return [mark for mark in field.metadata if isinstance(mark, annotated_types.BaseMetadata)]


def _is_number(field: FieldInfo) -> bool:
    kinds = set(get_args(field.annotation) or (field.annotation,)) - {type(None)}
    return bool(kinds) and kinds <= {int, float}


def _outside(field: FieldInfo) -> list[float]:
    """Numbers that a field says it does not take."""
    if not _is_number(field):
        return []
    found: list[float] = [math.nan] if float in (get_args(field.annotation) or (field.annotation,)) else []
    for mark in field.metadata:
        if isinstance(mark, annotated_types.Ge):
            found.append(mark.ge - 1)  # type: ignore[operator]
        elif isinstance(mark, annotated_types.Gt):
            found.append(mark.gt)  # type: ignore[arg-type]
        elif isinstance(mark, annotated_types.Le):
            found.append(mark.le + 1)  # type: ignore[operator]
        elif isinstance(mark, annotated_types.Lt):
            found.append(mark.lt)  # type: ignore[arg-type]
    return found


def _refused(schema: type[Any], values: Mapping[str, object], what: str) -> None:
    try:
        schema(**values)
    except ValidationError:
        return
    require(False, f"{what} is accepted", "keep the model_config of robustkd.contracts.Params, and give numbers their range")
