"""Commented campaigns to begin with, one for each purpose: ``robustkd init evaluate-my-model``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from robustkd.contracts import UsageError, suggestion

_BESIDE = {"evaluate-my-model": ("my_model.py",), "endpoint": ("requests.csv", "harmless.csv")}
"""What a campaign refers to, and is written along with it."""


def purposes() -> dict[str, str]:
    """Each purpose, and the first line of its campaign, which says what it is for."""
    found = sorted(item.name.removesuffix(".yaml") for item in files(__package__).iterdir() if item.name.endswith(".yaml"))
    return {name: _text(f"{name}.yaml").splitlines()[0].removeprefix("# ") for name in found}


def write(purpose: str, file: Path | None = None) -> list[Path]:
    """Write the campaign for a purpose, and what it refers to where that is not there yet; returns what was written.

    Args:
        file: by default ``<purpose>.yaml``.

    Raises:
        UsageError: there is no such purpose, or the file is there already.
    """
    known = purposes()
    if purpose not in known:
        raise UsageError(
            f"'{purpose}' is none of the purposes", fix=suggestion(purpose, known) or f"one of: {', '.join(known)}"
        )
    file = file or Path(f"{purpose}.yaml")
    if file.exists():
        raise UsageError(f"{file} is there already; nothing was written", fix="give another file name")
    texts = {file: _text(f"{purpose}.yaml").replace(f"name: {purpose}\n", f"name: {file.stem}\n")}
    beside = {file.parent / name: _text(name) for name in _BESIDE.get(purpose, ())}
    texts |= {path: text for path, text in beside.items() if not path.exists()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", fix="choose another place") from error
    return list(texts)


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
