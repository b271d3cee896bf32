"""Gradients in bfloat16 against the network's own precision: time, passes, and what is left standing."""

from __future__ import annotations

import _networks
import click
from _harness import COST, Job, Measurement, Verdicts, conclude, over_seeds, seconds

# (network, eps, images, attacks); of the wide ones, what does not take hours on a CPU
BOUTS = (
    ("cifar10_resnet20", 1 / 255, 200, ("pgd", "apgd-ce", "apgd-t")),
    ("mnist_lenet5_adv", 0.3, 200, ("pgd", "apgd-ce", "apgd-t")),
    ("pgd_at", 0.1, 200, ("pgd", "apgd-ce", "apgd-t")),
    ("resnet18", 1 / 255, 16, ("pgd", "apgd-ce")),
    ("wrn-28-10", 1 / 255, 512, ("pgd", "apgd-ce")),
)


@click.command()
@click.option("--networks", default="cifar10_resnet20,mnist_lenet5_adv,pgd_at,resnet18", show_default=True)
@click.option("--images", default=0, help="Instead of each network's own number.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="precision", help="Of the file in results/.")
def main(networks: str, images: int, seeds: int, device: str, name: str) -> None:
    """Print the table and write results/precision.json."""
    rows: list[Measurement] = []
    for network, eps, count, attacks in BOUTS:
        if network not in networks.split(",") or not _networks.there(network):
            continue
        for comparison in attacks:
            budget = {"steps": 40, "step_size": eps / 10} if comparison == "pgd" else {"steps": 100}
            jobs = [
                Job(comparison, "robustkd", network, images or count, eps, budget | {"precision": precision}, device=device)
                for precision in ("full", "bf16")
            ]
            full, reduced = bout = [row for job in jobs if (row := over_seeds(job, seeds))]
            rows += [row | {"precision": job.budget["precision"]} for row, job in zip(bout, jobs, strict=True)]
            print(f"{network}: {comparison} done", flush=True)
            if "error" not in full and "error" not in reduced:
                rows[-1]["share_of_time"] = seconds(reduced) / seconds(full)
    columns = [COST[0], ("precision", "gradients in", ""), ("comparison", "attack", ""), *COST[2:]]
    figures = [("robust_accuracy", "robust", ".3f"), ("share_of_time", "of full's time", ".2f")]
    conclude(name, rows, [*columns, *figures], Verdicts(), device)


if __name__ == "__main__":
    main()
