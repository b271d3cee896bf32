"""Experts: networks that are trained on the real data, with their weights after each epoch. They are what synthetic images are to imitate.

    theta_0 .. theta_E  of each expert:   theta <- theta - lr * direction,   direction = grad loss(theta; minibatch)

What differs between methods is the loss (clean, or at adversarial examples), the direction (with ``rho``, that of GSAM), what a step may
change at most, and whether an average of the weights is kept in their place.

    GSAM:  e = rho * w^2 g / || |w| g ||  (adaptive SAM),   g_p = grad loss(theta + e),   direction = g_p - alpha * (g - its part along g_p)

Source of GSAM: Zhuang et al.: Surrogate gap minimization improves sharpness-aware training (ICLR 2022), arXiv:2203.08065, algorithm 1; of
the adaptive radius: Kwon et al.: ASAM (ICML 2021), arXiv:2102.11600, equation 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field

from robustkd.contracts import Arrays, FitContext, Params, UsageError
from robustkd.defenses.training.batches import Minibatch, Samples, epoch_order
from robustkd.defenses.training.checkpoint import Checkpoint, Snapshot
from robustkd.defenses.training.data_parallel import World
from robustkd.defenses.training.networks import fresh_network
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.training import sgd, training_step

if TYPE_CHECKING:
    from torch import Tensor

ExpertLoss: TypeAlias = "Callable[[ClassifierTarget, Minibatch], Tensor]"


class ExpertParams(Params):
    """How the experts are trained."""

    count: int = Field(100, ge=1, description="experts, each from another initialisation")
    epochs: int = Field(50, ge=1, description="epochs of each, after each of which its weights are kept")
    lr: float = Field(0.01, gt=0, description="learning rate (SGD)")
    momentum: float = Field(0.0, ge=0, lt=1, description="of SGD")
    batch_size: int = Field(256, ge=1, description="images in each step")
    rho: float = Field(0.0, ge=0, description="radius of GSAM, which flattens the trajectory; 0 for plain SGD")
    alpha: float = Field(0.4, ge=0, description="of GSAM: how much of the gradient across the perturbed one is taken off")
    clip: float | None = Field(
        None, gt=0, description="the longest step of all weights together; longer ones are shortened to it"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="keep a moving average of the weights with this decay in their place"
    )


def clean_loss(target: ClassifierTarget, batch: Minibatch) -> Tensor:
    """The cross entropy on the images."""
    return F.cross_entropy(target(batch.x), batch.y)


@dataclass(frozen=True)
class Flat:
    """A network whose weights are one vector.

    Attributes:
        target: the network; its own weights are not looked at.
    """

    target: ClassifierTarget

    def __post_init__(self) -> None:
        if names := [name for name, _ in self.target.module.named_buffers() if "running" in name]:
            raise UsageError(
                f"trajectories are of weights alone, and the network has statistics of its data ({names[0]})",
                fix="name a model without BatchNorm, such as convnet (norm: instance) or tiny-cnn",
            )

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """(P,) weights and (B, C, H, W) images -> (B, K) logits, differentiable twice in both."""
        parameters = list(self.target.module.named_parameters())
        parts = theta.split([weight.numel() for _, weight in parameters])
        weights = {name: part.view_as(weight) for (name, weight), part in zip(parameters, parts, strict=True)}
        logits: Tensor = torch.func.functional_call(self.target.module, weights, (x,))
        return logits


def flat_weights(target: ClassifierTarget) -> Tensor:
    """(P,) the network's weights now."""
    return torch.cat([weight.detach().flatten() for weight in target.module.parameters()])


