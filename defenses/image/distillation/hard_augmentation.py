"""HARD: hard augmentations for robust distillation. A network learns to move images where student and teacher disagree.

    min_g  b * KL(T(x) || T(g(x)))  -  KL(T(g(x)) || S(g(x)))                     the teacher's answer is to stay
    min_S  KL(T(x) || S(x)) + KL(T(g(x)) || S(g(x)))

in turn, one step each. g is the simplest of the paper's augmentors: an affine map of the image for each image and draw of noise, made
by a small convolutional network and bounded (entries of I + limit * tanh), so that only what the teacher takes for the same is shown.

Good where augmentation by hand is not known. Where the teacher forgives much, so does g. The images are hard, not
adversarial: none within a budget is withstood.

Source: Nix, Burg, Sinz: HARD: hard augmentations for robust distillation (2023), section 3. The weight b and the network are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget, frozen

if TYPE_CHECKING:
    from torch import Tensor

NOISE = 8
"""Random numbers that g is given with each image."""


class HardAugmentationParams(StudentParams):
    temperature: float = Field(1.0, gt=0, description="of teacher and student")
    stay: float = Field(1.0, ge=0, description="b, weight of the teacher's answer staying as it is")
    limit: float = Field(0.3, gt=0, lt=1, description="how far an entry of the affine map may be from the identity's")
    augmentor_lr: float = Field(1e-3, gt=0, description="learning rate of g (Adam)")
    width: int = Field(16, ge=1, description="channels of its first convolution")


class AffineAugmentor(nn.Module):
    """g: each image under an affine map of its own, zeros from outside.

    Args:
        channels: of the images.
        limit, width: see ``HardAugmentationParams``.
    """

    def __init__(self, channels: int, limit: float, width: int) -> None:
        super().__init__()
        self.limit = limit
        self.seen = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.drawn = nn.Sequential(nn.Linear(2 * width + NOISE, 2 * width), nn.ReLU(), nn.Linear(2 * width, 6))
        self.register_buffer("identity", torch.eye(2, 3))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] and (B, NOISE) -> (B, C, H, W) in [0, 1]."""
        offset = self.drawn(torch.cat([self.seen(images), noise], 1)).view(-1, 2, 3)
        grid = F.affine_grid(self.identity + self.limit * offset.float().tanh(), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class HardAugmentationRecipe(DistillationRecipe):
    """Both steps.

    Args:
        teacher, params: see ``DistillationRecipe``.
        augmentor: g.
    """

    def __init__(self, teacher: Teacher, params: HardAugmentationParams, augmentor: AuxiliaryNetwork) -> None:
        super().__init__(teacher, params)
        self.augmentor = self.auxiliary = augmentor

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A step of g, then KL(x) + KL(g(x))."""
        clean, noise = self.teacher.clean(batch), batch.rng("augmentor").normal((NOISE,), dtype=batch.x.dtype)
        with frozen(target.module):
            hard = self.augmentor(batch.x, noise)
            moved = self.teacher.target(hard)
            staying, apart = self._kl(clean, moved), self._kl(moved, target(hard))
            self.augmentor.minimise(self.params.stay * staying - apart, batch.all_reduce)
        with torch.no_grad():
            hard = self.augmentor(batch.x, noise)
        loss_clean, loss_hard = self._kl(clean, target(batch.x)), self._kl(self.teacher(hard), target(hard))
        return loss_clean + loss_hard, {"loss_clean": loss_clean, "loss_hard": loss_hard, "teacher_moved": staying}

    def _kl(self, teacher: Tensor, student: Tensor) -> Tensor:
        tau = self.params.temperature
        return tau**2 * kl(teacher, student, teacher_temperature=tau, student_temperature=tau, reduction="batch")


class HardAugmentation(Distillation):
    """A student that is shown where it still differs from its teacher."""

    Params = HardAugmentationParams
    recipe = HardAugmentationRecipe
    source = "Nix et al. 2023, arXiv:2305.14890"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Initialise the augmentor g, which is trained along with the student."""
        p = self.params
        with seeded_init(context, "augmentor"):
            network = AffineAugmentor(context.input_shape[0], p.limit, p.width).to(context.device)
        return HardAugmentationRecipe(teacher, p, AuxiliaryNetwork(network, p.augmentor_lr)), student
