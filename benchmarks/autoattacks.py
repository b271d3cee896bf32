"""AutoAttack, standard and adaptive, against pyautoattack's: robust accuracy, time, passes.

50 CPU minutes with the default numbers of images and three seeds, ten hours with ``--images 1000``. torchattacks' takes part where
``--implementations`` names it. The images are taken in parts, of all networks and seeds in turn, and each part is written down at once:
``--minutes`` leaves off early, and the same command goes on later. The table is of the parts that all implementations have with all
seeds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import _networks
import click
from _harness import COST, Job, Jobs, Measurement, Verdicts, chance, fastest, same_machine, seconds, table


@dataclass(frozen=True)
class Bout:
    """A network that the implementations meet on.

    Attributes:
        images: how many.
        share: standard's share of pyautoattack's time at most: 0.6 where half of the samples stand or fewer, 0.85 where most do; None
            where its time is no question.
    """

    network: str
    images: int
    share: float | None


# The last two are trained so that gradients mislead: at a large eps, and with a single step.
BOUTS = (
    Bout("cifar10_resnet20", 50, 0.6),
    Bout("pgd_at", 300, 0.6),
    Bout("mnist_lenet5_adv", 30, 0.85),
    Bout("mnist_large_eps", 50, None),
    Bout("fgsm_at", 200, None),
)
TURNS = (
    ("autoattack", "robustkd"),
    ("autoattack-adaptive", "robustkd"),
    ("autoattack", "pyautoattack"),
    ("autoattack", "torchattacks"),
)
Turn = tuple[str, str]


@click.command()
@click.option("--networks", default=",".join(bout.network for bout in BOUTS), show_default=True)
@click.option("--images", default=0, help="Instead of each network's own number.")
@click.option("--part", default=100, show_default=True, help="Images at a time.")
@click.option("--seeds", default=3, show_default=True, help="Over which each implementation is averaged.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="autoattacks", help="Of the file in results/.")
@click.option("--implementations", default="robustkd,pyautoattack", show_default=True, help="torchattacks is another.")
@click.option("--minutes", default=0.0, help="Of CPU time, after which no part is begun; 0: no end.")
@click.option("--again", is_flag=True, help="Measure anew what the file in results/ has.")
@click.option("--strict", is_flag=True, help="Fail when a target of strength is missed, or a part is left to do.")
def main(
    networks: str,
    images: int,
    part: int,
    seeds: int,
    device: str,
    name: str,
    implementations: str,
    minutes: float,
    again: bool,
    strict: bool,
) -> None:
    """Print the table and write results/autoattacks.json."""
    jobs = Jobs(name, device, again=again, minutes=minutes)
    bouts = [bout for bout in BOUTS if bout.network in networks.split(",") and _networks.there(bout.network)]
    turns = [turn for turn in TURNS if turn[1] in implementations.split(",")]
    counts = {bout: images or bout.images for bout in bouts}
    done: dict[Bout, list[dict[Turn, list[Measurement]]]] = {bout: [] for bout in bouts}
    for first in range(0, max(counts.values(), default=0), part):
        for bout in bouts:
            if size := min(part, counts[bout] - first) if first < counts[bout] else 0:
                measured = _measured(jobs, bout, turns, first, size, seeds)
                if all(len(rows) == seeds for rows in measured.values()):
                    done[bout].append(measured)
    rows: list[Measurement] = []
    strength, speed = Verdicts(), Verdicts()
    for bout, parts in done.items():
        if parts:
            of_turns = {turn: _together([one[turn] for one in parts]) for turn in turns}
            rows += of_turns.values()
            _compare(bout, of_turns, strength, speed)
    columns = [
        *COST[:1],
        ("comparison", "attack", ""),
        ("images", "images", "d"),
        *COST[1:],
        ("robust_accuracy", "robust", ".4f"),
    ]
    table(rows, columns)
    verdicts = Verdicts(strength.lines + speed.lines)
    verdicts.print()
    jobs.write(rows, verdicts)
    if strict and (jobs.left or not strength.all_met):
        raise SystemExit(1)


def _measured(jobs: Jobs, bout: Bout, turns: list[Turn], first: int, size: int, seeds: int) -> dict[Turn, list[Measurement]]:
    """What was measured of one part, a row for each seed; fewer where there was no time."""
    eps = _networks.EPS[bout.network]
    found: dict[Turn, list[Measurement]] = {turn: [] for turn in turns}
    for seed in range(seeds):
        for (comparison, who), rows in found.items():
            row = jobs.measure(Job(comparison, who, bout.network, size, eps, device=jobs.device, seed=seed, first=first))
            if row is not None:
                rows.append(row)
    print(f"{bout.network}: images {first} to {first + size - 1} done", flush=True)
    return found


def _together(parts: list[list[Measurement]]) -> Measurement:
    """One row of an implementation: its time over all parts, its other figures over all images, each the mean of the seeds."""
    every = [row for rows in parts for row in rows]
    if failed := next((row for row in every if "error" in row), None):
        return failed
    seeds, images = len(parts[0]), sum(rows[0]["images"] for rows in parts)
    of_seeds = [sum(rows[seed]["robust_accuracy"] * rows[seed]["images"] for rows in parts) / images for seed in range(seeds)]
    row: Measurement = {
        **every[0],
        "images": images,
        "robust_accuracy": statistics.fmean(of_seeds),
        "robust_accuracies": of_seeds,
        "peak_mib": max(row["peak_mib"] for row in every),
        "machine": "; ".join(sorted({row["machine"] for row in every})),
    }
    for key in ("wall", "cpu"):
        row[key] = sum(one[key] for one in every) / seeds  # type: ignore[literal-required]
    for key in ("forwards", "backwards"):
        row[key] = sum(one[key] * one["images"] for one in every) / (seeds * images)  # type: ignore[literal-required]
    return row


def _compare(bout: Bout, rows: dict[Turn, Measurement], strength: Verdicts, speed: Verdicts) -> None:
    rows = {turn: row for turn, row in rows.items() if "error" not in row}
    standard, adaptive = rows.get(TURNS[0]), rows.get(TURNS[1])
    peers = [row for (_, who), row in rows.items() if who != "robustkd"]
    if standard is None or adaptive is None:
        return
    of = f"{bout.network}, {standard['images']} images"
    for peer in peers:
        _expect_as_strong(
            f"{of}: robust accuracy of standard above {peer['implementation']}'s, points", standard, peer, strength
        )
    _expect_as_strong(f"{of}: robust accuracy of adaptive above standard's, points", adaptive, standard, strength)
    if bout.share is None or not same_machine([standard, adaptive, *peers]):
        return
    # torchattacks' gradient attacks have 10 steps where the procedure has 100.
    if reference := next((peer for peer in peers if peer["implementation"] == "pyautoattack"), None):
        speed.expect(f"{of}: standard's time to pyautoattack's", seconds(standard) / seconds(reference), bout.share)
    if best := fastest(peers):
        speed.expect(f"{of}: adaptive's time to {best['implementation']}'s", seconds(adaptive) / seconds(best), 0.10)


def _expect_as_strong(said: str, ours: Measurement, other: Measurement, strength: Verdicts) -> None:
    above = 100 * (ours["robust_accuracy"] - other["robust_accuracy"])
    strength.expect(said, above, 0.2, chance=100 * chance(ours["robust_accuracies"], other["robust_accuracies"]))


if __name__ == "__main__":
    main()
