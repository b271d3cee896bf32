"""Which files a piece of code is made of, and which it reads."""

from __future__ import annotations

import ast
import itertools
import os
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from robustkd.plugins import registry


def source_files(file: Path, *, with_package: bool = False) -> list[Path]:
    """Return ``file`` and every module that it imports, directly or not, from outside of the installed packages.

    The imports are read from the text, those inside functions included, so a module that is named only at run time
    (``importlib.import_module(name)``) is not found. Installed packages count by their version, not by their text.

    Args:
        file: a Python file. One of an installed package stands for itself.
        with_package: follow the modules of the file's own package even when it is installed.

    Returns:
        Resolved paths, sorted; ``file`` is among them even when it is missing.
    """
    start = file.resolve()
    whole = _package_folder(start)
    package = whole if with_package else None
    root = (whole or start).parent  # on sys.path while the file is imported
    files: set[Path] = set()
    waiting = [] if is_installed(start) and package is None else [start]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [
                other for other in _imported(path, root) if not is_installed(other) or (package and package in other.parents)
            ]
    return sorted(files | {start})


@contextmanager
def files_read() -> Iterator[list[Path]]:
    """Note which files the block opens for reading through Python, in whatever thread; the list is filled when the block ends.

    Code, files of installed packages and the system's own are left out, and what an ``unwatched`` thread opens. What a library opens
    by itself, as safetensors does, is not seen.
    """
    _listen()
    seen: set[str] = set()
    read: list[Path] = []
    _opened[id(seen)] = seen
    try:
        yield read
    finally:
        del _opened[id(seen)]
        paths = {Path(name).resolve() for name in seen.copy()}  # another thread may be opening one
        read += sorted(path for path in paths if path.is_file() and not _is_ordinary(path))


def unwatched() -> None:
    """Leave out of ``files_read`` what the calling thread opens: it works for robustkd beside the user's code."""
    _thread.unwatched = True


_opened: dict[int, set[str]] = {}
_thread = threading.local()
_SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev", "/etc", "/usr")))


@cache
def _listen() -> None:
    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            _opened
            and event == "open"
            and not hasattr(_thread, "unwatched")
            and isinstance(arguments[0], str | bytes | os.PathLike)
        ):
            _, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+")
            if not writes:
                for seen in list(_opened.values()):
                    seen.add(os.fsdecode(arguments[0]))

    sys.addaudithook(note)  # it can never be taken out again, so there is one


def _is_ordinary(path: Path) -> bool:
    return path.suffix in (".py", ".pyc") or is_installed(path) or any(folder in path.parents for folder in _SYSTEM)


def is_installed(file: Path) -> bool:
    """Return whether a resolved path belongs to Python, to an installed package or to robustkd itself."""
    # By name: an environment may see the packages of another one.
    if not _PACKAGES.isdisjoint(file.parts):
        return True
    return any(folder in file.parents for folder in _own_folders())


_PACKAGES = {"site-packages", "dist-packages"}


@cache
def _own_folders() -> tuple[Path, ...]:
    """The folders of Python's standard library and of robustkd."""
    ours = Path(__file__).resolve().parents[1]
    # In a checkout robustkd's folders lie beside each other, and links make one package of them.
    links = [link.resolve() for link in ours.iterdir() if link.is_symlink()]
    standard = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    return (*standard, ours, *links)


def _package_folder(file: Path) -> Path | None:
    """The folder of the outermost package that a file belongs to; None for a module outside of packages."""
    folder = None
    for parent in file.parents:
        if not (parent / "__init__.py").is_file():
            break
        folder = parent
    return folder


def _imported(file: Path, root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # who runs it is told
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(alias.name, root, file.parent)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1] if node.level <= len(file.parents) else file.parent
            yield from _below(base, [node.module] if node.module else [], node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                yield from _absolute(name, root, file.parent)


def _absolute(name: str, root: Path, beside: Path) -> Iterator[Path]:
    """The files that ``import name`` runs: those of the module and of the packages around it."""
    if name.partition(".")[0] in (*sys.stdlib_module_names, "robustkd"):
        return
    for dotted in itertools.accumulate(name.split("."), "{}.{}".format):
        inside = dotted.split(".")
        if file := next(_module_in(root.joinpath(*inside)), None) or registry.module_file(dotted):
            yield file.resolve()
        else:
            yield from _module_in(beside.joinpath(*inside))


def _below(folder: Path, packages: Iterable[str | None], names: Iterable[ast.alias]) -> Iterator[Path]:
    """The files in ``folder`` that ``from packages import names`` runs."""
    for package in packages:
        folder = folder.joinpath(*(package or "").split("."))
        yield from _module_in(folder)
    for alias in names:
        yield from _module_in(folder / alias.name)


def _module_in(path: Path) -> Iterator[Path]:
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            yield file.resolve()
