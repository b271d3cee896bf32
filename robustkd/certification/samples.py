"""Certificates of samples: bounds of the margins of a target, and what a mixed-integer program says where they do not decide."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from robustkd.certification.ball import Ball
from robustkd.certification.margins import Method, margins
from robustkd.certification.mixed_integer.program import maximum
from robustkd.certification.mixed_integer.relu_network import ReluNetwork
from robustkd.certification.network import BoundedNetwork
from robustkd.contracts import AttackError, Batch, Target

_ROUNDING = 1e-5
"""What single precision may make of a logit, relative to the largest one."""


class Certifier:
    """Certifies the samples of one target.

    Args:
        target: a classifier.
        norm: of the ball.
        exact: whether samples are to be solved exactly, too.

    Raises:
        TargetError: a layer has no known bounds.
        AttackError: ``exact``, and the ball is none in linf, or the network not made of affine layers and ReLUs.
    """

    def __init__(self, target: Target, norm: Literal["linf", "l2"], *, exact: bool = False) -> None:
        self._target, self._norm = target, norm
        if exact and norm != "linf":
            raise AttackError(f"exact certificates are for linf, and the ball is one in {norm}", fix="leave 'exact' out")
        self._relus = ReluNetwork(target.module, "an exact certificate") if exact else None
        module = copy.deepcopy(target.module).eval().requires_grad_(False)
        first = next(module.parameters(), None)
        on_cuda = first is not None and first.device.type == "cuda"  # other devices may lack double precision
        self._device = first.device if first is not None and on_cuda else torch.device("cpu")
        self._network = BoundedNetwork(module.to(self._device).double())

    def _ball(self, inputs: Tensor, eps: Tensor) -> Ball:
        low, high = (
            bound.to(self._device).double() if isinstance(bound, torch.Tensor) else bound for bound in self._target.bounds
        )
        ball = Ball.linf if self._norm == "linf" else Ball.l2
        return ball(inputs.to(self._device).double(), eps.to(self._device).double(), low, high)

    @torch.no_grad()
    def robust(self, batch: Batch, eps: Tensor, method: Method) -> Tensor:
        """(B,) bool: what the attacker wants is proved to be out of reach. ``eps`` is (B,)."""
        found = margins(self._network, self._ball(batch.inputs, eps), batch.labels.to(self._device), method)
        return (found > self._slack(batch)).where(self._wanted(batch), True).all(1)

    def _wanted(self, batch: Batch) -> Tensor:
        """(B, K) bool: the classes that the attacker would reach."""
        classes = torch.arange(self._target.num_classes, device=self._device)
        if batch.goals is not None:
            return classes == batch.goals.to(self._device).unsqueeze(1)
        return classes != batch.labels.to(self._device).unsqueeze(1)

    def _slack(self, batch: Batch) -> Tensor:
        """(B, 1) what a margin has to exceed, for what rounding does to logits."""
        with torch.no_grad():
            logits = self._target(batch.inputs) if batch.logits is None else batch.logits
        return _ROUNDING * (1 + logits.abs().amax(1, keepdim=True)).to(self._device).double()

    def exactly(self, batch: Batch, eps: Tensor, seconds: float) -> tuple[bool, bool]:
        """Whether the one sample of a batch is proved to be robust, and whether a perturbation was found that breaks it.

        The first wrong class that the solver leaves open ends the search: the sample stays open, too.

        Raises:
            AttackError: the network is too large.
        """
        assert self._relus is not None  # a certifier that is made for it
        ball, label, slack = self._ball(batch.inputs, eps), int(batch.labels), float(self._slack(batch))
        found = margins(self._network, ball, batch.labels.to(self._device), "crown-ibp")[0]
        piece = self._relus.near(batch.inputs[0], ball.box.low[0], ball.box.high[0], free=_ALL)
        left = (self._wanted(batch)[0] & (found <= slack)).nonzero().squeeze(1)
        for wrong in left[found[left].argsort()].tolist():  # the nearest first
            solution = maximum(piece, piece.outputs[wrong] - piece.outputs[label], seconds)
            if solution.pixels is not None and self._breaks(batch, ball, solution.pixels):
                return False, True
            if solution.bound >= -slack:
                return False, False
        return True, False

    def _breaks(self, batch: Batch, ball: Ball, pixels: Tensor) -> bool:
        """Whether the target itself is wrong at a point of the ball, which is rounded into it."""
        x = batch.inputs
        point = pixels.to(x).view_as(x).clamp(ball.box.low.to(x), ball.box.high.to(x))
        with torch.no_grad():
            return bool(batch.reached(self._target(point).argmax(1)))


_ALL = 2**31
"""More ReLUs than any network has: none keeps a side."""
