"""What robustkd's extras hold, and the command that installs one.

robustkd is not on the Python Package Index. Who asks an index for ``robustkd[llm]`` could be given a stranger's package of that name, so
what is missing is named package by package.
"""

from __future__ import annotations

import importlib.metadata as metadata
import shlex

from packaging.requirements import Requirement


def requirements(extra: str) -> list[Requirement]:
    """The requirements of an extra, without its name; empty where robustkd is no installed distribution."""
    try:
        lines = metadata.requires("robustkd") or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [
        Requirement(f"{need.name}{need.specifier}") for need in found if need.marker and need.marker.evaluate({"extra": extra})
    ]


def installation(extra: str) -> str:
    """The command that installs what an extra holds, such as ``pip install 'onnx>=1.17' 'onnxruntime>=1.20'``."""
    named = [shlex.quote(need.name + ",".join(sorted(map(str, need.specifier), reverse=True))) for need in requirements(extra)]
    return f"pip install {' '.join(named)}" if named else f"pip install '.[{extra}]' in robustkd's folder"
