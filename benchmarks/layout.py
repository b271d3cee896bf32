"""What laying a network's convolutions out channels last gains (``robustkd.targets.layout``): CPU time of the same passes."""

from __future__ import annotations

import _networks
import click
import torch
from _harness import Verdicts, conclude, now, repeated
from torch import Tensor, nn

from robustkd.contracts.json_value import JsonObject
from robustkd.targets import frozen
from robustkd.targets.layout import channels_last

# (network, images in a batch)
CASES = (
    ("mnist_lenet5_adv", 1),
    ("mnist_lenet5_adv", 256),
    ("pgd_at", 256),
    ("cifar10_resnet20", 1),
    ("cifar10_resnet20", 64),
    ("resnet18", 1),
    ("resnet18", 16),
    ("wrn-28-10", 2),
)


@click.command()
@click.option("--repeats", default=9, show_default=True)
def main(repeats: int) -> None:
    """Print the table and write results/layout.json."""
    torch.set_num_threads(1)
    rows: list[JsonObject] = []
    for name, images, network, x, y in _networks.loaded(CASES):
        with frozen(network):
            pairs = {"forward": _ratio(network, x, y, repeats, back=False), "both": _ratio(network, x, y, repeats, back=True)}
        rows.append({"network": name, "images": images, **pairs})
    columns = [
        ("network", "network", ""),
        ("images", "images", ""),
        ("forward", "forward", ".2f"),
        ("both", "and backward", ".2f"),
    ]
    conclude("layout", rows, columns, Verdicts())


def _ratio(network: nn.Module, x: Tensor, y: Tensor, repeats: int, *, back: bool) -> float:
    """The median, over pairs that are timed one right after the other."""

    def once() -> float:
        leaf = x.clone().requires_grad_(back)
        started = now(x.device)
        with torch.set_grad_enabled(back):
            loss = nn.functional.cross_entropy(network(leaf), y, reduction="sum")
        if back:
            torch.autograd.grad(loss, leaf)
        return now(x.device) - started

    def pair() -> float:
        before = once()
        with channels_last(network):
            once()  # the first pass in another order is planned anew
            laid = once()
        return laid / before

    once()
    return repeated(repeats, pair)


if __name__ == "__main__":
    main()
