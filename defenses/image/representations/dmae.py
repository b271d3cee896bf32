"""DMAE: a student fills in masked patches, and its features follow those of a frozen teacher on the same visible patches.

    1.  min  L_rec + weight * mean | g(s_i(visible)) - t_j(visible) |,      i, j at ``depth`` of the blocks of student and teacher
    2.  min  CE(f(x), y)                                                    as ``mae``

g is a linear layer that is not deployed; the teacher is run to block j only.

Good to ask whether features carry a teacher's robustness, or its lack, to a student that sees no output of it. Controls: ``mae``, which is
this with ``weight: 0``, and ``kd`` from the same teacher.

Source: Bai et al.: Masked autoencoders enable efficient knowledge distillers (CVPR 2023), arXiv:2208.12256, and notes about
the authors' code (models_mae_distill.py), which was not read itself: masks of 75 %, one level at three quarters of the depth, normalised
pixels. The mean in place of a sum, a decoder of one block and the sizes are ours. The teacher there is a masked autoencoder; here it is any
``tiny-vit`` of the same patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target, TargetRef, UsageError
from robustkd.defenses.image.representations.mae import MaskedParams
from robustkd.defenses.image.representations.masking import MaskedRecipe, encoded, transformer, with_decoder
from robustkd.defenses.training import Minibatch, Teacher, fresh_network, frozen_teacher
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.stages import Stage, finishing, run_stages
from robustkd.lazy import nn, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class DMAEParams(MaskedParams):
    teacher: TargetRef = Field(description="another defense whose network is a tiny-vit")
    weight: float = Field(1.0, ge=0, description="of the distance between the features")
    depth: float = Field(0.75, gt=0, le=1, description="share of the blocks behind which they are compared")


def block_at(count: int, depth: float) -> int:
    """The number of the block at this share of ``count`` blocks, from 0."""
    return max(1, round(depth * count)) - 1


class DMAERecipe(MaskedRecipe):
    """The reconstruction, and the distance from the teacher's features."""

    def __init__(self, student: ClassifierTarget, teacher: Target, params: DMAEParams) -> None:
        super().__init__(student, params.mask)
        self.teacher, self.params = teacher, params

    def beside(self, parts: Any, batch: Minibatch, blocks: list[Tensor], visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """weight * mean |g(s_i) - t_j|."""
        depth, network = self.params.depth, transformer(self.teacher, "dmae")
        with torch.no_grad():
            theirs = encoded(network, batch.x, visible)[block_at(len(network.blocks), depth)]
        distance = (parts["projection"](blocks[block_at(len(blocks), depth)]) - theirs).abs().mean()
        return self.params.weight * distance, {"loss_features": distance}


class DMAE(Defense):
    """A masked student of a teacher's features."""

    Params = DMAEParams
    source = "Bai et al. 2023, arXiv:2208.12256"

    def fit(self, context: FitContext) -> Target:
        """Train both stages; the epoch of the second is chosen by validation accuracy.

        Raises:
            UsageError: a network has no patches, or the teacher has others.
        """
        p = self.params
        student = fresh_network(context, p.model, p.model_params)
        with frozen_teacher(context, p.teacher, p) as teacher:
            run_stages(context, self._stages(context, student, teacher))
        return student

    def _stages(self, context: FitContext, student: ClassifierTarget, teacher: Teacher) -> Iterator[Stage]:
        p, own, theirs = self.params, transformer(student, "dmae"), transformer(teacher.target, "dmae")
        require_same_patches(own.positions.shape[1], theirs.positions.shape[1], "dmae")
        with seeded_init(context, "projection"):
            projection = nn.Linear(own.positions.shape[2], theirs.positions.shape[2])
        trained = with_decoder(context, student, "dmae", projection=projection)
        yield Stage("masked", trained, DMAERecipe(student, teacher.target, p), p.with_last_epoch())
        yield finishing(student, p)


def require_same_patches(own: int, theirs: int, who: str) -> None:
    """Refuse a teacher whose patches are others than the student's.

    Raises:
        UsageError: they are.
    """
    if own != theirs:
        raise UsageError(f"the student of {who} has {own} patches, its teacher {theirs}", fix="give both the same 'patch'")
