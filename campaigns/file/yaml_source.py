"""YAML with line numbers, so that every complaint can name the line it is about."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from robustkd.contracts import UsageError
from robustkd.contracts.threat import number_written

KeyPath = tuple[str | int, ...]
MOST = 100_000
"""Keys and items of a file at most, an alias counted with all that it stands for: a few lines of aliases can stand for billions."""
LARGEST = 2**63
"""Whole numbers are smaller: torch's generators take no larger seed, and nothing else that is counted is near."""
LONGEST = 1000
"""Characters of a key at most."""


DEEPEST = 50
"""Levels of a file at most. PyYAML looks at every open bracket again at each next one, so thousands of them take seconds."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads numbers as people in this field write them: 8/255 and 1e-3."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._file, self._depth = name, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML does, up to ``DEEPEST`` levels."""
        if self._depth > DEEPEST:
            raise _too_deep(self._file)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """As PyYAML does, up to ``DEEPEST`` levels: it reads a thousand brackets ahead before a node is composed of the first."""
        if self.flow_level > DEEPEST:
            raise _too_deep(self._file)
        super().fetch_flow_collection_start(token)


def _too_deep(name: str) -> UsageError:
    return UsageError(f"{name}: nested more than {DEEPEST} levels deep", fix="a campaign needs about five")


_Loader.yaml_implicit_resolvers = {key: list(rules) for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_FRACTION = re.compile(r"^\d+(?:\.\d+)?\s*/\s*\d+(?:\.\d+)?$")
_EXPONENT = re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("!fraction", _FRACTION, list("0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _fraction(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    try:
        return number_written(str(node.value))
    except ZeroDivisionError:
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} divides by zero", node.start_mark) from None


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    """A number in the way that everybody reads it: PyYAML takes 010 as 8 and 1:30 as 90, as YAML 1.1 has it."""
    text = str(node.value)
    if ":" in text or _OCTAL.match(text):
        problem = f"{text} is {_read(loader, node)} in YAML; write the number that is meant, or the text in quotes"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    number = _read(loader, node)
    if isinstance(number, int) and abs(number) >= LARGEST:
        raise yaml.constructor.ConstructorError(None, None, f"{text[:20]}.. is no number below 2^63", node.start_mark)
    return number


def _read(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    whole = node.tag.endswith("int")
    number: int | float = loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)
    return number


_OCTAL = re.compile(r"[-+]?0[0-9_]+$")
_Loader.add_constructor("!fraction", _fraction)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


@dataclass(frozen=True)
class Source:
    """A parsed YAML file: its data, and the line on which each key stands."""

    name: str
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int | None:
        """The line of a key, or of the closest key above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def place(self, path: KeyPath) -> str:
        """``file:line`` of a key, or of the closest key above it."""
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", fix="give a YAML file's path"
        ) from error


def parse(text: str, name: str) -> Source:
    """Parse one YAML document.

    Raises:
        UsageError: it is no valid YAML, has a key twice, or asks for anything but plain data.
    """
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text, name)
        try:
            node = loader.get_single_node()
            if node is not None:
                _note_lines(node, (), lines, name)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(
            f"{name}{line}: this is no valid YAML: {problem}", fix="check indentation, quotes and colons"
        ) from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{name}: this YAML cannot be read: {error}", fix="use plain keys, lists, numbers and texts"
        ) from error
    return Source(name, data, lines)


def _note_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise _too_deep(name)
    if len(lines) > MOST:
        raise UsageError(f"{name}: its aliases stand for more than {MOST:,} keys and items", fix="write out what is meant")
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            written = str(getattr(key, "value", key))
            here = (*path, written)
            line = key.start_mark.line + 1
            if len(written) > LONGEST:
                raise UsageError(f"{name}:{line}: a key has {len(written):,} characters", fix=f"write {LONGEST:,} at most")
            if here in lines:
                raise UsageError(
                    f"{name}:{line}: the key '{here[-1]}' stands twice (first on line {lines[here]})", fix="remove one"
                )
            lines[here] = line
            _note_lines(value, here, lines, name, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _note_lines(value, (*path, position), lines, name, depth + 1)
