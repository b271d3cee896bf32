"""What robustkd's engine costs beside the network: PGD against the bare passes it is made of, and against the peers' PGD; Square against
pyautoattack's.

The samples get a budget in which nothing breaks, so that none leaves the batch: every implementation makes the same passes.
"""

from __future__ import annotations

import _networks
import click
import torch
from _harness import COST, Job, Measurement, Verdicts, conclude, measure, now, repeated, seconds
from torch import Tensor, nn

import robustkd
from robustkd.contracts.json_value import JsonObject
from robustkd.targets import frozen

UNBREAKABLE = 1e-7
QUERIES = 300
SQUARES = ("square", "square-l2", "square-l1")


@click.command()
@click.option("--networks", default="resnet18,cifar10_resnet20,pgd_at,mnist_lenet5_adv", show_default=True)
@click.option("--images", default=16, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--squares", default="pgd_at,mnist_lenet5_adv", show_default=True, help="The networks that Square is compared on."
)
def main(networks: str, images: int, steps: int, repeats: int, device: str, squares: str) -> None:
    """Print the table and write results/overhead.json."""
    torch.set_num_threads(1)
    rows: list[JsonObject | Measurement] = []
    verdicts = Verdicts()
    for name in filter(_networks.there, networks.split(",")):
        network, x, y = _networks.load(name, images, device)
        with torch.no_grad():
            y = network(x).argmax(1)  # a sample that is wrong before the attack would cost nothing
        pairs = [(_bare(network, x, y, steps), _ours(network, x, y, steps)) for _ in range(repeats)]
        ratio = repeated(repeats, iter([ours / bare for bare, ours in pairs]).__next__)
        bare = repeated(repeats, iter([bare for bare, _ in pairs]).__next__)
        rows.append({"network": name, "implementation": "bare passes", "ms_per_step": 1e3 * bare / steps, "ratio": 1.0})
        rows.append({"network": name, "implementation": "robustkd", "ms_per_step": 1e3 * bare * ratio / steps, "ratio": ratio})
        verdicts.expect(f"{name}: PGD without anything leaving, to its bare passes", ratio, 1.10)
        for peer in ("torchattacks", "foolbox", "adv-lib"):
            budget = {"steps": steps, "step_size": UNBREAKABLE}
            row = measure(Job("pgd", peer, name, images, UNBREAKABLE, budget, device=device))
            took = float("nan") if "error" in row else seconds(row)
            rows.append(row | {"ms_per_step": 1e3 * took / steps, "ratio": took / bare})
        if name in squares.split(","):
            for comparison in SQUARES:
                bout = [_square(comparison, who, name, device) for who in ("robustkd", "pyautoattack")]
                rows += bout
                if all("error" not in row for row in bout):
                    ours, theirs = (seconds(row) / row["forwards"] for row in bout)
                    verdicts.expect(f"{name}: {comparison}, time of a query to pyautoattack's", ours / theirs, 1.05)
    columns = [*COST[:2], ("comparison", "attack", ""), ("ms_per_step", "ms/step", ".2f"), ("ratio", "to bare", ".2f")]
    conclude("overhead", rows, columns, verdicts, device)


def _square(comparison: str, implementation: str, network: str, device: str) -> Measurement:
    row = measure(Job(comparison, implementation, network, 200, UNBREAKABLE, {"queries": QUERIES}, device=device))
    return row if "error" in row else row | {"ms_per_step": 1e3 * seconds(row) / row["forwards"]}


def _bare(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> float:
    """The passes that PGD cannot do without: the clean one, ``steps`` with the input's gradient, and a last look; and the judge's."""
    started = now(x.device)
    with frozen(network):
        for _ in range(3):
            with torch.no_grad():
                network(x)
        for _ in range(steps):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(network(leaf), y, reduction="sum"), leaf)
    return now(x.device) - started


def _ours(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> float:
    started = now(x.device)
    robustkd.attack("pgd", network, x, y, eps=UNBREAKABLE, steps=steps, step_size=UNBREAKABLE)
    return now(x.device) - started


if __name__ == "__main__":
    main()
