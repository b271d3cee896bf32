"""torchdistill's recipes: what is read of their files, and its losses where the library is installed.

Of the part ``train`` of a recipe of version 1 (or of its stages ``stage1``, ``stage2``, ..) are read: ``criterion``, ``num_epochs``, and
of ``teacher`` and ``student`` the ``forward_hook`` and the ``frozen_modules``. Data, models, optimiser and schedule are the campaign's.
What would make another network of teacher or student is refused.

The files have tags that name functions to be called while they are read; here none is called, whatever it names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from robustkd.contracts import PluginError, UsageError
from robustkd.contracts.errors import raised_by

if TYPE_CHECKING:
    from torch import nn

ROOT = "."
"""torchdistill's name of the whole network."""
_READ_OF_A_NETWORK = {"forward_hook", "frozen_modules"}
_OF_NO_MATTER = {"requires_grad", "wrapper", "find_unused_parameters"}
_AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "forward_proc": (None, "forward_batch_only"),
    "sequential": (None, []),
    "adaptations": (None, {}, []),
    "auxiliary_model_wrapper": (None, {}),
}
"""Keys that change the network, and the values with which they change nothing."""


@dataclass(frozen=True)
class RecipeStage:
    """One stage of a recipe.

    Attributes:
        name: ``train``, or its own.
        criterion: as torchdistill is given it.
        epochs: None where the recipe does not say.
        teacher, student: names of submodules whose inputs and outputs the criterion is given.
        frozen: submodules of the student that are not trained.
    """

    name: str
    criterion: Mapping[str, Any]
    epochs: int | None
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    frozen: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Joins what is to be joined; of every other tag of a recipe nothing is made."""


def _joined(loader: _Loader, node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.SequenceNode):
        return None
    return "".join(str(part) for part in loader.construct_sequence(node))


_Loader.add_constructor("!join", _joined)
_Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def read_recipe(file: Path) -> Mapping[str, Any]:
    """The part ``train`` of a recipe's file.

    Raises:
        UsageError: it cannot be read, or has no such part.
    """
    fix = "give a YAML file of torchdistill with 'train: {criterion: {key: .., kwargs: ..}}'"
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{file} cannot be read as a recipe of torchdistill: {said}", fix=fix) from error
    train = content.get("train") if isinstance(content, Mapping) else None
    if not isinstance(train, Mapping):
        raise UsageError(f"{file} is no recipe of torchdistill: it has no part 'train'", fix=fix)
    return train


def stages_of(train: Mapping[str, Any], who: str) -> list[RecipeStage]:
    """The stages of a part ``train``: those called ``stage1`` and so on, or itself.

    Args:
        who: what an error calls the recipe.

    Raises:
        UsageError: a stage has no criterion, or wants another network than the campaign's.
    """
    named = sorted((key for key in train if str(key).startswith("stage")), key=lambda key: (len(str(key)), str(key)))
    if not named:
        return [_stage("train", train, who)]
    return [_stage(str(key), train[key] if isinstance(train[key], Mapping) else {}, who) for key in named]


def _stage(name: str, block: Mapping[str, Any], who: str) -> RecipeStage:
    criterion, epochs = block.get("criterion"), block.get("num_epochs")
    if not isinstance(criterion, Mapping) or not isinstance(criterion.get("key"), str):
        older = isinstance(criterion, Mapping) and "type" in criterion
        raise UsageError(
            f"{who}: {name} has no criterion"
            + (" with a 'key' ('type' is how torchdistill wrote it before version 1)" if older else ""),
            fix="give 'criterion: {key: WeightedSumLoss, kwargs: {sub_terms: ..}}'",
        )
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
        raise UsageError(f"{who}: {name}: num_epochs is {epochs!r}", fix="give a whole number from 1")
    teacher, student = (_network(block.get(side) or {}, side, f"{who}: {name}") for side in ("teacher", "student"))
    return RecipeStage(name, dict(criterion), epochs, teacher[0], student[0], student[1])


def _network(block: Any, side: str, who: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hooked and the frozen submodules of one network."""
    if not isinstance(block, Mapping):
        raise UsageError(f"{who}: {side} is no mapping", fix="write 'forward_hook: {input: [..], output: [..]}' under it")
    for key, value in block.items():
        plain = key in _READ_OF_A_NETWORK or key in _OF_NO_MATTER or value in _AS_IT_IS.get(str(key), ())
        if not plain:
            raise UsageError(
                f"{who}: {side}: '{key}' makes another network of it, which the campaign does not attack",
                fix=f"leave '{key}' out, and name the architecture in the campaign",
            )
    hooks, frozen = block.get("forward_hook") or {}, block.get("frozen_modules") or []
    places = [path for kind in ("input", "output") for path in (hooks.get(kind) or [])] if isinstance(hooks, Mapping) else None
    if places is None or not all(isinstance(path, str) for path in [*places, *frozen]):
        raise UsageError(
            f"{who}: {side}: the names of its submodules are no strings",
            fix="write 'forward_hook: {input: [..], output: [..]}'",
        )
    return tuple(dict.fromkeys(path for path in places if path != ROOT)), tuple(frozen)


def require_torchdistill() -> Any:
    """The library's registry of losses, with all of its losses registered.

    Raises:
        PluginError: it is not installed, or cannot be imported.
    """
    try:
        importlib.import_module("torchdistill.losses.mid_level")
        importlib.import_module("torchdistill.losses.high_level")
        importlib.import_module("torchdistill.losses.util")
        return importlib.import_module("torchdistill.losses.registry")
    except Exception as error:
        raise PluginError(
            f"recipes of torchdistill need the library, which cannot be imported: {type(error).__name__}: {error}",
            fix="pip install 'torchdistill>=1.1'",
        ) from error


def criterion_of(stage: RecipeStage, who: str) -> nn.Module:
    """The criterion of a stage, as torchdistill makes it.

    Raises:
        PluginError: the library is not installed.
        UsageError: it knows no such criterion, or the criterion does not take its arguments.
    """
    registry = require_torchdistill()
    with raised_by(
        f"{who}: {stage.name}: the criterion '{stage.criterion['key']}'", UsageError, fix="see torchdistill's page on losses"
    ):
        criterion: nn.Module = registry.get_high_level_loss(dict(stage.criterion))
    return criterion
