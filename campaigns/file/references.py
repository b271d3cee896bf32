"""What only the whole campaign file can tell: names that are not in it, plug-ins for other data, circles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustkd.campaigns.file.campaign import AnalysisUse, AttackUse, DefenseUse, JudgeUse, PluginUse
from robustkd.campaigns.file.document.document import Document
from robustkd.campaigns.file.problems import Problem, close_to
from robustkd.contracts import Modality


@dataclass(frozen=True)
class Uses:
    """The plug-ins of a campaign, by the names that its file gives them."""

    defenses: Mapping[str, DefenseUse]
    attacks: Mapping[str, AttackUse]
    judges: Mapping[str, JudgeUse]
    analyses: Mapping[str, AnalysisUse]

    def by_block(self) -> Iterator[tuple[str, PluginUse[Any]]]:
        """Each with the block of the file that it stands in."""
        for block in ("defenses", "attacks", "judges", "analyses"):
            for use in getattr(self, block).values():
                yield block, use


def reference_problems(document: Document, uses: Uses, modality: Modality | None) -> list[Problem]:
    """What is wrong with the names that blocks of ``document`` use of each other."""
    problems = [
        *_unknown_references(document, uses),
        *_unknown_exclusions(document),
        *_unknown_gates(document),
        *_unknown_undefended(document),
        *_analyses_without_result(document, uses),
    ]
    return problems + (_of_other_modality(uses, modality) if modality else [])


def circle(defenses: Mapping[str, DefenseUse]) -> list[Problem]:
    """The first circle of defenses that refer to each other."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[Problem]:
        if name in trail:
            names = " -> ".join((*trail[trail.index(name) :], name))
            return [Problem(("defenses", name), f"defenses refer to each other in a circle: {names}", "break the circle")]
        if name in done:
            return []
        found = [problem for reference in defenses[name].references for problem in visit(reference, (*trail, name))]
        done.add(name)
        return found

    for name in defenses:
        if found := visit(name, ()):
            return found[:1]
    return []


def _unknown_references(document: Document, uses: Uses) -> list[Problem]:
    known = document.defenses
    return [
        Problem(
            (block, use.name), f"refers to the defense '{reference}', which is not in this file", close_to(reference, known)
        )
        for block, use in uses.by_block()
        for reference in use.references
        if reference not in known
    ]


def _unknown_exclusions(document: Document) -> list[Problem]:
    return [
        Problem(("matrix", "exclude", position, side), f"there is no {side} '{named}'", close_to(named, known))
        for position, item in enumerate(document.matrix.exclude)
        for side, named, known in (
            ("defense", item.defense, document.defenses),
            ("attack", item.attack, document.attacks),
        )
        if named is not None and named not in known
    ]


def _unknown_gates(document: Document) -> list[Problem]:
    known = document.defenses
    return [
        Problem(("gates", position, "defense"), f"there is no defense '{gate.defense}'", close_to(gate.defense, known))
        for position, gate in enumerate(document.gates)
        if gate.defense not in known
    ]


def _unknown_undefended(document: Document) -> list[Problem]:
    known = document.defenses
    return [
        Problem(("undefended",), f"there is no defense '{name}'", close_to(name, known))
        for name in document.undefended or ()
        if name not in known
    ]


def _analyses_without_result(document: Document, uses: Uses) -> list[Problem]:
    """Analyses of defenses that the matrix keeps out of every attack: such a defense has no result of its own."""
    kept_out = {item.defense for item in document.matrix.exclude if item.attack is None}
    return [
        Problem(
            ("analyses", use.name), f"the matrix keeps '{name}' out of every attack", "let one attack it, or leave it out here"
        )
        for use in uses.analyses.values()
        for name in use.defenses
        if name in kept_out
    ]


def _of_other_modality(uses: Uses, modality: Modality) -> list[Problem]:
    """Plug-ins that are for another kind of data than the campaign's."""
    return [
        Problem(
            (block, use.name, "kind"),
            f"'{use.kind}' is for {' and '.join(use.plugin.modalities)}, the data are {modality}",
            f"`robustkd list {block} --modality {modality}` names those that fit",
        )
        for block, use in uses.by_block()
        if modality not in use.plugin.modalities
    ]
