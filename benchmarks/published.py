"""Our attacks on networks that others published figures about: are ours as strong as theirs were?

20 CPU minutes. The figures are of all 10,000 images; the searches for the nearest example are made on the first 300 (``--images 10000``:
eight hours).
"""

from __future__ import annotations

import _networks
import click
from _harness import COST, Job, Jobs, Measurement, Verdicts, table

from robustkd.contracts.json_value import JsonObject

# advertorch published these with the networks. (comparison, network, images, budget, key, published)
FIGURES: tuple[tuple[str, str, int, JsonObject, str, float], ...] = (
    ("pgd", "mnist_lenet5_adv", 10_000, {"steps": 40, "step_size": 0.01, "random_start": False}, "robust_accuracy", 0.932),
    ("fab-linf", "mnist_lenet5_clean", 300, {"steps": 100}, "median_norm", 0.112),
    ("fab-linf", "mnist_lenet5_adv", 300, {"steps": 100}, "median_norm", 0.3509),
    ("fab-l2", "mnist_lenet5_clean", 300, {"steps": 100}, "median_norm", 1.423),
    ("fab-l2", "mnist_lenet5_adv", 300, {"steps": 100}, "median_norm", 3.04),
    ("ddn", "mnist_lenet5_clean", 300, {"steps": 1000}, "mean_norm", 1.38),
    ("ddn", "mnist_lenet5_adv", 300, {"steps": 1000}, "mean_norm", 1.917),
)


@click.command()
@click.option("--images", default=0, help="Instead of each figure's own number.")
@click.option("--comparisons", default="pgd,fab-linf,fab-l2,ddn", show_default=True)
@click.option("--name", default="published", help="Of the file in results/.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--minutes", default=0.0, help="Of CPU time, after which no run is begun; 0: no end.")
@click.option("--again", is_flag=True, help="Measure anew what the file in results/ has.")
@click.option("--strict", is_flag=True, help="Fail when a target is missed, or a run is left to do.")
def main(images: int, comparisons: str, name: str, device: str, minutes: float, again: bool, strict: bool) -> None:
    """Print the table and write results/published.json. Each run is written down at once: the same command goes on where it was stopped."""
    jobs = Jobs(name, device, again=again, minutes=minutes)
    rows: list[Measurement] = []
    verdicts = Verdicts()
    for comparison, network, count, budget, key, published in FIGURES:
        if comparison not in comparisons.split(",") or not _networks.there(network):
            continue
        found = jobs.measure(Job(comparison, "robustkd", network, images or count, 0.3, budget, device=device))
        if found is None:
            continue
        row = found | {"published": published}
        rows.append(row)
        print(f"{network}: {comparison} done", flush=True)
        if "error" in row:
            continue
        if key == "robust_accuracy":  # published as a rate of success over all images
            verdicts.expect(
                f"{network}: {comparison}: away from the published {1 - published:.3f}", abs(row[key] - published), 0.002
            )
        else:
            verdicts.expect(f"{network}: {comparison}: {key} to the published {published}", row[key] / published, 1.02)
    figures = ("median_norm", "median", ".4f"), ("mean_norm", "mean", ".4f"), ("published", "published", ".4f")
    table(rows, [*COST[:1], ("comparison", "attack", ""), *COST[1:], ("robust_accuracy", "robust", ".4f"), *figures])
    verdicts.print()
    jobs.write(rows, verdicts)
    if strict and (jobs.left or not verdicts.all_met):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
