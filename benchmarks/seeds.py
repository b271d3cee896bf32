"""How much of what two AutoAttacks differ by is chance? Ours and pyautoattack's, each with several seeds.

Only the images that a short APGD-CE leaves standing are attacked: whatever else there is falls to anybody.
"""

from __future__ import annotations

import time

import _comparisons
import _networks
import click
import torch
from _harness import SLACK, Job, Verdicts, conclude, distances, quiet

from robustkd.contracts.json_value import JsonObject


@click.command()
@click.option("--network", default="cifar10_resnet20", show_default=True)
@click.option("--images", default=250, show_default=True)
@click.option("--seeds", default=3, show_default=True)
def main(network: str, images: int, seeds: int) -> None:
    """Print the table and write results/seeds.json."""
    torch.set_num_threads(1)
    eps = _networks.EPS[network]
    model, x, y = _networks.load(network, images)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    quick = _comparisons.implementation(Job("apgd-ce", "robustkd", network, images, eps, {"steps": 20}))
    hard = right & (distances(model, x, y, quick(model, x, y), "linf") > eps * (1 + SLACK))
    x, y = x[hard], y[hard]
    rows: list[JsonObject] = []
    fallen = {who: torch.zeros(len(x), dtype=torch.bool) for who in ("robustkd", "pyautoattack")}
    for seed in range(seeds):
        for who, so_far in fallen.items():
            attack, begun = (
                _comparisons.implementation(Job("autoattack", who, network, images, eps, seed=seed)),
                time.process_time(),
            )
            with quiet():
                found = attack(model, x, y).detach()
            broken = distances(model, x, y, found, "linf") <= eps * (1 + SLACK)
            so_far |= broken
            rows.append(
                {
                    "implementation": who,
                    "network": network,
                    "images": images,
                    "eps": eps,
                    "attacked": len(x),
                    "seed": seed,
                    "standing": int((~broken).sum()),
                    "standing_so_far": int((~so_far).sum()),
                    "cpu": time.process_time() - begun,
                }
            )
            print(f"{who}, seed {seed}: {rows[-1]['standing']} of {images} stand", flush=True)
    columns = [
        ("implementation", "implementation", ""),
        ("seed", "seed", "d"),
        ("standing", "standing", "d"),
        ("standing_so_far", "under all so far", "d"),
    ]
    ours, theirs = ([row["standing"] for row in rows if row["implementation"] == who] for who in fallen)
    verdicts = Verdicts()
    verdicts.expect(
        f"{network}: standing more than pyautoattack's, mean of {seeds} seeds", (sum(ours) - sum(theirs)) / seeds, 1.0
    )
    conclude("seeds", rows, [*columns, ("cpu", "CPU s", ".0f")], verdicts)


if __name__ == "__main__":
    main()
