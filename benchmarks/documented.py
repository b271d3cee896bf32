"""Every measured number of the docs: where it came from, and whether what it speaks of has changed since.

``docs/numbers.yaml`` names, for each section with numbers, the preset or the command that made them and the day. A preset's numbers are
stale when its plan has other cells now: another version of a plug-in, other data, other parameters. Those of a command are stale when the
code that they speak of was changed after that day, by more than its comments, its docstrings and its place. Numbers that a test makes
again, and those that were not measured (a paper's, the settings of an example), are told apart.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "docs" / "numbers.yaml"
NUMBER = re.compile(r"\d ?%|CPU s\b|\d (CPU )?(seconds|minutes|ms|MiB|GB|MB)\b|\d times\b")
HEADING = re.compile(r"#+ (.+)")
COMMAND = re.compile(r"(make|robustkd|python) \S+")


class Source(BaseModel):
    """Where a section's numbers came from: exactly one of ``preset``, ``command``, ``test`` and ``not_measured``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    preset: str | None = None
    command: str | None = Field(None, pattern=COMMAND.pattern)
    test: str | None = None
    not_measured: str | None = Field(None, description="what they are instead")
    measured: date | None = None
    plan: str | None = Field(None, description="of the preset, when it was measured")
    versions: Mapping[str, str] = {}
    results: tuple[str, ...] = Field((), description="files in benchmarks/results")
    code: tuple[str, ...] = Field(
        (), description="folders, and files with what they import of their package, that the numbers speak of"
    )

    @model_validator(mode="after")
    def _whole(self) -> Source:
        given = [name for name in ("preset", "command", "test", "not_measured") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of preset, command, test and not_measured says where numbers come from, not {given or 'none'}"
            )
        if (self.preset or self.command) and self.measured is None:
            raise ValueError("measured: the day is missing")
        if self.command and not self.code:
            raise ValueError("code: the paths that the numbers speak of are missing")
        return self

    def said(self) -> str:
        """In a few words."""
        if self.preset:
            return f"robustkd run {self.preset}"
        return self.command or self.test or f"not measured: {self.not_measured}"


