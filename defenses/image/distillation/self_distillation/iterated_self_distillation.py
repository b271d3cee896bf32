"""Iterated self-distillation: a network teaches a fresh one of its own architecture, that one the next, and so on.

    min_S_0  MSE(p_0(x), onehot(y))
    min_S_r  a * MSE(p_r(x), onehot(y)) + (1 - a) * MSE(p_r(x), p_{r-1}(x)),      r = 1 .. rounds - 1

p_r is the softmax of S_r, and MSE the mean over samples and classes. Without the labels (a = 0) each round regularises more, until
nothing is left; a > 0 keeps the limit useful. The last network is deployed.

Good as regularisation. It costs a training a round; no adversarial example is seen, so none is withstood.

Source: Borup, Andersen: Even your teacher needs guidance: ground-truth targets dampen regularization imposed by self-distillation
(NeurIPS 2021), equation 1 and section 5.
The schedule is ours, that of every other defense here, so that they can be compared: SGD at 0.1 for 200 epochs. The authors' code trains
each round with Adam at 1e-4 for 75 epochs in batches of 16, and adds the norm of the weights, not its square, to the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target
from robustkd.defenses.training import Minibatch, NetworkParams, Recipe, Teacher, fresh_network, frozen_teacher, train
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_BEFORE = "the round before"


class IteratedSelfDistillationParams(NetworkParams):
    epochs: int = Field(200, ge=1, description="passes over the training data, of each round")
    rounds: int = Field(5, ge=1, description="networks trained, one after the other")
    alpha: float = Field(0.6, ge=0, le=1, description="a, weight of the labels; the network of the round before gets the rest")


class IteratedSelfDistillationRecipe(Recipe[ClassifierTarget]):
    """Squared errors from the labels and from the teacher, where there is one."""

    def __init__(self, teacher: Teacher | None, alpha: float) -> None:
        self.teacher, self.alpha = teacher, alpha

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """a MSE(label) + (1 - a) MSE(teacher)."""
        answer = target(batch.x).float().softmax(1)
        hard = F.mse_loss(answer, F.one_hot(batch.y, answer.shape[1]).to(answer.dtype))
        if self.teacher is None:
            return hard, {}
        soft = F.mse_loss(answer, self.teacher.clean(batch).float().softmax(1))
        return self.alpha * hard + (1 - self.alpha) * soft, {"loss_soft": soft}


class IteratedSelfDistillation(Defense):
    """The last of several generations of a network."""

    Params = IteratedSelfDistillationParams
    source = "Borup and Andersen 2021, arXiv:2102.13088"

    def fit(self, context: FitContext) -> Target:
        """Train the rounds; each resumes on its own, and its epoch is chosen by validation accuracy."""
        p = self.params
        network = self._round(context, 0, None)
        for number in range(1, p.rounds):
            with frozen_teacher(replace(context, targets={_BEFORE: network}), _BEFORE, p) as teacher:
                network = self._round(context, number, teacher)
        return network

    def _round(self, context: FitContext, number: int, teacher: Teacher | None) -> ClassifierTarget:
        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            context.log(number * self.params.epochs + epoch, metrics)

        p = self.params
        own = replace(context, checkpoints=context.checkpoints / f"round-{number}", log=log)
        network = fresh_network(context, p.model, p.model_params, role=f"round/{number}")
        return train(own, network, IteratedSelfDistillationRecipe(teacher, p.alpha), p)
