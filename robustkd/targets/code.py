"""The user's own code, named in a campaign as ``module:function`` or ``path/to/file.py:function``.

A saved target's card names code too, and a card may come from anybody. What it names is a wish: only code that the user has named
elsewhere (in the campaign, on the command line) is called, see ``allowing``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from robustkd.contracts import Code, TargetError, UsageError, suggestion
from robustkd.contracts.errors import place_of
from robustkd.contracts.random import seed_torch
from robustkd.contracts.version import moved
from robustkd.lazy import nn, torch
from robustkd.targets.imports import importing_from

_OWN = {
    "robustkd.robustbench_bridge:build": "robustkd.integrations.robustbench:build",
    "robustkd.defenses.image.gal:build": "robustkd.defenses.image.ensembles.gal:build",
    "robustkd.defenses.image.sla_sd:build": "robustkd.defenses.image.distillation.self_distillation.sla_sd:build",
}
"""What any card may name, by the name that cards have had from the first, and where it is. Each builds a registered architecture and
does nothing else."""
NETWORK = "network"
"""What a reference to a model file names in it: ``path/to/net.onnx:network``."""
_ALLOWED: ContextVar[tuple[Code, ...]] = ContextVar("allowed", default=())


def source_file(reference: str) -> Path | None:
    """The file behind a ``file.py:function`` reference; None for an importable module."""
    location = reference.rpartition(":")[0]
    return Path(location) if location.endswith(".py") else None


def folders_of(reference: str, folder: Path | None = None) -> list[Path]:
    """Where its code finds its modules, before the installed packages: beside a file, as ``python file.py`` does; of a module, in
    ``folder`` and in the working folder."""
    if file := source_file(reference):
        return [file.resolve().parent]
    return [*([folder] if folder else []), Path.cwd()]


def call_by_reference(reference: str, kwargs: Mapping[str, object], folder: Path | None = None) -> nn.Module:
    """Import ``module:function`` (or ``file.py:function``), call it and return the network it builds.

    Args:
        folder: where a module is looked for first, see ``folders_of``.

    Raises:
        UsageError: the reference has no such shape, file or function.
        TargetError: the function raised or returned something else than a network.
    """
    location, _, attribute = reference.rpartition(":")
    if attribute == NETWORK and not source_file(reference) and (os.sep in location or Path(location).is_file()):
        from robustkd.targets.model_files import open_model  # late: it imports torch

        return open_model(Path(location))
    with importing_from(*folders_of(reference, folder)):
        build = _attribute(reference)
        try:
            # What it draws without a seed of its own must not make another network of it each time.
            with torch.random.fork_rng(devices=[]):
                seed_torch(0)
                network = build(**kwargs) if callable(build) and not isinstance(build, nn.Module) else build
        except Exception as error:
            raise TargetError(f"{reference} raised {type(error).__name__}{place_of(error)}: {error}") from error
    if not isinstance(network, nn.Module):
        raise TargetError(f"{reference} returned {type(network).__name__}", fix="return a torch.nn.Module")
    return network


@contextmanager
def allowing(code: Iterable[Code]) -> Iterator[None]:
    """Until the end of the block ``call_for_card`` calls these functions. It is no argument, so that targets within targets,
    those of plug-ins too, are built under the same rule."""
    token = _ALLOWED.set(tuple(code))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def call_for_card(code: Code) -> nn.Module:
    """``call_by_reference`` of what a card names, where it is allowed.

    Of a file it is the allowed one that is called, wherever the card has it from: campaigns are moved with their results.

    Raises:
        TargetError: it is not allowed.
    """
    arguments = dict(code.kwargs or {})
    if own := _OWN.get(code.reference):
        return call_by_reference(own, arguments)
    covering = {known.reference: known.folder for known in _ALLOWED.get() if known.covers(code)}
    chosen = {code.reference} if code.reference in covering else set(covering)
    if len(chosen) != 1:
        raise TargetError(
            f"it names code, {code}, which does not run because a file says so",
            fix="where you trust it, name it yourself: as 'code' of a defense of kind 'external' in the campaign, by "
            f"--code {code.reference} of robustkd attack and audit, or by load_target(folder, code=[..])",
        )
    reference = chosen.pop()
    return call_by_reference(reference, arguments, covering[reference])


def function_by_reference(reference: str) -> Callable[..., Any]:
    """Import ``module:function`` (or ``file.py:function``) and return the function itself.

    Raises:
        UsageError: the reference has no such shape, file or function.
    """
    with importing_from(*folders_of(reference)):
        function = _attribute(reference)
    if not callable(function):
        raise UsageError(f"{reference} is a {type(function).__name__}", fix="name a function")
    found: Callable[..., Any] = function
    return found


def _attribute(reference: str) -> Any:
    location, colon, attribute = reference.rpartition(":")
    if not colon or not location or not attribute:
        raise UsageError(
            f"'{reference}' is not a reference to code", fix="write package.module:function or path/to/file.py:function"
        )
    module = _module(location, reference)
    inside = module
    for name in attribute.split("."):
        found = getattr(inside, name, None)
        if found is None:
            where = location if inside is module else f"{location}:{attribute.rpartition(f'.{name}')[0]}"
            known = [each for each in dir(inside) if not each.startswith("_")]
            raise UsageError(f"{where} has no '{name}'", fix=suggestion(name, known))
        inside = found
    return inside


def _module(location: str, reference: str) -> Any:
    try:
        if not location.endswith(".py"):
            return importlib.import_module(location)
        path = Path(location)
        if not path.is_file():
            raise UsageError(
                f"'{reference}': there is no file {path}",
                fix="give the path from the campaign file's folder, or from here on the command line",
            )
        name = f"robustkd_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except Exception as error:
        if names := moved(error):
            former, now = names
            raise UsageError(f"{location} imports {former}, which is {now} now", fix=f"write {now} in the import") from error
        fix = "see that it imports in Python"
        if "relative import" in str(error):
            fix = f"name it as a module of its package: PACKAGE.{Path(location).stem}:{reference.rpartition(':')[2]}"
        raise UsageError(f"{location} cannot be imported: {type(error).__name__}{place_of(error)}: {error}", fix=fix) from error