def sections_with_numbers(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """(page, heading) of every section of the README and the docs in which something was measured, or looks as if it were."""
    made = root / "docs" / "reference"  # by the site, from the docstrings
    pages = [page for page in sorted((root / "docs").rglob("*.md")) if not page.is_relative_to(made)]
    for page in (root / "README.md", *pages):
        heading, fenced, told = "", False, set()
        for line in page.read_text(encoding="utf-8").splitlines():
            fenced ^= line.startswith("```")
            if not fenced and (match := HEADING.fullmatch(line)):
                heading = match[1].strip()
            if NUMBER.search(line) and heading not in told:
                told.add(heading)
                yield page.relative_to(root).as_posix(), heading


def sources(file: Path = SOURCES) -> dict[tuple[str, str], Source]:
    """By page and heading.

    Raises:
        click.ClickException: the file has an entry that says too little or too much.
    """
    found = {}
    for page, entries in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        for heading, entry in entries.items():
            try:
                found[page, heading] = Source.model_validate(entry)
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(map(str, problem["loc"])) or "entry"
                raise click.ClickException(f"{file}: {page}: {heading}: {where}: {problem['msg']}") from None
    return found


def planned(preset: str, root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """The plan of a preset on the code in ``root``, and the versions of all plug-ins in its cells' identities.

    Raises:
        RuntimeError: it cannot be planned on this machine.
    """
    command = [sys.executable, "-m", "robustkd", "plan", preset, "--json", "--out", "/nonexistent"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[0])
    document = json.loads(done.stdout)
    return document["plan"], dict(sorted(_versions(document["cells"])))


def _versions(part: Any) -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        if isinstance(part.get("kind"), str) and isinstance(part.get("version"), str):
            yield part["kind"], part["version"]
        for inner in part.values():
            yield from _versions(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _versions(inner)


def state(source: Source, root: Path = ROOT) -> str:
    """``current``, ``tested``, ``not measured``, ``stale: ..`` or ``unknown: ..``."""
    if source.not_measured:
        return "not measured"
    if source.test:
        return "tested" if (root / source.test).exists() else f"stale: {source.test} is not there"
    if missing := [name for name in source.results if not (root / "benchmarks" / "results" / name).is_file()]:
        return f"stale: benchmarks/results/{missing[0]} is not there"
    if source.preset:
        return _state_of_preset(source, root)
    assert source.measured is not None
    changed = _changed_since(source.measured, source.code, root)
    if changed is None:
        return f"unknown: git knows no commit of {source.measured} or before"
    return f"stale: {', '.join(changed)} changed after {source.measured}" if changed else "current"


def _changed_since(day: date, code: tuple[str, ...], root: Path) -> list[str] | None:
    """The files of ``code`` that do something else than at the end of ``day``; None where git does not go back that far."""
    commit = _git(root, "rev-list", "-1", f"--before={day}T23:59:59", "HEAD").strip()
    if not commit:
        return None
    found = []
    for line in _git(root, "diff", "--name-status", "--find-renames", commit, "--", *_with_imports(code, root)).splitlines():
        _, *names = line.split("\t")
        former, path = _git(root, "show", f"{commit}:{names[0]}"), root / names[-1]
        now = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not former or not now or _meaning(names[-1], former) != _meaning(names[-1], now):
            found.append(names[-1])
    return found


def _with_imports(code: tuple[str, ...], root: Path) -> list[str]:
    """``code``, with what its Python files import, directly or not, of the packages that they are in."""
    packages = {_package(name) for name in code}
    found, waiting = set(), list(code)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name.endswith(".py") and (root / name).is_file():
            modules = _imported(ast.parse((root / name).read_text(encoding="utf-8")))
            files = filter(None, (_file_of(module, root) for module in modules))
            waiting += [file for file in files if _package(file) in packages]
    return sorted(found)


def _package(name: str) -> tuple[str, ...]:
    """``attacks`` and the like, or a folder of ``robustkd``."""
    parts = Path(name).parts
    return parts[:2] if parts[0] == "robustkd" else parts[:1]


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(module: str, root: Path) -> str | None:
    path = module.replace(".", "/")
    # robustkd.attacks is the folder attacks, by a link.
    places = (path.removeprefix("robustkd/"), path)
    files = (f"{place}{end}" for place in places for end in (".py", "/__init__.py"))
    return next((file for file in files if (root / file).is_file()), None)


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout


def _meaning(name: str, text: str) -> str:
    """What of a file can change a number: of Python its syntax tree without strings that stand alone, of others all."""
    if not name.endswith(".py"):
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [one for one in node.body if not _is_words(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_words(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _state_of_preset(source: Source, root: Path) -> str:
    assert source.preset is not None
    if source.plan is None:
        return "unknown: the plan that was measured is not written down"
    try:
        plan, versions = planned(source.preset, root)
    except RuntimeError as error:
        return f"unknown: {error}"
    if plan == source.plan:
        return "current"
    names = sorted({*versions, *source.versions})
    changed = [
        f"{name} {source.versions.get(name, '-')} -> {versions.get(name, '-')}"
        for name in names
        if versions.get(name) != source.versions.get(name)
    ]
    return "stale: " + (", ".join(changed) or "its data or parameters are others")


@click.command()
@click.option("--only", default="", help="Sections whose page or heading has this in it.")
@click.option("--strict", is_flag=True, help="Fail where a number is stale, or nobody says where it came from.")
@click.option("--record", is_flag=True, help="Write down today's plans of these presets: they were just measured.")
def main(only: str, strict: bool, record: bool) -> None:
    """Print a line for each section with numbers."""
    known = sources()
    wanted = [place for place in dict.fromkeys([*sections_with_numbers(), *known]) if only in " ".join(place)]
    bad = 0
    for place in wanted:
        source = known.get(place)
        if source and source.preset and record:
            plan, versions = planned(source.preset)
            source = known[place] = source.model_copy(update={"plan": plan, "versions": versions, "measured": date.today()})
        told = state(source) if source else "unknown: docs/numbers.yaml does not say where they came from"
        bad += told.startswith(("stale", "unknown"))
        print(f"{place[0]}: {place[1]}\n  {source.said() if source else '-'}", end="")
        print(f", {source.measured}" if source and source.measured else "", f"\n  {told}", sep="")
    print(f"{len(wanted)} sections with numbers, {bad} of them stale or of unknown origin")
    if record:
        write(known)
    if strict and bad:
        raise SystemExit(1)


def write(known: Mapping[tuple[str, str], Source], file: Path = SOURCES) -> None:
    """Write ``known`` in the file's order."""
    pages: dict[str, dict[str, object]] = {}
    for (page, heading), source in known.items():
        pages.setdefault(page, {})[heading] = source.model_dump(exclude_defaults=True)
    pages = {page: {heading: _plain(entry) for heading, entry in entries.items()} for page, entries in pages.items()}
    file.write_text(yaml.safe_dump(pages, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    main()
