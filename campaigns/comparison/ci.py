"""The outcome of gates in the forms that continuous integration shows: JUnit XML, and Markdown for a job's summary.

JUnit has no standard; the elements are those of the schema of Jenkins' xUnit plug-in (junit-10.xsd).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from robustkd.campaigns.comparison.gate import GateResult
from robustkd.campaigns.file.yaml_source import Source

SIGNS = {"passed": "✅ passed", "failed": "❌ failed", "inconclusive": "⚠️ inconclusive", "not judged": "❔ not judged"}
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(campaign: str, gates: Sequence[GateResult], source: Source, *, allow_missing: bool = False) -> str:
    """One test case a gate, with its number, its reason and the line of the campaign file ``source`` that it is about: one that failed
    is a failure, one that was not judged an error (skipped where that is allowed), an inconclusive one is skipped.
    """
    tags = {"failed": "failure", "not judged": "skipped" if allow_missing else "error", "inconclusive": "skipped"}
    found = [tags.get(gate.outcome) for gate in gates]
    suite = ElementTree.Element(
        "testsuite",
        name=_plain(f"robustkd gate {campaign}"),
        tests=str(len(gates)),
        failures=str(found.count("failure")),
        errors=str(found.count("error")),
        skipped=str(found.count("skipped")),
    )
    for gate, tag in zip(gates, found, strict=True):
        case = ElementTree.SubElement(
            suite, "testcase", classname=_plain(f"{campaign}.{gate.defense}"), name=_plain(f"{gate.metric} {gate.rule}")
        )
        lines = [source.place(gate.key), *_seeds(gate)]
        if tag:
            attributes = {"message": _plain(gate.told), "type": gate.outcome}
            ElementTree.SubElement(case, tag, attributes).text = _plain("\n".join(lines))
        else:
            ElementTree.SubElement(case, "system-out").text = _plain("\n".join([gate.told, *lines]))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def markdown(campaign: str, gates: Sequence[GateResult]) -> str:
    """A table, as ``$GITHUB_STEP_SUMMARY`` shows it."""
    counted = Counter(gate.outcome for gate in gates)
    told = f"{counted['failed']} of {len(gates)} gates failed" if counted["failed"] else "no gate failed"
    told += "".join(f", {counted[outcome]} {outcome}" for outcome in ("not judged", "inconclusive") if counted[outcome])
    lines = [
        f"### {_cell(campaign)}: {told}",
        "",
        "| outcome | defense | asked for | found | |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {SIGNS[gate.outcome]} | {_cell(gate.defense)} | {gate.metric} {gate.rule} | {gate.number} | {_cell(gate.why)} |"
        for gate in gates
    ]
    seeds = [f"- {_cell(gate.defense)}, {line}" for gate in gates if len(gate.changes) > 1 for line in _seeds(gate)]
    return "\n".join([*lines, *(["", *seeds] if seeds else []), ""])


def _seeds(gate: GateResult) -> list[str]:
    return [
        f"{gate.metric}, seed {item.seed}: {item.a:.1%} before, {item.b:.1%} now, "
        f"{100 * item.difference:+.1f} points [{100 * item.ci_low:+.1f}, {100 * item.ci_high:+.1f}]"
        + (f", {item.only_a:g} samples lost, {item.only_b:g} gained" if item.paired else "")
        for item in gate.changes
    ]


def _plain(text: str) -> str:
    """The text without the characters that XML 1.0 forbids."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
