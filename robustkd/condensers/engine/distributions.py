"""Distribution matching: in each step a fresh random network, in which real and synthetic images of each class should look alike.

    repeat:  theta ~ random initialisation,   one augmentation for each class
             X <- X - lr * grad  sum_c  discrepancy_theta( augmented real images of c,  augmented synthetic images of c )

A method is a discrepancy: what it compares, as a list of weighted (B, D) tables whose class means are to be equal.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.condensers.engine.augmentation import draw
from robustkd.condensers.engine.rows import rows_by_class
from robustkd.condensers.engine.synthetic import Learnt, MatchingParams, optimised, shown, start_images
from robustkd.contracts import Arrays, Condenser, FitContext
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.networks import fresh_network
from robustkd.lazy import nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.training import sgd

if TYPE_CHECKING:
    from torch import Tensor


class DistributionParams(MatchingParams):
    """Parameters of condensers that match distributions."""

    steps: int = Field(20_000, ge=1, description="random networks, with a step of the pixels in each")
    lr: float = Field(1.0, gt=0, description="of the pixels (SGD)")
    momentum: float = Field(0.5, ge=0, lt=1, description="of the pixels")
    batch_size: int = Field(256, ge=1, description="real images of each class in a step")


class DistributionMatching(Condenser):
    """A condenser by what real and synthetic images look like in random networks."""

    @abstractmethod
    def compared(self, network: ClassifierTarget, x: Tensor) -> list[tuple[float, Tensor]]:
        """What is compared of (B, C, H, W) images: (B, D) tables, each with the weight of its squared difference of class means."""

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Take the steps."""
        p = self.params
        real, rows = Samples(context.train, context.device), rows_by_class(context.train.labels)
        start, labels = start_images(context, p)
        images = nn.Parameter(start)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            network = fresh_network(context, p.model, p.model_params, role=f"condense/{step}").to(context.device)
            network.module.train()
            for weight in network.module.parameters():
                weight.requires_grad_(False)
            synthetic, classes = shown(images, labels, p)
            parts: list[list[Tensor]] = [[], [], [], []]
            for label, own in rows.items():
                chosen = torch.from_numpy(own)[torch.randperm(len(own), generator=generator)[: p.batch_size]]
                x, y = real.take(chosen)
                augmented = draw(p.augment, generator)
                mine = classes == label
                for part, tensor in zip(parts, (augmented(x), y, augmented(synthetic[mine]), classes[mine]), strict=True):
                    part.append(tensor)
            x, y, x_syn, y_syn = (torch.cat(part) for part in parts)
            with torch.no_grad():
                known = self.compared(network, x)
            return discrepancy(known, y, self.compared(network, x_syn), y_syn, context.num_classes)

        learnt = Learnt({"images": images}, sgd([images], p.lr, p.momentum), lambda step: p.lr, {})
        found = optimised(context, "matching", learnt, loss, p.steps, p.model_dump(mode="json"))
        return Arrays(found["images"].cpu().numpy(), labels.cpu().numpy())


def discrepancy(
    real: list[tuple[float, Tensor]], y: Tensor, synthetic: list[tuple[float, Tensor]], y_syn: Tensor, classes: int
) -> Tensor:
    """sum over tables and classes of  weight * || mean_real - mean_syn ||^2."""
    terms = [
        weight * (class_means(table, y, classes) - class_means(other, y_syn, classes)).square().sum()
        for (weight, table), (_, other) in zip(real, synthetic, strict=True)
    ]
    return torch.stack(terms).sum()


def class_means(table: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, D): the mean of the (B, D) rows of each class; zero of one without rows."""
    member = nn.functional.one_hot(labels, classes).to(table.dtype)
    return member.T @ table / member.sum(0).clamp_min(1).unsqueeze(1)
