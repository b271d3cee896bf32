"""A universal patch: one for all images, learnt on training images at random places.

    max_p  mean_i E_u [ min( J(f(x_i with p at u), y_i), c ) ],     p in the pixel range
    p_{t+1} = clip( p_t + size_t * sign( sum over a minibatch, each image with a place of its own, of grad_p min(J, c) ) )

Good for an attacker who prints a patch and cannot compute at attack time. Where the place is his, a few are tried on each sample.
``epochs: 0`` leaves the random patch that it starts from: the control.

Source: Brown, Mane, Roy, Abadi, Gilmer: Adversarial patch (2017), arXiv:1712.09665. Theirs is targeted, and also rotated and scaled; the
ceiling c is that of ``universal`` (Shafahi et al. 2020), and the sign and the falling step size are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.fitting import capped, epochs, training_batch
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.attacks.image.patch.placement import PatchAttack, pasted, random_content, random_places, sides_of
from robustkd.contracts import Arrays, AttackResult, Batch, Params, Target, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Patch
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


PatchGradient: TypeAlias = "Callable[[Ball, Tensor, Tensor, Tensor], Tensor]"
"""``gradient(near, rows, content, places)``: (1, C, h, w), the direction that is better for the attacker, from the balls of the samples
at ``rows``, the (1, C, h, w) content, and the (B, 2) places where it is pasted."""


class UniversalPatchParams(Params):
    """How many images the patch is fitted to, the steps and the loss, and how many places are tried."""

    samples: int = Field(1000, ge=1, description="training images that it is fitted to, at most")
    epochs: int = Field(20, ge=0, description="passes over them; with 0 the patch is random, the control")
    batch_size: int = Field(100, ge=1, description="images in each step")
    step_size: float = Field(0.1, gt=0, description="of the first step, in pixel units")
    loss: Literal["ce", "margin"] = Field("ce", description="the loss to maximize: cross entropy, or logit margin")
    ceiling: float | None = Field(9.0, gt=0, description="the loss of a sample counts up to here; null for no ceiling")
    places: int = Field(5, ge=1, description="random places that are tried on each sample, where the place is the attacker's")


class UniversalPatch(ChosenLoss, PatchAttack):
    """One patch for all images, found on training images.

    The counts are those of using it: one forward pass a place (and one for the clean image). Fitting takes ``epochs`` forward and
    backward passes on each of the training images, which belong to none of the attacked samples.
    """

    Params: ClassVar[type[Params]] = UniversalPatchParams
    learns = True
    source = "Brown et al. 2017, arXiv:1712.09665"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.content: Tensor | None = None

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds the patch, (C, h, w), found on ``data``."""
        p = self.params
        batch, rng = training_batch(data, p.samples, rng)
        images = batch.inputs
        if isinstance(threat.where, Patch) and isinstance(threat.where.place, tuple):
            batch = batch.placed(threat, rng.seed)
        uphill = self.uphill(target, batch)
        ball = Ball.around(images, threat.eps, threat.norm, target.bounds, batch.movable)
        sides = sides_of(threat, images.shape[1:])
        one = SampleRng(rng.seed, rng.index.new_zeros(1), f"{rng.stream}/content")
        content = random_content(images[:1], sides, target.bounds, one)
        low, high = (torch.as_tensor(bound).flatten()[0].to(content) for bound in target.bounds)

        steps = epochs(p.epochs, p.batch_size, rng)
        with frozen(target.module):
            for t, rows in enumerate(steps):
                near = ball.select(rows)
                places = random_places(near, sides, rng.fork(f"place/{t}").select(rows))
                gradient = uphill(near, rows, content, places)
                content = (content + p.step_size * (1 - t / len(steps)) * gradient.sign()).clamp(low, high)
        fitted = copy(self)
        fitted.content = content[0]
        return fitted

    def uphill(self, target: Target, batch: Batch) -> PatchGradient:
        """What the content is moved along, on the samples of ``batch``."""
        oracle, objective = Oracle(target, batch), capped(for_batch(self.params.loss, batch), self.params.ceiling)

        def gradient(near: Ball, rows: Tensor, content: Tensor, places: Tensor) -> Tensor:
            x = pasted(near.centre, content.expand(len(rows), -1, -1, -1), places)
            inside = near.project(x)
            _, _, gradient = oracle.value_and_grad(inside, rows, objective)
            gradient = gradient * (inside == x)  # where eps cuts a pixel, moving on changes nothing
            return cut_out(gradient, places, (content.shape[2], content.shape[3])).sum(0, keepdim=True)

        return gradient

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``1 + places`` forward passes a sample, no backward pass.

        Raises:
            UsageError: it was not fitted.
        """
        if self.content is None:
            raise UsageError("a universal patch must be fitted before it is used", fix="call fit, and run what it returns")
        content, objective = self.content.to(batch.inputs), for_batch("margin", batch)
        sides = (content.shape[1], content.shape[2])

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            places = random_places(ball, sides, rng.fork(number).select(rows))
            x = ball.project(pasted(ball.centre, content.expand(len(rows), -1, -1, -1), places))
            logits = search.oracle.logits(x, rows)
            return SearchResult(x, objective(logits, rows).to(x.dtype), search.oracle.is_adversarial(logits, rows))

        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            for number in range(1 if search.ball.movable is not None else self.params.places):
                search.attempt(attempt, number)
            return search.result()


def cut_out(images: Tensor, places: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w), what lies at the places."""
    down, right = (places[:, axis : axis + 1] + torch.arange(side, device=images.device) for axis, side in enumerate(sides))
    each = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[each, down.unsqueeze(2), right.unsqueeze(1)].permute(0, 3, 1, 2)
