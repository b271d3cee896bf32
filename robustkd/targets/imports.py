"""Importing a user's code as Python does that is started on it: with the folder that it is in on ``sys.path``.

Files of the same name in two folders do not meet: while code of one folder is imported, the modules of others that it would get by
its names are put aside. A module that has changed since is imported anew.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from robustkd.plugins.sources import is_installed

_IMPORTED: dict[Path, dict[str, tuple[ModuleType, str]]] = {}
"""By folder, the modules that were imported from it here, and the hash of each one's file then."""


@contextmanager
def importing_from(*folders: Path) -> Iterator[None]:
    """In the block the folders come first on ``sys.path``, and their modules before any others of a user."""
    places = [folder.resolve() for folder in folders]
    here = {
        path.stem for place in places if place.is_dir() for path in place.iterdir() if path.suffix == ".py" or path.is_dir()
    }
    before = sys.modules.copy()
    aside = {
        name: module
        for name, module in before.items()
        if name.partition(".")[0] in here and (file := _file(module)) and not is_installed(file) and not _in(file, places)
    }
    known = {name: module for place in places for name, module in _unchanged(place).items()}
    _take_out(aside)
    sys.modules.update(known)
    sys.path[:0] = map(str, places)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for place in places:
            if str(place) in sys.path:
                sys.path.remove(str(place))
        for name, module in sys.modules.copy().items():  # another thread may be importing
            if (
                before.get(name) is not module
                and (file := _file(module))
                and not is_installed(file)
                and (home := _in(file, places))
            ):
                _IMPORTED.setdefault(home, {})[name] = module, _digest(file)
        tops = {name.partition(".")[0] for name in aside}
        _take_out(name for name in list(sys.modules) if name.partition(".")[0] in tops)
        sys.modules.update(aside)


def _unchanged(place: Path) -> dict[str, ModuleType]:
    """What was imported from a folder, unless one of the files is another one now."""
    imported = _IMPORTED.get(place, {})
    if all((file := _file(module)) and _digest(file) == digest for module, digest in imported.values()):
        return {name: module for name, (module, _) in imported.items()}
    for name, (module, _) in _IMPORTED.pop(place).items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    return {}


def _take_out(names: Iterable[str]) -> None:
    for name in list(names):
        sys.modules.pop(name, None)


def _in(file: Path, places: list[Path]) -> Path | None:
    return next((place for place in places if place in file.parents), None)


def _file(module: ModuleType) -> Path | None:
    """A module's file; of a package without an ``__init__``, its folder."""
    # Not by getattr: a module that loads itself on first use, or is no module, runs code of its own then.
    attributes = getattr(module, "__dict__", {})
    place = attributes.get("__file__")
    if place is None:
        try:
            place = next(iter(attributes.get("__path__", ())), None)
        except (AttributeError, KeyError, TypeError):  # a package without an __init__ whose own package is gone, or no package
            return None
    return Path(place).resolve() if isinstance(place, str) else None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
