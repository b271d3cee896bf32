"""ILA: from where an attack ended, further along its direction in a layer's features.

    1. x' = MI-FGSM(x)
    2. maximize (F(x'') - F(x)) . (F(x') - F(x)) over the ball, from x',   F: the output of a layer in the middle

Features in the middle are more alike from network to network than logits are, and a larger change of them transfers better.

Good for transfer, at ``steps + layer_steps`` gradients. What it gains depends on the layer.

Source: Huang et al.: Enhancing adversarial example transferability with an intermediate level attack (ICCV 2019), algorithm 1 (ILAP, the
variant without a parameter). The layer is the paper's to choose for each network; the default here, the block in the middle, is ours:
on a ResNet-20 it left 25 % of 100 images standing on a ResNet-56, and a convolution inside the block 28 %, since a convolution of a
branch does not see what the shortcut carries. The authors' code begins the second stage at x again and takes sign steps without
momentum; here it goes on from x', by the steps of the first stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import AttackResult, Batch, Target, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import nn, torch
from robustkd.targets.activations import Activations, recorded, submodules

if TYPE_CHECKING:
    from torch import Tensor


class ILAParams(MomentumParams):
    """The layer, and the steps along it."""

    layer: str = Field(
        "", description="the submodule whose output is F, as in layer2; default the block in the middle of the network"
    )
    layer_steps: int = Field(10, ge=0, description="steps of the second stage; 0 is mi-fgsm")


def middle_block(module: nn.Module) -> nn.Module:
    """The block around the middle one of the layers whose weight is a matrix or a kernel, in the order of registration.

    The block is the largest module, other than a list of modules, that has at most a quarter of these layers; in a small network the
    layer itself.

    Raises:
        TargetError: there is no such layer.
    """
    layers = _weighted(module)
    if not layers:
        raise TargetError(
            "ila finds no layer with weights in the model", fix="name a submodule whose output it takes: layer: features"
        )
    middle = layers[(len(layers) - 1) // 2]
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    blocks = (part for part in module.modules() if type(part) not in lists and len(_weighted(part)) <= len(layers) // 4)
    # The outer ones come first.
    return next((block for block in blocks if any(layer is middle for layer in block.modules())), middle)


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if getattr(getattr(layer, "weight", None), "ndim", 0) >= 2]


class ILA(MIFGSM):
    """Intermediate level attack, after MI-FGSM."""

    Params = ILAParams
    version = "2"
    source = "Huang et al. 2019, arXiv:1907.10823"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes ``steps + layer_steps + 3`` forward and ``steps + layer_steps`` backward passes a sample.

        Raises:
            TargetError: the network has no such layer.
        """
        p = self.params
        layer = submodules(target.module, [p.layer])[0] if p.layer else middle_block(target.module)
        objective = for_batch(p.loss, batch)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            start = ball.random_point(rng.fork("start").select(rows)) if p.random_start else ball.centre
            first = maximize(search.oracle, rows, ball, start, objective=objective, update=self.update(threat), steps=p.steps)
            left = ~first.broken
            if not p.layer_steps or not bool(left.any()):
                return first
            with recorded(target.module, [layer]) as output:
                second = self._further(search, rows[left], ball.select(left), first.x[left], threat, output)
            logits = search.oracle.logits(second.x, rows[left])
            first.x[left], first.broken[left] = second.x, second.broken
            first.value[left] = objective(logits, rows[left]).to(first.value.dtype)
            return first

        return fixed_budget(target, batch, threat, attempt)

    def _further(
        self, search: Search, rows: Tensor, ball: Ball, x: Tensor, threat: ThreatModel, output: Activations
    ) -> SearchResult:
        search.oracle.logits(ball.centre, rows)
        clean = _features(output, len(rows))
        search.oracle.logits(x, rows)
        direction = _features(output, len(rows)) - clean
        place = torch.zeros(int(rows.max()) + 1, dtype=torch.int64, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)

        def projection(logits: Tensor, asked: Tensor) -> Tensor:
            at = place[asked]
            # From the output on, so that it is the whole backward pass that it is counted as.
            return ((_features(output, len(asked)) - clean[at]) * direction[at]).sum(1) + 0 * logits.sum(1)

        return maximize(
            search.oracle, rows, ball, x, objective=projection, update=self.update(threat), steps=self.params.layer_steps
        )


def _features(output: Activations, count: int) -> Tensor:
    (layer,) = output.taken(count)
    return layer.flatten(1)
