"""What changed from one run of a campaign to the next: its numbers, its file, the code and the data."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from robustkd.campaigns.execution.record import Execution, Numbers
from robustkd.viewer.addresses import Address
from robustkd.viewer.runs import Run
from robustkd.viewer.site import Site

WEEK = timedelta(days=7)
MOST_STEPS = 100
"""Runs on one page, the newest; record.json has them all."""
MOST_LINES = 400
"""Lines of a difference of campaign files."""
PACKAGES = ("robustkd", "torch", "numpy")
"""Whose versions are told; plug-ins' own are told, too."""


@dataclass(frozen=True)
class Moved:
    """A defense before and after: means over the seeds, the interval over all of them; None on the side where it has no number."""

    defense: str
    before: Numbers | None
    after: Numbers | None

    @property
    def points(self) -> float | None:
        """How much its robust accuracy moved, in points of a hundred."""
        if self.before is None or self.after is None:
            return None
        was, now = self.before.robust_accuracy, self.after.robust_accuracy
        return None if was is None or now is None else 100 * (now - was)

    @property
    def apart(self) -> bool:
        """Whether the two intervals do not meet."""
        if self.before is None or self.after is None:
            return False
        low, high = (max, min)
        ends = [(side.ci_low, side.ci_high) for side in (self.before, self.after)]
        if any(end is None for pair in ends for end in pair):
            return False
        return low(pair[0] or 0.0 for pair in ends) > high(pair[1] or 0.0 for pair in ends)


@dataclass(frozen=True)
class Step:
    """A run of a campaign beside the one before it.

    Attributes:
        moved: every defense of either.
        noted: whether both noted their numbers; those of former versions did not.
        reasons: what else is different, in words.
        lines: the difference of the campaign files, as of ``diff -u``.
    """

    run: Run
    title: str
    at: str
    before: str
    moved: tuple[Moved, ...]
    noted: bool
    reasons: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing is different."""
        return not self.reasons and not self.lines and all(item.before == item.after for item in self.moved)


def changes_page(site: Site, wanted: Address) -> str:
    """The runs of all campaigns, or of ``run``, each beside the one before it, the newest first; with ``since=week`` of the last week."""
    chosen = site.run(wanted) if wanted.get("run") else None
    titles = site.runs.titles()
    steps = [step for run in ([chosen] if chosen else site.runs.all()) for step in _steps(run, titles[run.key])]
    steps.sort(key=lambda step: step.at, reverse=True)
    start = (datetime.now(UTC) - WEEK).isoformat(timespec="seconds")
    recent = [step for step in steps if step.at >= start]
    shown = recent if wanted.get("since") == "week" else steps
    return site.render(
        "changes.html.j2",
        wanted,
        chosen=chosen,
        title=titles[chosen.key] if chosen else "",
        steps=shown[:MOST_STEPS],
        counts={"": len(steps), "week": len(recent)},
        left_out=max(0, len(shown) - MOST_STEPS),
        since=wanted.get("since") if wanted.get("since") == "week" else "",
    )


def _steps(run: Run, title: str) -> Iterator[Step]:
    """The finished runs of a campaign beside those before them, without those that changed nothing."""
    ended = [execution for execution in run.executions if execution.finished]
    for before, after in pairwise(ended):
        step = Step(
            run,
            title,
            after.finished or "",
            before.finished or "",
            tuple(_moved(before.numbers, after.numbers)),
            bool(before.numbers and after.numbers),
            tuple(_reasons(before, after)),
            tuple(_difference(before.text, after.text)),
        )
        if not step.same:
            yield step


def _moved(before: Mapping[str, Numbers], after: Mapping[str, Numbers]) -> Iterator[Moved]:
    was, now = _by_defense(before), _by_defense(after)
    for defense in {**now, **was}:
        yield Moved(defense, was.get(defense), now.get(defense))


def _by_defense(numbers: Mapping[str, Numbers]) -> dict[str, Numbers]:
    seeds: dict[str, list[Numbers]] = {}
    for key, value in numbers.items():
        seeds.setdefault(key.rpartition("/")[0], []).append(value)
    return {defense: _together(found) for defense, found in seeds.items()}


def _together(seeds: Sequence[Numbers]) -> Numbers:
    if len(seeds) == 1:
        return seeds[0]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    lows, highs = (
        [end for end in ends if end is not None] for ends in zip(*((s.ci_low, s.ci_high) for s in seeds), strict=True)
    )
    verdicts = {seed.verdict for seed in seeds}
    return Numbers(
        mean([seed.clean_accuracy for seed in seeds]),
        mean([seed.robust_accuracy for seed in seeds]),
        min(lows, default=None),
        max(highs, default=None),
        next((verdict for verdict in ("not credible", "suspect", "credible") if verdict in verdicts), None),
    )


def _reasons(before: Execution, after: Execution) -> Iterator[str]:
    """What differs beside the numbers and the campaign file."""
    was, now = before.git.get("commit", ""), after.git.get("commit", "")
    if was != now:
        yield f"commit {was[:10] or 'none'} → {now[:10] or 'none'}"
    for package in PACKAGES:
        was, now = before.packages.get(package, "none"), after.packages.get(package, "none")
        if was != now:
            yield f"{package} {was} → {now}"
    for name in {**before.plugins, **after.plugins}:
        was, now = (side.plugins.get(name, {}).get("version", "") for side in (before, after))
        if was and now and was != now:
            yield f"{name}, version {was} → {now}"
    if before.data.get("test_digest") != after.data.get("test_digest"):
        yield f"other test samples: {before.data.get('n', 'none')} → {after.data.get('n', 'none')}"
    files = [name for name in after.files if before.files.get(name, after.files[name]) != after.files[name]]
    if files:
        yield f"files with another content: {', '.join(files[:5])}" + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    if before.machine != after.machine:
        machines = [
            ", ".join(map(str, [side.machine.get("processor", ""), *side.machine.get("accelerators", [])]))
            for side in (before, after)
        ]
        yield f"another machine: {' → '.join(machines)}"


def _difference(before: str, after: str) -> Iterator[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    for at, line in enumerate(lines):
        if at >= MOST_LINES:
            yield "…"
            return
        if not line.startswith(("---", "+++", "@@")):
            yield line