def trajectories(
    context: FitContext[Arrays],
    build: Callable[[str], ClassifierTarget],
    settings: ExpertParams,
    loss: ExpertLoss = clean_loss,
    course: str = "clean",
) -> list[Tensor]:
    """(epochs + 1, P) of each expert: the weights before the first epoch and after each. Finished experts are kept in the checkpoints.

    All of them together lie in the host's memory: 6.5 GB for 100 experts of 50 epochs of a ``convnet`` of 0.3 million weights.

    Args:
        build: a freshly initialised network of a role, on the device.
        loss: what is minimised.
        course: what tells this loss from others.
    """
    found = []
    for number in range(settings.count):
        facts = [settings.model_dump(mode="json"), course, context.seed, context.train.digest(), number]
        identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        checkpoint = Checkpoint(context.checkpoints / f"expert-{number}", identity)
        saved = checkpoint.read()
        if saved is None:
            path, last = _trained(context, build(f"expert/{number}"), settings, loss, number)
            if World.here().is_main_process:
                checkpoint.write(Snapshot({"path": path}, {"loss": last}))
        else:
            path, last = saved.tensors["path"], float(saved.facts["loss"])
        context.log(number, {"expert_loss": last})
        found.append(path)
    return found


def expert_builder(context: FitContext[Arrays], model: str, params: dict[str, object]) -> Callable[[str], ClassifierTarget]:
    """What makes a freshly initialised network of a role, on the context's device."""
    return lambda role: fresh_network(context, model, params, role=role).to(context.device)


def _trained(
    context: FitContext[Arrays], target: ClassifierTarget, settings: ExpertParams, loss: ExpertLoss, number: int
) -> tuple[Tensor, float]:
    samples, weights = Samples(context.train, context.device), list(target.module.parameters())
    optimiser, seed = sgd(weights, settings.lr, settings.momentum), derived_seed(context.seed, f"expert/{number}")
    average = [weight.detach().clone() for weight in weights]
    path, mean = [flat_weights(target)], 0.0
    target.module.train()
    for epoch in range(settings.epochs):
        batches = epoch_order(len(samples), settings.batch_size, seed, epoch)
        mean = 0.0
        for rows in batches:
            x, y = samples.take(rows)
            batch = Minibatch(x, y, rows.to(context.device), seed, epoch)

            def backward(batch: Minibatch = batch) -> float:
                value, gradients = direction(target, batch, loss, settings.rho, settings.alpha)
                if settings.clip is not None:
                    length = torch.stack([gradient.norm() for gradient in gradients]).norm() * settings.lr
                    gradients = [gradient * (settings.clip / length).clamp_max(1) for gradient in gradients]
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.grad = gradient
                return value

            mean += training_step(optimiser, settings.lr, backward) / len(batches)
            if settings.ema is not None:
                for kept, weight in zip(average, weights, strict=True):
                    kept.lerp_(weight.detach(), 1 - settings.ema)
        path.append(flat_weights(target) if settings.ema is None else torch.cat([kept.flatten() for kept in average]))
    return torch.stack(path).cpu(), mean


def direction(
    target: ClassifierTarget, batch: Minibatch, loss: ExpertLoss, rho: float, alpha: float
) -> tuple[float, list[Tensor]]:
    """The loss, and for each weight the gradient, with ``rho`` above 0 that of GSAM."""
    weights = list(target.module.parameters())
    value = loss(target, batch)
    plain = list(torch.autograd.grad(value, weights))
    if rho == 0:
        return value.item(), plain
    size = torch.stack([(weight.detach().abs() * g).norm() for weight, g in zip(weights, plain, strict=True)]).norm()
    moves = [rho * weight.detach().square() * g / size.clamp_min(1e-12) for weight, g in zip(weights, plain, strict=True)]
    _add(weights, moves, 1)
    perturbed = list(torch.autograd.grad(loss(target, batch), weights))
    _add(weights, moves, -1)
    inner = sum(float((g * p).sum()) for g, p in zip(plain, perturbed, strict=True))
    square = sum(float(p.square().sum()) for p in perturbed)
    along = inner / max(square, 1e-20)
    return value.item(), [p - alpha * (g - along * p) for g, p in zip(plain, perturbed, strict=True)]


def _add(weights: list[torch.nn.Parameter], moves: list[Tensor], sign: int) -> None:
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move, alpha=sign)
