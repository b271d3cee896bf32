"""The outcome of gates as SARIF 2.1.0, which code scanning shows beside the lines of the campaign file.

OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0", 2020.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from robustkd.campaigns.comparison.gate import GateResult, exit_code
from robustkd.campaigns.file.yaml_source import Source
from robustkd.contracts.json_value import JsonValue

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KINDS = {"passed": ("pass", "none"), "failed": ("fail", "error"), "inconclusive": ("open", "none")}
"""``kind`` and ``level``, by outcome; only what failed has a level (3.27.10). ``open`` means: too little is known to decide."""


def sarif(campaign: str, gates: Sequence[GateResult], source: Source, *, allow_missing: bool = False) -> str:
    """One result a gate, at its line of the campaign file ``source``.

    A gate that was not judged is a warning, and ``open`` where that is allowed.
    """
    kinds = _KINDS | {"not judged": ("open", "none") if allow_missing else ("fail", "warning")}
    rules = list(dict.fromkeys(_rule(gate) for gate in gates))
    run = {
        "tool": {
            "driver": {
                "name": "robustkd",
                "version": version("robustkd"),
                "rules": [{"id": rule, "shortDescription": {"text": _described(rule)}} for rule in rules],
            }
        },
        "invocations": [{"executionSuccessful": True, "exitCode": exit_code(gates, allow_missing=allow_missing)}],
        "results": [_result(campaign, gate, rules, *kinds[gate.outcome], source) for gate in gates],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _result(campaign: str, gate: GateResult, rules: list[str], kind: str, level: str, source: Source) -> dict[str, JsonValue]:
    rule = _rule(gate)
    named = "/".join((campaign, gate.defense, gate.metric, gate.rule))
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "kind": kind,
        "level": level,
        "message": {"text": gate.told},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(Path(source.name))},
                    "region": {"startLine": source.line(gate.key) or 1},
                }
            }
        ],
        "partialFingerprints": {"gate/v1": sha256(named.encode()).hexdigest()},
        "properties": {
            "defense": gate.defense,
            "outcome": gate.outcome,
            "value": gate.value,
            "ciLow": gate.ci_low,
            "ciHigh": gate.ci_high,
            "verdicts": list(gate.verdict),
        },
    }


def _rule(gate: GateResult) -> str:
    return f"{gate.metric}/{'at-least' if gate.key[:1] == ('gates',) else 'below-baseline'}"


def _described(rule: str) -> str:
    metric, _, kind = rule.partition("/")
    told = "has a lower bound" if kind == "at-least" else "must not have fallen below the baseline"
    return f"The {metric.replace('_', ' ')} of a defense {told}."


def _uri(file: Path) -> str:
    """Relative to the working directory, which is the repository's in continuous integration; else absolute."""
    whole = file.resolve()
    return quote(whole.relative_to(Path.cwd()).as_posix()) if whole.is_relative_to(Path.cwd()) else whole.as_uri()
