"""The appendix of a report: which items of frameworks and law this evaluation is evidence for, and what it is not evidence for.

``frameworks.yaml`` beside this file says so, with its sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from robustkd import plugins
from robustkd.contracts import BaseAttack, PluginError, UsageError
from robustkd.contracts.threat import Space
from robustkd.scoring.results import Results
from robustkd.scoring.summaries import AttackSummary

CAVEAT = (
    "Evidence is not conformity: whether an item applies to a system, and whether it is met, is for others to decide. "
    "No verdict here is a legal opinion."
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """A framework or a law that the appendix refers to; ``short`` is what its items are shown with."""

    short: str
    title: str
    url: str


class Item(_Part):
    """One of its items: what it asks for, and what an evaluation that is evidence for it does not show."""

    source: str
    name: str
    about: str
    beyond: Annotated[str, Field(alias="not")]


class When(_Part):
    """The attacks that an entry is about."""

    space: tuple[Space, ...]
    gradients: bool | None = None
    kinds: tuple[str, ...] = ()


class Evidence(_Part):
    """What was run, and the items that it is evidence for."""

    ran: str
    items: tuple[str, ...]
    when: When | None = None
    of: Literal["campaign", "checks"] | None = None


class Frameworks(_Part):
    """The content of ``frameworks.yaml``: sources, and which results speak to which clause."""

    sources: dict[str, Source]
    items: dict[str, Item]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Row:
    """One row of the appendix: what was run, by which attacks, the item, its source, and what is not shown of it."""

    ran: str
    attacks: tuple[str, ...]
    item: str
    about: str
    source: Source
    beyond: str


@cache
def frameworks() -> Frameworks:
    """Read ``frameworks.yaml``."""
    text = resources.files(__package__).joinpath("frameworks.yaml").read_text(encoding="utf-8")
    return Frameworks.model_validate(yaml.safe_load(text))


def rows(results: Results) -> list[Row]:
    """What this campaign is evidence for: of attacks that have a number, of the numbers, and of the checks that were run."""
    known, attacks = frameworks(), _attacks(results)
    judged = any(row.robust_accuracy is not None for row in results.defenses)
    checked = any(not check.reason for row in results.defenses for check in row.checks)
    found = []
    for entry in known.evidence:
        used = tuple(name for name, belongs in attacks.items() if belongs is entry)
        if used or (entry.of == "campaign" and judged) or (entry.of == "checks" and checked):
            items = [known.items[name] for name in entry.items]
            found += [Row(entry.ran, used, item.name, item.about, known.sources[item.source], item.beyond) for item in items]
    return found


def sources(shown: Sequence[Row]) -> list[Source]:
    """The sources of some rows, each once."""
    return list(dict.fromkeys(row.source for row in shown))


def _attacks(results: Results) -> dict[str, Evidence]:
    """The entry of each attack that has a number; one that is no attack, or that is not installed here, has none."""
    done = dict.fromkeys(cell.attack for cell in results.cells if cell.status == "done" and cell.n)
    found = {}
    for name in done:
        used = results.attacks.get(name)
        if used and (entry := _entry(used)):
            found[name] = entry
    return found


def _entry(used: AttackSummary) -> Evidence | None:
    try:
        attack: BaseAttack = plugins.make("attacks", {"kind": used.kind, **used.params})
    except (PluginError, UsageError):
        return None
    if attack.control:
        return None
    for entry in frameworks().evidence:
        when, traits = entry.when, attack.traits
        if when is None or traits.space not in when.space or (when.kinds and used.kind not in when.kinds):
            continue
        if when.gradients is None or when.gradients == traits.gradients:
            return entry
    return None
