"""Random teachers: a network learns from a frozen copy of itself as it was initialised, and still learns features.

    min_S    KL( softmax(g_T(f_T(x)) / tau_T)  ||  softmax(g_S(f_S(x)) / tau_S) )          no label
    min_head CE( head(sg(f_S(x))), y )                                                     the probe

f is what the last linear layer is given, g a projection (two hidden layers, a bottleneck of unit length, many outputs), T the network
and projection before the first step: S starts at (1 - a) T + a * a fresh network. The labels reach the last linear layer only: what
is deployed is a linear probe on features that have seen none.

Good to see what of distillation needs no knowledge. Its accuracy is that of a linear probe, well below supervised training,
and no adversarial example is seen.

Source: Sarnthein et al.: Random teachers are good teachers (ICML 2023), section 3; temperatures and weight decay of the authors' runs on
CIFAR-10 (``configs/cifar10_distillation_v2.json``), where the projection is wider: 2,048 hidden units twice, a bottleneck of 256, 65,536
outputs. The paper probes after the training; here the probe is trained along, unless ``probe_epochs`` says otherwise. The control is the
same with ``lr: 1e-8``: a probe on the network as it was initialised (``random-features`` in the preset ``distilled-students-small``). On
Fashion-MNIST with a small network, 500 images cannot tell the two apart (docs/reproductions.md).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target
from robustkd.contracts.params import AddedLater
from robustkd.defenses.training import Minibatch, NetworkParams, Recipe, fresh_network, kl, train
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork, with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.params import OptimiserParam, ScheduleParam, WeightDecayParam
from robustkd.defenses.training.stages import Stage, probe, run_stages
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class RandomTeacherParams(NetworkParams):
    optimiser: OptimiserParam = "adamw"
    weight_decay: WeightDecayParam = 0.0
    schedule: ScheduleParam = "constant"
    teacher_temperature: float = Field(1.0, gt=0, description="tau_T")
    student_temperature: float = Field(1.0, gt=0, description="tau_S")
    probe_lr: float = Field(0.03, gt=0, description="learning rate of the probe (Adam)")
    probe_epochs: Annotated[int, AddedLater()] = Field(
        0,
        ge=0,
        description="passes in which the probe is fitted once the features are learnt; 0: it is trained along with them",
    )
    distance: float = Field(0.0, ge=0, le=1, description="a, how far from its teacher the student starts")
    hidden: int = Field(256, ge=1, description="hidden units of the projection")
    bottleneck: int = Field(64, ge=1, description="length of the unit vectors in it")
    outputs: int = Field(1024, ge=2, description="its outputs")

    def with_probe(self) -> RandomTeacherParams:
        """The same for the probe behind the features."""
        changes = {"epochs": self.probe_epochs, "lr": self.probe_lr, "optimiser": "adam", "milestones": None}
        return self.model_copy(update=changes)


class Projection(nn.Module):
    """g: (B, D) features to cosines with ``outputs`` random directions."""

    def __init__(self, features: int, params: RandomTeacherParams) -> None:
        super().__init__()
        hidden = params.hidden
        self.body = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, params.bottleneck)
        )
        self.directions = nn.Linear(params.bottleneck, params.outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Project (B, D) features to (B, outputs)."""
        return F.linear(F.normalize(self.body(features), dim=1), F.normalize(self.directions.weight, dim=1))


def between(module: nn.Module, other: nn.Module, share: float) -> None:
    """Move the weights of ``module`` by ``share`` of the way to those of ``other``."""
    with torch.no_grad():
        for weight, end in zip(module.parameters(), other.parameters(), strict=True):
            weight.lerp_(end.to(weight.device), share)


class RandomTeacherRecipe(Recipe[ClassifierTarget]):
    """Divergence of the projections, and the probe.

    Args:
        student: the network inside the trained module.
        teacher: f_T, frozen.
        projection: g_T, frozen.
        params: the defense's.

    Attributes:
        probe: the last linear layer of the student.
    """

    def __init__(
        self, student: ClassifierTarget, teacher: ClassifierTarget, projection: nn.Module, params: RandomTeacherParams
    ) -> None:
        self.student, self.teacher, self.projection, self.params = student, teacher, projection, params
        self.probe = self.auxiliary = AuxiliaryNetwork(last_linear(student.module), params.probe_lr)

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A step of the probe, then KL(T || S), which the probe has no part in."""
        p = self.params
        with torch.no_grad():
            theirs = self.projection(with_penultimate(self.teacher, batch.x)[1])
        _, features = with_penultimate(self.student, batch.x)
        ours = target.module.parts["projection"](features)
        loss_probe = F.cross_entropy(self.probe(features.detach()), batch.y)
        self.probe.minimise(loss_probe, batch.all_reduce)
        loss = kl(
            theirs,
            ours,
            teacher_temperature=p.teacher_temperature,
            student_temperature=p.student_temperature,
            reduction="batch",
        )
        return loss, {"loss_probe": loss_probe}


class RandomTeacher(Defense):
    """A linear probe on features that were learnt from a random network."""

    Params = RandomTeacherParams
    version = "2"  # 1 had the temperatures and the weight decay of another configuration of the authors' code
    source = "Sarnthein et al. 2023, arXiv:2302.12091"

    def fit(self, context: FitContext) -> Target:
        """Train; the epoch is chosen by validation accuracy."""
        p = self.params
        teacher = fresh_network(context, p.model, p.model_params)
        student = fresh_network(context, p.model, p.model_params)
        student.to(context.device)
        with seeded_init(context, "projection"):
            projection = Projection(last_linear(teacher.module).in_features, p)
            trained = copy.deepcopy(projection)
            elsewhere = Projection(last_linear(teacher.module).in_features, p)
        between(student.module, fresh_network(context, p.model, p.model_params, role="elsewhere").module, p.distance)
        between(trained, elsewhere, p.distance)
        teacher.to(context.device)
        projection.to(context.device)
        with frozen(teacher.module), frozen(projection):
            both, recipe = with_auxiliary(student, projection=trained), RandomTeacherRecipe(student, teacher, projection, p)
            if p.probe_epochs:
                run_stages(context, [Stage("features", both, recipe, p), probe(student, p.with_probe())])
            else:
                train(context, both, recipe, p)
        return student
