"""Gradients in bfloat16 against the network's own precision: time, passes, and what is left standing."""

from __future__ import annotations

from typing import Any

import _networks
import click
from _arena import COST, Job, Verdicts, over_seeds, seconds, table, write

# (network, eps, images); wrn-28-10 is for devices on which it takes less than hours
BOUTS = (
    ("cifar10_resnet20", 1 / 255, 200),
    ("mnist_lenet5_adv", 0.3, 200),
    ("pgd_at", 0.1, 200),
    ("resnet18", 1 / 255, 16),
    ("wrn-28-10", 1 / 255, 512),
)
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 40},
    "apgd-ce": {"steps": 100},
    "apgd-t": {"steps": 100},
    "autoattack-adaptive": {},
}


@click.command()
@click.option("--networks", default="cifar10_resnet20,mnist_lenet5_adv,pgd_at,resnet18", show_default=True)
@click.option("--attacks", default=",".join(ATTACKS), show_default=True)
@click.option("--images", default=0, help="Instead of each network's own number.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="precision", help="Of the file in results/.")
def main(networks: str, attacks: str, images: int, seeds: int, device: str, name: str) -> None:
    """Print the table and write results/precision.json."""
    rows: list[dict[str, Any]] = []
    verdicts = Verdicts()
    for network, eps, count in BOUTS:
        if network not in networks.split(",") or not _networks.there(network):
            continue
        for duel in attacks.split(","):
            budget = ATTACKS[duel] | ({"step_size": eps / 10} if duel == "pgd" else {})
            jobs = [
                Job(duel, "robustkd", network, images or count, eps, budget | {"precision": precision}, device=device)
                for precision in ("full", "bf16")
            ]
            full, reduced = bout = [over_seeds(job, seeds) for job in jobs]
            rows += [row | {"precision": job.budget["precision"]} for row, job in zip(bout, jobs, strict=True)]
            print(f"{network}: {duel} done", flush=True)
            if "error" in full or "error" in reduced:
                continue
            rows[-1]["share_of_time"] = seconds(reduced) / seconds(full)
            said = f"{network}: {duel}: robust accuracy above that in full precision, points"
            verdicts.expect(said, 100 * (reduced["robust_accuracy"] - full["robust_accuracy"]), 0.5)
    columns = [COST[0], ("precision", "gradients in", ""), ("duel", "attack", ""), *COST[2:]]
    table(rows, [*columns, ("robust_accuracy", "robust", ".3f"), ("share_of_time", "of full's time", ".2f")])
    verdicts.print()
    write(name, rows, verdicts, device)


if __name__ == "__main__":
    main()
