"""Adversarial weight perturbation: the loss is minimised at the worst weights nearby, which flattens it.

    v_l   = gamma * ||w_l|| * g_l / ||g_l||,   g = grad_w L(w; x~)        one step, each layer at its own scale
    w    <- w - lr * grad L(w + v; x~)

Biases and normalisation's scales are left alone (``dim() <= 1``), as the authors do. Nothing is ever written into the weights:
the perturbed network is w + v inside the graph, so that its gradient is the gradient with respect to w.

Source: Wu, Xia, Wang: Adversarial weight perturbation helps robust generalization (NeurIPS 2020), section 4 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Params
from robustkd.defenses.training.batches import AllReduce, no_reduce
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class AWPParams(Params):
    gamma: float = Field(0.01, gt=0, description="size of v_l relative to w_l; the paper's 0.01 for AT and 0.005 for TRADES")
    warmup: int = Field(0, ge=0, description="epochs at the start without it")


def perturbed(
    target: ClassifierTarget, loss: Callable[[ClassifierTarget], Tensor], gamma: float, all_reduce: AllReduce = no_reduce
) -> ClassifierTarget:
    """The target at its worst weights nearby: one more forward and backward pass.

    Args:
        target: in train mode.
        loss: what is maximised, a scalar; its pass is not noted in BatchNorm's statistics.
        gamma: see ``AWPParams``.
        all_reduce: the minibatch's.
    """
    module = target.module
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    weights = {name: w for name, w in module.named_parameters() if w.requires_grad and w.dim() > 1}
    gradients = torch.autograd.grad(loss(_at(target, buffers)), list(weights.values()))
    all_reduce(gradients)
    moved = {
        name: w + gamma * w.detach().norm() * g / g.norm().clamp_min(1e-20)
        for (name, w), g in zip(weights.items(), gradients, strict=True)
    }
    return _at(target, moved)


def _at(target: ClassifierTarget, tensors: Mapping[str, Tensor]) -> ClassifierTarget:
    from robustkd.defenses.training.modules import Replaced  # late: it imports torch

    return ClassifierTarget(
        Replaced(target.module, tensors), num_classes=target.num_classes, input_shape=target.input_shape, bounds=target.bounds
    )
