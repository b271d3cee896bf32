"""How the attacks searched: whether they converged, what their strength cost, and how far the smallest changes reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robustkd.contracts.check import Trace
from robustkd.reporting.formatting import NORMS, count, interval, number, percent
from robustkd.reporting.palette import SERIES
from robustkd.reporting.plots import Plot, Series, plot
from robustkd.reporting.samples import SampleEvidence, first_seeds
from robustkd.reporting.summary import attack_names, cells_by_pair, mean
from robustkd.scoring.results import DefenseResult, Results

BINS = 24
TRIED = "points that the attack has tried"
REACH = 0.99
"""A histogram of norms ends where so many of those that were found lie below: single large ones would leave nothing to see."""


def convergence(results: Results, defenses: Sequence[str]) -> Plot | None:
    """How far the strongest attack had come after so many points, a line for each defense; None where no check followed one."""
    lines = []
    for defense in defenses:
        trace = next((found for item in results.defenses if item.defense == defense if (found := trace_of(item))), None)
        lines.append(Series(defense, [], []) if trace is None else _course(defense, trace, trace.best))
    return plot("Best margin so far", lines, TRIED, shares=False)


def convergence_by_sample(results: Results, defenses: Sequence[str]) -> list[Plot]:
    """The same of each sample by itself, with the first seed: a small plot for each defense, in its colour."""
    plots = []
    for place, defense in enumerate(defenses):
        trace = next((found for item in results.defenses if item.defense == defense if (found := trace_of(item))), None)
        lines = [_course(f"#{at}", trace, path) for at, path in zip(trace.samples, trace.paths, strict=False)] if trace else []
        if drawn := plot(defense, lines, TRIED, shares=False, n_ticks=4):
            style = place % len(SERIES)
            # One point to point at, the last: those of all samples would be thousands.
            kept = (replace(line, colour=style, dash="", dots=line.dots[-1:]) for line in drawn.lines)
            plots.append(replace(drawn, lines=tuple(kept)))
    return plots


def sample_course(item: DefenseResult, sample: int) -> Plot | None:
    """How far the strongest attack had come on one sample; None where no check followed it there."""
    trace = trace_of(item)
    path = trace.of_sample(sample) if trace else []
    return (
        plot(f"Best margin so far under {trace.attack}", [_course(trace.attack, trace, path)], TRIED, shares=False)
        if trace
        else None
    )


def trace_of(item: DefenseResult) -> Trace | None:
    """How the search went that a check followed on a trained defense; None where none did."""
    return next((finding.trace for finding in item.checks if finding.trace is not None), None)


def _course(label: str, trace: Trace, path: Sequence[float]) -> Series:
    met = [(at, best) for at, best in zip(trace.points, path, strict=False) if math.isfinite(best)]
    told = [f"{trace.attack}, after {count(at)} points: {number(best)}" for at, best in met]
    return Series(label, [at for at, _ in met], [best for _, best in met], told=told)


def strength(results: Results, defenses: Sequence[str]) -> Plot | None:
    """What each attack leaves by what it costs, points for each defense; None of fewer than two attacks."""
    pairs, names = cells_by_pair(results), attack_names(results)
    if len(names) < 2:
        return None
    lines = []
    for defense in defenses:
        points = []
        for attack in names:
            cells = [
                cell for cell in pairs.get((defense, attack), ()) if cell.status == "done" and cell.robust_accuracy is not None
            ]
            samples = sum(cell.n for cell in cells)
            passes = sum(cell.forward_passes + cell.backward_passes for cell in cells)
            if not samples or not passes:
                continue
            robust = mean(cell.robust_accuracy for cell in cells) or 0.0
            low = min((cell.ci_low for cell in cells if cell.ci_low is not None), default=robust)
            high = max((cell.ci_high for cell in cells if cell.ci_high is not None), default=robust)
            told = f"{attack}: {number(passes / samples, 3)} passes a sample, {percent(robust)} ({interval(low, high)})"
            points.append((passes / samples, robust, low, high, told))
        points.sort()
        x, y, low_ends, high_ends, texts = zip(*points, strict=True) if points else ((), (), (), (), ())
        lines.append(Series(defense, x, y, low_ends, high_ends, texts, [False] * len(points)))
    return plot("What each attack leaves, by its cost", lines, "passes a sample, forward and backward", log_x=True)


def norms(evidence: SampleEvidence, defenses: Sequence[str]) -> list[Plot]:
    """Of each minimum-norm attack, how the norms that it found are distributed: a small plot, a line for each defense."""
    parts = {part.defense: part for part in first_seeds(evidence)}
    names = dict.fromkeys(name for part in parts.values() for name in part.norms)
    plots = []
    for attack in names:
        found = {
            defense: values[np.isfinite(values)]
            for defense in defenses
            if defense in parts and (values := parts[defense].norms.get(attack)) is not None
        }
        everything = np.concatenate(list(found.values())) if found else np.zeros(0)
        if not len(everything) or not (end := float(np.quantile(everything, REACH))):
            continue
        edges = np.linspace(0, end, BINS + 1)
        lines = []
        for defense in defenses:
            values = found.get(defense, np.zeros(0))
            if not len(values):
                lines.append(Series(defense, [], []))
                continue
            n = len(parts[defense].label)
            shares = (np.histogram(values, edges)[0] / n).tolist()
            told = [
                f"{number(low, 3)} to {number(high, 3)}: {percent(share)}"
                for low, high, share in zip(edges, edges[1:], shares, strict=False)
            ]
            lines.append(Series(defense, ((edges[1:] + edges[:-1]) / 2).tolist(), shares, told=told))
        norm = evidence.norm_names.get(attack, "")
        drawn = plot(
            attack, lines, f"{NORMS.get(norm, norm) or 'norm'} of what was found", shares=False, share_text=True, n_ticks=4
        )
        plots += [drawn] if drawn else []
    return plots
