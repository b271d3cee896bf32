"""A package to begin with: a small plug-in that works, its entry point, its tests."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from robustkd import plugins
from robustkd.contracts import CONTRACT_VERSION, UsageError

KINDS: dict[str, plugins.Group] = {
    plugins.one_of(group): group
    for group in (
        "attacks",
        "defenses",
        "judges",
        "checks",
        "datasets",
        "models",
        "transforms",
        "detectors",
        "condensers",
        "analyses",
    )
}
"""What can be begun: the kind of plug-in, and the group of its entry point."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_EXAMPLES = {
    "defense": "defenses:\n  teacher: {{kind: standard, model: small-cnn}}\n  mine: {{kind: {0}, teacher: teacher, student: tiny-cnn}}",
    "attack": "attacks:\n  mine: {{kind: {0}}}",
    "judge": "judges:\n  mine: {{kind: {0}}}   # the first one decides, the others are recorded beside it",
    "check": "checks: standard   # {0} is one of them",
    "dataset": "data: {{name: {0}}}",
    "model": "defenses:\n  plain: {{kind: standard, model: {0}}}",
    "transform": "defenses:\n  plain: {{kind: standard, model: small-cnn}}\n"
    "  filtered: {{kind: input-transform, base: plain, transforms: [{0}]}}",
    "detector": "defenses:\n  plain: {{kind: standard, model: small-cnn}}\n"
    "  watched: {{kind: with-detector, base: plain, detector: {0}}}",
    "condenser": "defenses:\n  small-set: {{kind: condensed-data, condenser: {0}}}\n"
    "  trained: {{kind: train-on-condensed, data: small-set, recipe: {{kind: standard, model: small-cnn}}}}",
    "analysis": "analyses:\n  mine: {{kind: {0}, defenses: [plain]}}",
}


def write_package(kind: str, name: str, folder: Path | None = None) -> list[Path]:
    """Write the package of a new plug-in and return its files.

    Args:
        kind: one of ``KINDS``.
        name: of the plug-in in campaign files: lower-case words joined by ``-``.
        folder: a new one; by default ``robustkd-<name>``, the name of the distribution.

    Raises:
        UsageError: the name is taken or cannot be used, or the folder is there already.
    """
    group = KINDS[kind]
    if not _NAME.fullmatch(name):
        better = "-".join(re.findall(r"[a-z][a-z0-9]*|[0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()))
        raise UsageError(
            f"'{name}' is no name for a plug-in", fix=f"lower-case words joined by '-', such as {better or 'my-' + kind}"
        )
    if name in plugins.names(group):
        owner = next(info.package for info in plugins.listing(group) if info.name == name)
        raise UsageError(f"there is a {kind} '{name}' already, in {owner}", fix="choose another name")
    distribution = f"robustkd-{name}"
    folder = folder or Path(distribution)
    if folder.exists():
        raise UsageError(f"{folder} is there already; nothing was written", fix="choose another name, or a folder with --out")
    module = distribution.replace("-", "_")
    words = {
        "kind": kind,
        "group": group,
        "name": name,
        "distribution": distribution,
        "module": module,
        "class_name": "".join(word.capitalize() for word in name.split("-")),
        "contract_version": CONTRACT_VERSION,
        "description": f"The {kind} {name}",
        "example": _EXAMPLES[kind].format(name),
    }
    written = {
        "pyproject.toml": "pyproject.toml.j2",
        "README.md": "README.md.j2",
        f"{module}.py": f"{kind}.py.j2",
        f"tests/test_{module}.py": "test.py.j2",
    }
    templates = files(__package__) / "templates"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    for path, template in written.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = environment.from_string((templates / template).read_text(encoding="utf-8")).render(words)
        file.write_text(text, encoding="utf-8")
    return [folder / path for path in written]
