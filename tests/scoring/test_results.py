"""Results, written and read: the files of former versions too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkd.scoring.results import Results

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
    assert list(again) == list(raw)
    for key in ("threat", "data", "environment", "attacks", "cells", "comparisons", "skipped"):
        assert list(again[key]) == list(raw[key])
        assert again[key] == raw[key]
    assert Results.from_dict(json.loads(results.to_json())) == results


def test_a_summary_is_still_read_by_key_with_a_warning():
    results = Results.from_dict(json.loads(FORMER.read_text()))
    with pytest.warns(DeprecationWarning, match=r"\.eps now"):
        assert results.threat["eps"] == 0.1
    with pytest.warns(DeprecationWarning, match="benign"), pytest.raises(KeyError, match="benign"):
        results.data["benign"]
