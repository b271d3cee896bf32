"""Defensive distillation: gradients hidden behind large logits. The platform's positive control, not a defense to use.

    teacher:  min  mean CE(softmax(z_T / tau), y)
    student:  min  mean KL(softmax(z_T / tau) || softmax(z_S / tau))
    deployed: argmax z_S, at tau = 1

Both are trained at tau, so the deployed logits are about tau times as large as those of plain training: the softmax is saturated
and the cross entropy's input gradient underflows to exactly zero. Attacks that climb the cross entropy stand still; a margin
loss climbs as on any plain network (Carlini & Wagner 2017). As in the paper, the losses are not multiplied by tau^2: an
optimiser that is not invariant to the loss's scale (sgd) sees gradients 1/tau as large.

Source: Papernot et al.: Distillation as a defense to adversarial perturbations against deep neural networks (S&P 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field, model_validator

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import (
    Minibatch,
    Recipe,
    Teacher,
    TrainParams,
    fresh_copy,
    fresh_network,
    frozen_teacher,
    kl,
    train,
)
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_OWN = "own teacher"


class DefensiveDistillationParams(TrainParams):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "tiny-cnn"}]})

    epochs: int = Field(50, ge=1, description="passes over the training data, of each of the two trainings")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty; it works against the large logits")
    teacher: TargetRef | None = Field(
        None,
        description="another defense to distil as it is, its logits tempered here; default: a teacher is trained first, at the "
        "temperature, as in the paper. Logits only grow if the teacher was trained at a temperature: distilling one that was "
        "trained plainly masks nothing",
    )
    teacher_model: ModelName | None = Field(
        None, description="the architecture of the teacher trained first; default the student's"
    )
    teacher_model_params: ModelParams = Field(default_factory=dict)
    model: ModelName | None = Field(None, description="the student's architecture; default the teacher's")
    model_params: ModelParams = Field(default_factory=dict)
    temperature: float = Field(20.0, gt=0, description="tau in both trainings; the paper goes up to 100")

    @model_validator(mode="after")
    def _something_to_train(self) -> DefensiveDistillationParams:
        if self.model is None and self.teacher is None:
            raise ValueError("name a model to train, or a teacher whose architecture is taken")
        if self.model is None and self.model_params:
            raise ValueError("model_params belong to model, and none is named")
        if self.teacher is not None and (self.teacher_model is not None or self.teacher_model_params):
            raise ValueError("teacher names a trained defense, teacher_model one to train: give one of them")
        if self.teacher_model is None and self.teacher_model_params:
            raise ValueError("teacher_model_params belong to teacher_model, and none is named")
        return self


class TemperedRecipe(Recipe):
    """Cross entropy at a temperature: the teacher's training."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy at temperature tau, CE(softmax(z / tau), y)."""
        return F.cross_entropy(target(batch.x) / self.temperature, batch.y), {}


class DistillationRecipe(Recipe):
    """Divergence from a frozen teacher, both at a temperature: the student's training."""

    def __init__(self, teacher: Teacher, temperature: float) -> None:
        self.teacher, self.temperature = teacher, temperature

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """KL(softmax(z_T / tau) || softmax(z_S / tau)): the paper's cross entropy less the teacher's entropy, a constant."""
        soft, tau = self.teacher.clean(batch), self.temperature
        return kl(soft, target(batch.x), teacher_temperature=tau, student_temperature=tau, reduction="batch"), {}


class DefensiveDistillation(Defense):
    """A student distilled at a high temperature and deployed at 1."""

    Params = DefensiveDistillationParams
    source = "Papernot et al. 2016, arXiv:1511.04508"

    def fit(self, context: FitContext) -> Target:
        """Train the teacher, unless one is named, then the student; each training resumes on its own."""
        p = self.params
        own = replace(context, checkpoints=context.checkpoints / "student")
        named = context if p.teacher is not None else replace(context, targets={_OWN: self._own_teacher(context)})
        with frozen_teacher(named, p.teacher or _OWN, p) as taught:
            assert isinstance(taught.target, ClassifierTarget)  # frozen_teacher gives no other
            student = fresh_copy(context, taught.target) if p.model is None else fresh_network(context, p.model, p.model_params)
            return train(own, student, DistillationRecipe(taught, p.temperature), p)

    def _own_teacher(self, context: FitContext) -> ClassifierTarget:
        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            context.log(epoch, {f"teacher_{name}": value for name, value in metrics.items()})

        p = self.params
        model, params = (p.model, p.model_params) if p.teacher_model is None else (p.teacher_model, p.teacher_model_params)
        network = fresh_network(context, model, params, role="teacher")
        own = replace(context, checkpoints=context.checkpoints / "teacher", log=log)
        return train(own, network, TemperedRecipe(p.temperature), p)
