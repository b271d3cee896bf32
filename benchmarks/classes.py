"""100 and 1,000 classes: what do attacks miss that aim at nine of them?

Two and three digits of MNIST in a row are one image, and the number that they show is its class. A network trained on them is
attacked with as many steps towards every wrong class (``everywhere``), towards nine in the order of the logits, and towards nine in
MALT's. What only the first one breaks was missed by the others. 1,000 classes take hours on a CPU: ``--networks digits_1000 --images 100
--seeds 1 --name classes-1000`` is a part of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import _networks
import click
import torch
from _harness import Verdicts, conclude, quiet

import robustkd
from robustkd.contracts.json_value import JsonObject, JsonValue

ATTACKS: Mapping[str, tuple[str, Mapping[str, JsonValue]]] = {
    "nine, by logits": ("apgd-t", {"targets": 9, "order": "logits"}),
    "nine, MALT's order": ("apgd-t", {"targets": 9, "order": "malt"}),
    "everywhere": ("apgd-t", {"targets": 999, "order": "logits"}),
    "standard": ("autoattack", {"version": "standard"}),
    "adaptive": ("autoattack", {"version": "adaptive"}),
}


@click.command()
@click.option("--networks", default="digits_100,digits_1000", show_default=True)
@click.option("--images", default=500, show_default=True)
@click.option("--steps", default=50, show_default=True, help="Of apgd-t towards each class.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--name", default="classes", show_default=True, help="Of the file in results/.")
def main(networks: str, images: int, steps: int, seeds: int, name: str) -> None:
    """Print the table and write results/classes.json."""
    torch.set_num_threads(1)
    rows: list[JsonObject] = []
    verdicts = Verdicts()
    for network in networks.split(","):
        if not _networks.there(network):
            continue
        model, x, y = _networks.load(network, images)
        standing: dict[str, torch.Tensor] = {}
        for label, (attack, params) in ATTACKS.items():
            for seed in range(seeds):
                budget = {"steps": steps} if attack == "apgd-t" else {}
                began = time.process_time()
                with quiet():
                    report = robustkd.attack(attack, model, x, y, eps=_networks.EPS[network], seed=seed, **budget, **params)
                robust = torch.as_tensor(report.outcome.standing)
                standing[label] = standing.get(label, torch.ones_like(robust)) & robust
                passes = float(report.outcome.passes.mean())
                rows.append(
                    {
                        "network": network,
                        "attack": label,
                        "seed": seed,
                        "images": images,
                        "eps": _networks.EPS[network],
                        "clean": float(report.outcome.correct.mean()),
                        "robust": float(robust.float().mean()),
                        "passes": passes,
                        "cpu": time.process_time() - began,
                    }
                )
                print(f"{network}, {label}, seed {seed}: {rows[-1]['robust']:.3f}", flush=True)
        every = standing["everywhere"]
        for label in ("nine, by logits", "nine, MALT's order", "standard", "adaptive"):
            missed = 100 * float((standing[label] & ~every).float().mean())
            verdicts.expect(f"{network}: {label}: broken everywhere and standing here, points over {seeds} seeds", missed, 0.2)
    columns = [("network", "network", ""), ("attack", "attack", ""), ("seed", "seed", "d"), ("clean", "clean", ".3f")]
    figures = [("robust", "robust", ".3f"), ("passes", "passes", ".0f"), ("cpu", "CPU s", ".0f")]
    conclude(name, rows, [*columns, *figures], verdicts)


if __name__ == "__main__":
    main()
