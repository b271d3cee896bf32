"""Findings -> verdict."""

from __future__ import annotations

from collections.abc import Iterable

from robustkd.contracts.check import Finding, Verdict


def verdict(findings: Iterable[Finding], *, complete: bool = True) -> Verdict:
    """``not credible`` when a severe check fired, ``suspect`` when a warning did or an attack is missing, else ``credible``.

    A check that could not be run accuses nobody. But ``credible`` says that every check which can find a number not credible has
    looked, where it applies; so while such a one was not run, the number is ``suspect`` at best.
    """
    outcomes = {(finding.outcome, finding.severity) for finding in findings}
    if ("fired", "severe") in outcomes:
        return "not credible"
    return "suspect" if outcomes & {("fired", "warning"), ("not run", "severe")} or not complete else "credible"
