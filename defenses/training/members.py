"""Several networks trained together, in the one loop: the ensemble is its target, the sum of the members' losses its loss.

Members share no weight, so one step on the sum is the step that each would make by itself; the losses of ensemble defenses differ
in what one member's loss takes from the others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, model_validator

from robustkd.contracts import Capabilities, Defense, FitContext, ModelName, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.networks import fresh_network, teacher
from robustkd.defenses.training.params import TrainParams, WeightDecayParam
from robustkd.defenses.training.recipe import Recipe
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget, EnsembleTarget, ImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class MembersParams(TrainParams):
    """Training parameters of the defenses that train an ensemble. The papers train on CIFAR with ``augment: crop-flip``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "tiny-cnn"}]})

    weight_decay: WeightDecayParam = 1e-4
    selection: Literal["best", "last"] = Field(
        "last",
        description="deploy the last epoch, as the papers do (diversity costs clean accuracy), or the best on validation data",
    )
    members: int = Field(3, ge=2, description="how many networks; with start: one for each")
    model: ModelName | None = Field(None, description="the members' architecture: a model plug-in, whose networks start afresh")
    model_params: ModelParams = Field(default_factory=dict)
    start: tuple[TargetRef, ...] | None = Field(
        None, min_length=2, description="instead of model: trained defenses of any architectures, whose copies are trained on"
    )

    @model_validator(mode="after")
    def _known_members(self) -> MembersParams:
        if (self.model is None) == (self.start is None):
            raise ValueError("name the members' model, or the trained defenses that they start from: one of the two")
        if self.model is None and self.model_params:
            raise ValueError("model_params belong to model, and none is named")
        if self.start is not None and "members" in self.model_fields_set and self.members != len(self.start):
            raise ValueError(f"start names {len(self.start)} defenses for {self.members} members; leave members out")
        if self.start is not None and len(set(self.start)) < len(self.start):
            raise ValueError("start names a defense twice, so that two members would begin as the same network")
        return self


class MembersDefense(Defense):
    """A defense that trains an ensemble."""

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of networks, and the members."""
        return super().target_capabilities(others) | {"members"}


def first_members(context: FitContext, params: MembersParams) -> list[ClassifierTarget]:
    """The members before the first step: fresh networks, or copies of the trained ones that ``params.start`` names.

    Raises:
        UsageError: one of these is no classifier of the campaign's images and classes.
    """
    if params.start is not None:
        return [trained_copy(teacher(context, name)) for name in params.start]
    assert params.model is not None  # by the validator
    model, model_params = params.model, params.model_params
    return [fresh_network(context, model, model_params, role=f"member/{m}") for m in range(params.members)]


def trained_copy(target: ClassifierTarget) -> ClassifierTarget:
    """The same network with weights of its own, to be trained on."""
    found = copy.copy(target)
    found.module = copy.deepcopy(target.module).requires_grad_()
    return found


def outputs(members: Sequence[ImageTarget], x: Tensor) -> Tensor:
    """(M, B, K) logits of each member, each with its own pass."""
    return torch.stack([member(x) for member in members])


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """(M,) mean CE(f_m(x), y) of each member, from (M, B, K) logits."""
    return torch.stack([F.cross_entropy(z, labels) for z in logits])


def input_gradients(members: Sequence[ImageTarget], x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The members' logits, and the gradients of their losses at the images, which can be differentiated once more.

    Returns:
        (M, B, K) logits and (M, B, D) gradients of CE(f_m(x), y) with respect to x.
    """
    x = x.detach().requires_grad_() if not x.requires_grad else x
    logits = outputs(members, x)
    # Summed, not averaged: the gradient at an image is that of its own loss, however large the batch.
    losses = [F.cross_entropy(z, labels, reduction="sum") for z in logits]
    gradients = [torch.autograd.grad(loss, x, create_graph=True)[0].flatten(1) for loss in losses]
    return logits, torch.stack(gradients)


def cosines(gradients: Sequence[Tensor] | Tensor) -> Tensor:
    """(P, B) cosines between the (M, B, D) gradients of each pair i < j of members."""
    pairs = [(i, j) for i in range(len(gradients)) for j in range(i + 1, len(gradients))]
    return torch.stack([F.cosine_similarity(gradients[i], gradients[j], dim=1) for i, j in pairs])


class PlainMembersRecipe(Recipe[EnsembleTarget]):
    """sum_m CE(f_m(x), y): members that know nothing of each other."""

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the members' cross entropies."""
        return cross_entropies(outputs(target.members, batch.x), batch.y).sum(), {}
