"""SLA+SD: self-supervised label augmentation with self-distillation. Four rotations are told apart, and their joint answer is learnt.

    min_w  1/4 sum_j CE( joint(R_j x), (y, j) )  +  tau^2 * KL( sg(agg) || single(x); tau )  +  beta * CE( single(x), y )

    agg(x)_c = 1/4 sum_j joint(R_j x)_(c, j)

joint has a class for each label and rotation, R_j turns by j quarters, and both heads stand on the same features: they are the K +
4 K outputs of one network's last layer. The first K are deployed.

Good for accuracy on few images. It assumes that a rotated image can be told from an upright one, which is untrue of some
data. No adversarial example is seen, so none is withstood.

Source: Lee, Hwang, Shin: Self-supervised label augmentation via input transformations (ICML 2020), equations 3, 5 and 6.
The weight decay of 5e-4 is ours, that of every other defense here; the authors' code has 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from robustkd import plugins
from robustkd.contracts import Defense, FitContext, Target, UsageError
from robustkd.contracts.params import AddedLater
from robustkd.defenses.training import Minibatch, NetworkParams, Recipe, fresh_network, kl, train
from robustkd.defenses.training.stages import Stage, probe, run_stages
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

TURNS = 4


class SLASDParams(NetworkParams):
    """Parameters of ``sla-sd``. The paper trains on CIFAR with ``augment: crop-flip``."""

    temperature: float = Field(1.0, gt=0, description="tau, of both answers in the divergence")
    beta: float = Field(1.0, ge=0, description="weight of the single head's cross entropy")
    probe_epochs: Annotated[int, AddedLater()] = Field(
        0, ge=0, description="passes in which the single head is fitted again, on features that stay as they are; 0: it is not"
    )


class FirstOutputs(nn.Module):
    """A network of which only the first outputs are asked."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.count = network, count

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, count)."""
        logits: Tensor = self.network(images)[:, : self.count]
        return logits


def build(model: str, params: Mapping[str, Any], input_shape: Sequence[int], num_classes: int) -> FirstOutputs:
    """A fresh network with both heads: how a saved one is built again."""
    plugin = plugins.load("models", model)
    return FirstOutputs(plugin(plugin.Params(**params)).build(tuple(input_shape), (1 + TURNS) * num_classes), num_classes)


def turned(x: Tensor) -> Tensor:
    """(4 B, C, H, W): the images, then all by a quarter, and so on."""
    return torch.cat([torch.rot90(x, quarters, (2, 3)) for quarters in range(TURNS)])


def aggregated(joint: Tensor) -> Tensor:
    """(B, K) agg, of (4, B, K, 4) joint logits: turn of the image, sample, class, turn that is claimed."""
    return torch.stack([joint[turn, :, :, turn] for turn in range(TURNS)]).mean(0)


class SLASDRecipe(Recipe[ClassifierTarget]):
    """Joint cross entropy, divergence of the single head from the aggregated answer, cross entropy."""

    def __init__(self, params: SLASDParams) -> None:
        self.params = params

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(joint) + tau^2 KL(agg || single) + beta CE(single)."""
        p, count, classes = self.params, len(batch.x), target.num_classes
        single, joint = target.module.network(turned(batch.x)).float().split([classes, TURNS * classes], 1)
        single = single[:count]
        truth = torch.cat([TURNS * batch.y + turn for turn in range(TURNS)])
        loss_joint = F.cross_entropy(joint, truth)
        taught = aggregated(joint.detach().view(TURNS, count, classes, TURNS))
        tau = p.temperature
        loss_single = kl(taught, single, teacher_temperature=tau, student_temperature=tau, reduction="batch")
        loss = loss_joint + tau**2 * loss_single + p.beta * F.cross_entropy(single, batch.y)
        return loss, {"loss_joint": loss_joint, "loss_single": loss_single}


class SLASD(Defense):
    """A network that learns its own answer to an image seen from four sides."""

    Params = SLASDParams
    source = "Lee et al. 2020, arXiv:1910.05872"

    def fit(self, context: FitContext) -> Target:
        """Train; the epoch is chosen by validation accuracy of the first K outputs.

        Raises:
            UsageError: the images are not square, so that a turned one has another shape.
        """
        p, shape = self.params, tuple(context.input_shape)
        if shape[1] != shape[2]:
            raise UsageError(f"sla-sd turns images by a quarter, these are {shape[1]} x {shape[2]}", fix="use square images")
        network = fresh_network(replace(context, num_classes=(1 + TURNS) * context.num_classes), p.model, p.model_params)
        assert network.origin is not None  # a model plug-in's
        kwargs = {**network.origin, "input_shape": list(shape), "num_classes": context.num_classes}
        target = ClassifierTarget(
            FirstOutputs(network.module, context.num_classes),
            num_classes=context.num_classes,
            input_shape=shape,
            origin={"code": "robustkd.defenses.image.sla_sd:build", "kwargs": kwargs},
            bounds=network.bounds,
        )
        if not p.probe_epochs:
            return train(context, target, SLASDRecipe(p), p)
        brief = p.model_copy(update={"epochs": p.probe_epochs, "milestones": None})
        run_stages(context, [Stage("joint", target, SLASDRecipe(p), p), probe(target, brief)])
        return target
