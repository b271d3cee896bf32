"""The target as an attack sees it: frozen (``frozen``), and with every pass counted (``Oracle``)."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeAlias

from typing_extensions import override

from robustkd.attacks.image.engine.cuda_graphs import Pass
from robustkd.contracts import AttackError, Batch, Target, TargetError
from robustkd.contracts.image_changes import TransformBudget
from robustkd.contracts.target import Precision
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.failure import model_errors_explained
from robustkd.targets.passes import PassCounter
from robustkd.targets.rejection import class_logits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Objective",
    "ObjectiveWithGradient",
    "OfRows",
    "Oracle",
    "TransformOracle",
    "finite",
    "finite_or_zero",
    "frozen",
    "gradient_of",
]

Objective: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(B, K) logits and the (B,) rows they belong to -> (B,) values to maximize."""


class ObjectiveWithGradient(ABC):
    """An objective that knows its gradient with respect to the logits: no graph of it is needed."""

    @abstractmethod
    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A, K) logits and their (A,) rows -> (A,) values."""

    @abstractmethod
    def value_and_grad(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(A, K) logits without a graph and their (A,) rows -> (A,) values and their (A, K) gradients."""

    @abstractmethod
    def gradient(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The gradients that ``value_and_grad`` returns, in fewer kernels."""


class OfRows:
    """One value of each sample of a batch, looked up by rows.

    Most passes are about the same tensor of rows as the pass before, so the last answer is kept; the tensor must not be changed
    in place.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """(A,) rows -> (A,) values."""
        if self._last is None or self._last[0] is not rows:
            self._last = rows, self._values[rows]
        return self._last[1]


class Oracle:
    """The target of an attack, with the passes of each sample of a batch counted.

    Rows name samples by their position in the batch, so that counts and criteria stay right however few samples are
    still being attacked.

    Args:
        target: to be used inside ``frozen(target.module)``.
        batch: the samples; with ``goals``, an adversarial sample is one that reaches its goal.
        precision: of the passes that ``value_and_grad`` makes. With less than the target's own, a point that is adversarial is looked at
            once more in that: rounding is no success.
        outputs: what computes the target's outputs where gradients are taken; the target by default.
    """

    def __init__(self, target: Target, batch: Batch, precision: Precision = "full", outputs: Pass | None = None) -> None:
        self.target = target
        self.precision = precision
        self.labels = batch.labels
        self.goals = batch.goals
        self._wanted = OfRows(batch.labels if batch.goals is None else batch.goals)
        self.passes = PassCounter(len(batch), batch.inputs.device)
        self.outputs = target if outputs is None else outputs

    @property
    def forwards(self) -> Tensor:
        """(B,) forward passes of each sample; to be added to in place."""
        return self.passes.forwards

    @property
    def backwards(self) -> Tensor:
        """(B,) backward passes of each sample; to be added to in place."""
        return self.passes.backwards

    def classes(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """(A, K) ``class_logits`` of the (A, K) outputs of these rows, or of K + 1 where the target rejects inputs."""
        return class_logits(self.target, outputs, self.labels[rows]) if self.target.rejects else outputs

    def outputs_at(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, K) the target's ``classes`` at images, with a graph where they have one; the caller counts the pass."""
        return self.classes(self.target(x), rows)

    def images(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, *shape) what the target is shown at the points ``x`` of the search: the points themselves."""
        return x

    def answers(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, K) the target's outputs as they are, without a graph."""
        with torch.no_grad():
            outputs = self.target(self.images(x, rows))
        self.passes.spend(rows, forwards=1)
        return finite(outputs, x)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, K) ``classes`` without a graph."""
        return self.classes(self.answers(x, rows), rows)

    def value_and_grad(self, x: Tensor, rows: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, values of ``objective`` and its gradient at ``x``: one forward and one backward pass, inputs only.

        Raises:
            TargetError: the output is NaN, or does not depend differentiably on the input, or the model raised.
        """
        x = x.detach().requires_grad_()
        reduced = self.precision != "full"
        with torch.enable_grad():
            # Full is what the caller computes in: training has an autocast of its own.
            with torch.autocast(x.device.type, torch.bfloat16) if reduced else nullcontext():
                outputs = self.classes(self.outputs(self.images(x, rows)), rows)
            logits = finite(outputs.detach(), x)
            if isinstance(objective, ObjectiveWithGradient):
                values, slope = objective.value_and_grad(logits, rows)
                gradient = gradient_of(outputs, x, slope)
            else:
                values = objective(outputs, rows)
                gradient = gradient_of(values.sum(), x)
        self.passes.spend(rows, forwards=1, backwards=1)
        if reduced:
            broken = self.is_adversarial(logits, rows)
            if bool(broken.any()):
                logits[broken] = self.logits(x[broken].detach(), rows[broken])
        return logits, values.detach(), gradient

    def logits_and_grad(self, x: Tensor, rows: Tensor, objective: ObjectiveWithGradient) -> tuple[Tensor, Tensor]:
        """The same pass for a caller that wants the values of ``objective`` later, of several passes at once. It sees to it then that the
        logits are ``finite``. In full precision only.

        Raises:
            TargetError: the output does not depend differentiably on the input, or the model raised.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.classes(self.outputs(self.images(x, rows)), rows)
        logits = outputs.detach()
        gradient = gradient_of(outputs, x, objective.gradient(logits, rows))
        self.passes.spend(rows, forwards=1, backwards=1)
        return logits, gradient

    def is_adversarial(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B,) bool: the goal class is predicted, or, without goals, another class than the label. Never so on a target that is
        ``never_adversarial``, such as a surrogate: there an attack is to go on.
        """
        if self.target.never_adversarial:
            return torch.zeros_like(rows, dtype=torch.bool)
        predicted, wanted = logits.argmax(1), self._wanted(rows)
        return predicted != wanted if self.goals is None else predicted == wanted

    def adversarial_among(self, logits: Tensor, rows: Tensor) -> Tensor | None:
        """What ``is_adversarial`` returns, or None if no sample is: in most steps of most attacks none is, which takes a kernel to know."""
        if self.target.never_adversarial:
            return None
        predicted, wanted = logits.argmax(1), self._wanted(rows)
        if self.goals is None:
            return None if torch.equal(predicted, wanted) else predicted != wanted
        reached = predicted == wanted
        return reached if bool(reached.any()) else None


class TransformOracle(Oracle):
    """An oracle of a search for the parameters of transforms: the target is shown the images that they make."""

    def __init__(self, target: Target, batch: Batch, budget: TransformBudget, precision: Precision = "full") -> None:
        super().__init__(target, batch, precision)
        self._clean, self._budget = batch.inputs, budget

    @override
    def images(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, C, H, W) the clean images of ``rows``, transformed by the parameters ``x``."""
        return self._budget.rendered(self._clean[rows], x)


def gradient_of(values: Tensor, x: Tensor, upstream: Tensor | None = None, *, again: bool = False) -> Tensor:
    """The gradient of ``values`` at ``x``, 0 in entries that are NaN or infinite. Every attack takes its gradients here.

    A square root at 0 has no finite slope, though the network's answer there is right. Such a pixel stays where it is; the others
    of the image, and the other samples of the batch, are not touched by it.

    Args:
        values: a scalar, or as many numbers as ``upstream`` has.
        x: what to differentiate with respect to.
        upstream: weights of ``values``, of the same shape.
        again: keep the graph for another backward pass.

    Raises:
        TargetError: the values do not depend differentiably on ``x``, or the backward pass raised.
    """
    gradient: Tensor | None
    if values.requires_grad:
        with model_errors_explained(x):
            if upstream is None:
                (gradient,) = torch.autograd.grad(values, x, retain_graph=again or None, allow_unused=True)
            else:
                (gradient,) = _weighted_gradient()(values, x, upstream, again)
        if gradient is not None:
            return finite_or_zero(gradient)
    # Also where an operation is in the graph that has no backward pass, as those of int8 networks.
    raise TargetError(
        "the model's output has no gradient with respect to its input",
        fix="use a black-box attack, or give the non-differentiable stage a backward pass (BPDA)",
    )


@functools.cache
def _weighted_gradient() -> Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor | None, ...]]:
    """``torch.autograd.grad`` with ``grad_outputs``, but for its comparison of shapes, for which torch imports sympy: .4 s in each process.

    So the engine is called as ``grad`` does it. A torch that has another engine gets a sum of products, which takes five kernels more.
    """

    def by_engine(values: Tensor, x: Tensor, upstream: Tensor, again: bool) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] = torch.autograd.graph._engine_run_backward(
            (values,), (upstream,), again, False, (x,), True, accumulate_grad=False
        )
        return found

    def by_sum(values: Tensor, x: Tensor, upstream: Tensor, again: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad((values * upstream).sum(), x, retain_graph=again or None, allow_unused=True)

    one = torch.ones(1, requires_grad=True)
    try:
        with torch.enable_grad():
            works = by_engine(one * 2, one, torch.ones(1), False) == (2,)
    except (AttributeError, TypeError, RuntimeError):
        works = False
    return by_engine if works else by_sum


def finite_or_zero(gradient: Tensor) -> Tensor:
    """The gradient with 0 in entries that are NaN or infinite."""
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def finite(logits: Tensor, x: Tensor) -> Tensor:
    """``logits``, unchanged, once they are known to be finite.

    Raises:
        TargetError: some are NaN or infinite.
        AttackError: some are, and so are pixels of ``x``.
    """
    # The sum is NaN or infinite where one of them is: one kernel, where `isfinite` of each takes five. So it may be of large ones.
    if not math.isfinite(logits.detach().sum().item()) and not (valid := torch.isfinite(logits.detach())).all():
        valid_input = torch.isfinite(x.detach()).flatten(1).all(1)
        if not valid_input.all():
            raise AttackError(
                f"the attack asked about NaN or infinite pixels in {int((~valid_input).sum())} of {len(x)} images",
                fix="this is a bug of the attack: its step divides by 0 or overflows",
            )
        raise TargetError(
            f"the model returned NaN or infinite logits for {int((~valid.all(1)).sum())} of {len(logits)} samples",
            fix="a NaN is not a success: repair the model (overflow in half precision, log of 0, division by 0)",
        )
    return logits
