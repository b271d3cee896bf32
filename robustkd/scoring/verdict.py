"""Findings -> verdict."""

from __future__ import annotations

from collections.abc import Iterable

from robustkd.contracts.check import Finding, Verdict


def verdict(findings: Iterable[Finding], *, complete: bool = True) -> Verdict:
    """``not credible`` when a severe check fired, ``suspect`` when a warning did or an attack is missing, else ``credible``."""
    fired = {finding.severity for finding in findings if finding.fired}
    if "severe" in fired:
        return "not credible"
    return "suspect" if "warning" in fired or not complete else "credible"
