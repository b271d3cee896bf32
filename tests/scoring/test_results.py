"""Results, written and read: the files of former versions too."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from robustkd.contracts import Finding, Share
from robustkd.reporting.verdict_text import evidence_rows
from robustkd.scoring.results import Results, with_units

FORMER = Path(__file__).parent / "data" / "results-of-contract-1.json"
"""Written by commit 4464684, when the summaries were dicts and no finding said which of its numbers are shares."""


def test_a_results_file_of_the_former_contract_is_read_and_written_with_its_keys():
    raw = json.loads(FORMER.read_text())
    results = Results.from_dict(raw)
    assert (results.threat.norm, results.threat.eps) == ("linf", 0.1)
    assert (results.data.name, results.data.n, results.data.modality) == ("digits", 30, "images")
    assert results.data.identity == raw["data"]["test_digest"]
    assert results.attacks["pgd"].params["steps"] == 5
    again = results.to_dict()
    assert list(again) == [*raw, "claims"]
    for key in ("threat", "data", "environment", "attacks", "skipped"):
        assert again[key] == raw[key]
    for now, former in zip([*again["cells"], *again["comparisons"]], [*raw["cells"], *raw["comparisons"]], strict=True):
        assert {name: now[name] for name in former} == former  # keys may have been added
    assert Results.from_dict(json.loads(results.to_json())) == results


def test_a_summary_is_still_read_by_key_with_a_warning():
    results = Results.from_dict(json.loads(FORMER.read_text()))
    with pytest.warns(DeprecationWarning, match=r"\.eps now"):
        assert results.threat["eps"] == 0.1
    with pytest.warns(DeprecationWarning, match="benign"), pytest.raises(KeyError, match="benign"):
        results.data["benign"]


def test_a_share_is_one_after_json_too():
    evidence = {"robust": Share(0.25), "eps": 0.5, "by/role": {"a": [Share(1.0), 1.0]}, "n": 3}
    finding = Finding("x", "severe", True, evidence)
    assert finding.shares == ["/robust", "/by~1role/a/0"]
    raw = json.loads(json.dumps(asdict(finding)))
    assert raw["evidence"] == {"robust": 0.25, "eps": 0.5, "by/role": {"a": [1.0, 1.0]}, "n": 3}
    again = Finding(**with_units(raw))
    assert again == finding
    assert isinstance(again.evidence["robust"], Share)
    assert evidence_rows(again) == evidence_rows(finding)


def test_a_finding_that_does_not_name_its_shares_is_shown_as_it_was():
    results = Results.from_dict(json.loads(FORMER.read_text()))
    found = {finding.name: finding for finding in results.defenses[0].checks}
    rows = evidence_rows(found["logit-scale-invariance"])
    assert (rows["robust accuracy"], rows["scale"]) == ("3.3\N{NARROW NO-BREAK SPACE}%", "0.01702")
    assert found["threat-model-audit"].shares == []
    assert all(found[name].reason for name in ("loss-disagreement", "one-step-beats-iterative"))
