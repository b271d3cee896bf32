"""How far float32 is off in the gradient that attacks on the cross entropy follow: torch's form of it, and robustkd's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import _networks
import click
import torch
from _harness import Verdicts, conclude
from torch import Tensor, nn
from torch.nn import functional as F

from robustkd.attacks.image.engine.losses import cross_entropy
from robustkd.contracts.json_value import JsonObject

CASES = (("cifar10_resnet20", 32), ("mnist_lenet5_adv", 100), ("pgd_at", 100))
FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "robustkd": cross_entropy,
}


@click.command()
def main() -> None:
    """Print the table and write results/gradients.json."""
    torch.set_num_threads(1)
    rows: list[JsonObject] = []
    for name, images, network, x, y in _networks.loaded(CASES):
        true = _gradient(copy.deepcopy(network).double(), x.double(), y, cross_entropy)
        for form, loss in FORMS.items():
            found = _gradient(network, x, y, loss)
            error = (found - true).norm(dim=1) / true.norm(dim=1)
            median, ninth = error.quantile(error.new_tensor([0.5, 0.9])).tolist()
            signs = float((found.sign() != true.sign()).double().mean())
            rows.append({"network": name, "images": images, "form": form, "median": median, "decile": ninth, "signs": signs})
    columns = [
        ("network", "network", ""),
        ("form", "form", ""),
        ("images", "images", ""),
        ("median", "median error", ".1e"),
        ("decile", "a tenth beyond", ".1e"),
        ("signs", "wrong signs", ".1%"),
    ]
    conclude("gradients", rows, columns, Verdicts())


def _gradient(network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(N, pixels), in double precision, of the clean images."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(loss(network(leaf), y).sum(), leaf)[0].double().flatten(1)


if __name__ == "__main__":
    main()
