"""``make zoo``: audit every control, and print what was caught.

    python tests/zoo/zoo.py [--seeds 0 1 2] [--only NAME ...] [--level thorough]

The figure of merit is two numbers: positive controls caught (not ``credible``), honest networks flagged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from controls import AUDITED, EPS, HONEST, POSITIVE, Control, Zoo

import robustkd
from robustkd.contracts import Target


@dataclass(frozen=True)
class Row:
    """The audit of one control."""

    control: Control
    seed: int
    verdict: str
    fired: tuple[str, ...]
    robust_accuracy: float | None
    remedied: float | None
    seconds: float


def audited(control: Control, zoo: Zoo, level: str = "standard", samples: int | None = None) -> Row:
    began = time.process_time()
    network = control.build(zoo)
    x, y = torch.from_numpy(zoo.data.test.unit()), torch.from_numpy(zoo.data.test.labels).long()
    torch.manual_seed(zoo.seed)
    report = robustkd.audit(
        network,
        x,
        y,
        eps=EPS,
        attacks=control.attacks,
        level=level,
        samples=samples,
        seed=zoo.seed,  # type: ignore[arg-type]
    )
    assert isinstance(network, Target | torch.nn.Module)
    fired = [finding.name for finding in report.findings if finding.fired and finding.severity != "info"]
    invalid = [f"invalid: {name}" if why.startswith("invalid") else f"failed: {name}" for name, why in report.failed.items()]
    # An attack that broke the threat model gave no number: there is no accuracy to believe or not.
    verdict = "invalid" if invalid and all(why.startswith("invalid") for why in report.failed.values()) else report.verdict
    remedied = report.remedy.robust_accuracy if report.remedy else None
    return Row(control, zoo.seed, verdict, (*invalid, *fired), report.robust_accuracy, remedied, time.process_time() - began)


def confusion(rows: Sequence[Row]) -> str:
    def share(value: float | None) -> str:
        return "   -" if value is None else f"{100 * value:4.0f}"

    lines = [f"{'control':<28}{'kind':<20}{'seed':>4}  {'verdict':<13}{'robust':>6}{'remedy':>8}{'s':>6}  checks that fired"]
    for row in rows:
        lines.append(
            f"{row.control.name:<28}{row.control.kind:<20}{row.seed:>4}  {row.verdict:<13}{share(row.robust_accuracy):>6}"
            f"{share(row.remedied):>8}{row.seconds:>6.1f}  {', '.join(row.fired) or '-'}"
        )
    bad = [row for row in rows if row.control.kind != "honest"]
    good = [row for row in rows if row.control.kind == "honest"]
    lines.append("")
    lines.append(f"positive controls caught            {sum(row.verdict != 'credible' for row in bad)} of {len(bad)}")
    lines.append(f"honest networks 'not credible'      {sum(row.verdict == 'not credible' for row in good)} of {len(good)}")
    lines.append(
        f"  of them, whose number was too high   {sum(row.verdict == 'not credible' and _too_high(row) for row in good)}"
    )
    lines.append(f"honest networks 'suspect'           {sum(row.verdict == 'suspect' for row in good)} of {len(good)}")
    lines.append(f"(n = {AUDITED} digits each, linf eps {EPS}; {sum(row.seconds for row in rows):.0f} s of CPU)")
    return "\n".join(lines)


def visit(seeds: Sequence[int], names: Sequence[str] = (), level: str = "standard", samples: int | None = None) -> list[Row]:
    """Audit the named controls (all by default) for each seed."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            zoo = Zoo(seed, Path(folder))
            rows += [audited(c, zoo, level, samples) for c in (*POSITIVE, *HONEST) if not names or c.name in names]
    return rows


def _too_high(row: Row) -> bool:
    """Whether the remedy ended more than 2 points lower: then the attacks were too weak, and the verdict is right."""
    return row.robust_accuracy is not None and row.remedied is not None and row.robust_accuracy - row.remedied > 0.02


def passed(rows: Sequence[Row]) -> bool:
    """All positive controls caught, no honest network `not credible` whose number is right, at most one (over its seeds) `suspect`."""
    caught = all(row.verdict != "credible" for row in rows if row.control.kind != "honest")
    honest = [row for row in rows if row.control.kind == "honest"]
    suspects = {row.control.name for row in honest if row.verdict == "suspect"}
    return caught and len(suspects) <= 1 and not any(row.verdict == "not credible" and not _too_high(row) for row in honest)


def main() -> int:
    parser = argparse.ArgumentParser(description="Audit the zoo of controls.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="names of controls")
    parser.add_argument("--level", choices=["standard", "thorough"], default="standard")
    parser.add_argument("--samples", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = visit(given.seeds, given.only, given.level, given.samples)
    print(confusion(rows))
    return 0 if passed(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
