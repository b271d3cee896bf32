"""What AutoAttack's adaptive version leaves standing beside its standard one, where gradients help and where they do not.

Small networks, trained here in seconds on scikit-learn's digits: as they are, with logits a thousand times as large, with their input
rounded to eight levels, with the gradients of another network, and with k-winners-take-all in the place of ReLU. Each is attacked in three
norms with three seeds: a quarter of an hour of CPU time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click
import torch
from _harness import Verdicts, conclude, quiet
from torch import Tensor, nn
from typing_extensions import override

import robustkd
from robustkd.contracts.json_value import JsonObject
from robustkd.data import SplitParams, load_splits

BUDGETS: Mapping[str, float] = {"linf": 0.06, "l2": 0.35, "l1": 0.9}
VERSIONS = ("standard", "adaptive")
LEVELS = 8


class Scaled(nn.Module):
    """Logits a thousand times as large: the same decisions, and probabilities of 0 and 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 1000 * self.network(x)
        return logits


class Rounded(nn.Module):
    """The input is rounded first, so that no gradient reaches it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x * (LEVELS - 1)).round() / (LEVELS - 1))
        return logits


class GradientsOfAnother(nn.Module):
    """The values of one network and the gradients of another."""

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.network, self.other = network, other

    @override
    def forward(self, x: Tensor) -> Tensor:
        other: Tensor = self.other(x)
        return other + (self.network(x) - other).detach()


class WinnersTakeAll(nn.Module):
    """The largest tenth of the units pass, all others are 0 (Xiao, Zhong & Zheng 2020, arXiv:1905.10510)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(max(1, x.shape[1] // 10), dim=1).values[:, -1:]
        return torch.where(x >= least, x, 0.0)


@dataclass(frozen=True)
class Case:
    """A network that both versions are run on.

    Attributes:
        of: the network, of a trained one and another; None: it is trained with ``activation``.
        looser: what the budgets are multiplied with.
    """

    name: str
    of: Callable[[nn.Module, nn.Module], nn.Module] = lambda network, other: network
    activation: Callable[[], nn.Module] = nn.ReLU
    looser: float = 1.0


CASES = (
    Case("as it is"),
    Case("logits x 1000", lambda network, other: Scaled(network)),
    Case("input in 8 levels", lambda network, other: Rounded(network), looser=1.8),
    Case("gradients of another network", GradientsOfAnother),
    Case("k-winners-take-all", activation=WinnersTakeAll),
)


def trained(activation: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A perceptron of two hidden layers on the digits' training images."""
    train = load_splits("digits", {}, SplitParams()).train
    assert train is not None
    x, y = torch.as_tensor(train.unit()).flatten(1), torch.as_tensor(train.labels).long()
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), 0.005)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network.eval()


@click.command()
@click.option("--images", default=100, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--cases", default=",".join(case.name for case in CASES), show_default=True)
def main(images: int, seeds: int, cases: str) -> None:
    """Print the table and write results/adaptive.json."""
    torch.set_num_threads(1)
    test = load_splits("digits", {}, SplitParams(test=images)).test
    x, y = torch.as_tensor(test.unit()), torch.as_tensor(test.labels).long()
    rows: list[JsonObject] = []
    for case in CASES:
        if case.name not in cases.split(","):
            continue
        network = case.of(trained(case.activation, 0), trained(case.activation, 1))
        for norm, eps in BUDGETS.items():
            standing: dict[str, list[float]] = {version: [] for version in VERSIONS}
            passes: dict[str, list[float]] = {version: [] for version in VERSIONS}
            for version in VERSIONS:
                for seed in range(seeds):
                    with quiet():
                        report = robustkd.attack(
                            {"kind": "autoattack", "version": version},
                            network,
                            x,
                            y,
                            norm=norm,
                            eps=eps * case.looser,
                            seed=seed,
                        )
                    standing[version].append(float(report.outcome.standing.sum()))
                    passes[version].append(float(report.outcome.passes.mean()))
            share = statistics.fmean(passes["adaptive"]) / statistics.fmean(passes["standard"])
            print(f"{case.name}, {norm}: {standing['standard']} standard, {standing['adaptive']} adaptive", flush=True)
            rows.append(
                {
                    "network": case.name,
                    "norm": norm,
                    "eps": eps * case.looser,
                    "images": len(x),
                    "standard": statistics.fmean(standing["standard"]),
                    "adaptive": statistics.fmean(standing["adaptive"]),
                    "of_seeds": {version: [int(count) for count in counts] for version, counts in standing.items()},
                    "share_of_passes": share,
                }
            )
    columns = [("network", "network", ""), ("norm", "norm", ""), ("eps", "eps", ".3f"), ("images", "images", "d")]
    figures = [("standard", "standard", ".1f"), ("adaptive", "adaptive", ".1f"), ("share_of_passes", "passes", ".2f")]
    conclude("adaptive", rows, [*columns, *figures], Verdicts())


if __name__ == "__main__":
    main()
