"""What the analyses of a defense prove of its samples, beside what the attacks left of them."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd.campaigns.results.curve import worst_case_of
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.contracts.analysis import Certificate, Table
from robustkd.contracts.check import Finding
from robustkd.scoring.bracket import Bracket, bracket

BROKEN_CERTIFICATE = "broken-certificate"


def bracket_of(tables: Mapping[str, Table], attacks: Mapping[str, AttackRecord]) -> Bracket | None:
    """The bracket from the tables that hold a certificate and the attacks under the campaign's threat model."""
    certificates = _certificates(tables)
    records = list(attacks.values())
    passes = [record.outcome.forwards + record.outcome.backwards for record in records]
    return bracket(certificates, worst_case_of(records), passes) if certificates else None


def contradiction(found: Bracket | None, tables: Mapping[str, Table], attacks: Mapping[str, AttackRecord]) -> Finding | None:
    """A severe finding where a sample is certified and broken; quiet where none is, None without a proof to contradict.

    A certificate that rests on draws is about the classifier that infinitely many draws make; an attack on a few of them does not
    contradict it.
    """
    if found is None or found.error > 0:
        return None
    if not found.contradicted:
        return Finding(BROKEN_CERTIFICATE, "severe", fired=False, evidence={"certified": round(found.certified * found.n)})
    broken_by = [name for name, record in attacks.items() if _contradicts(record, tables)]
    return Finding(
        BROKEN_CERTIFICATE,
        "severe",
        fired=True,
        evidence={
            "explanation": f"{found.contradicted} samples that {', '.join(found.analyses)} certifies are broken, by "
            f"{', '.join(broken_by) or 'another certificate'}: one of the two is wrong",
            "contradicted": found.contradicted,
            "certified": round(found.certified * found.n),
        },
        fix="see whether the attack keeps to the budget and whether the bounds are of the network that was attacked, and report it",
    )


def _contradicts(record: AttackRecord, tables: Mapping[str, Table]) -> bool:
    certificates = _certificates(tables).values()
    return any((record.outcome.robust_share[: len(one.robust)] < 1)[one.robust].any() for one in certificates)


def _certificates(tables: Mapping[str, Table]) -> dict[str, Certificate]:
    return {name: table.certificate for name, table in tables.items() if table.certificate is not None}
