"""KD3: a teacher is distilled on other images than its own, some of which are worth nothing.

    c_i = mean of T's and S's probabilities;   kept are images whose max c_i is at least ``strictness`` times the minibatch's mean of it
    min_S   tau^2 * KL(T(x; tau) || S(x; tau)) over the kept images
            + a * [ 1 - cos( w_S f_S, w_T f_T ) + 1 - cos( w_S, w_T ) ]       features weighted by the classifier's rows w, and the rows
            + b * contrast( f_S(x), f_S(x') ),     x' = x with channel means and spreads mixed with another image's (MixDistribution)

The images are those of ``web``, an archive (.npz, ``images`` (N, C, H, W)), or, left out, made of the campaign's training images: half of
them distorted (contrast, brightness, noise), the others of no class at all. No label is looked at; the campaign's own images only
choose the epoch. Whether robustness survives on others' images is the question: its controls are ``kd`` on the campaign's own, and
``strictness: 0, alignment: 0, contrast: 0``, which is ``kd`` without labels on the same web images.

Source: Tang et al.: Distribution shift matters for knowledge distillation with webly collected images (ICCV 2023), arXiv:2307.11469, of
which the abstract was read: a choice by the combined predictions of both with a dynamic threshold, alignment of weighted features and of
classifier weights, and a contrastive term between an image and its MixDistribution copy. The forms of all of them, a linear map between
features of different widths, weights and temperatures are ours, and so are the images that are made.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Arrays, CampaignPath, DataError, FitContext, Target
from robustkd.data.arrays import as_arrays
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class KD3Params(StudentParams):
    """Parameters of ``kd3``."""

    web: CampaignPath | None = Field(
        None, description="archive with the images that are distilled on; default: made of the campaign's"
    )
    temperature: float = Field(4.0, gt=0, description="tau, of teacher and student")
    strictness: float = Field(
        1.0, ge=0, description="an image is kept from so many times the minibatch's mean confidence on; 0: each"
    )
    alignment: float = Field(1.0, ge=0, description="a, weight of weighted features and classifier weights")
    contrast: float = Field(0.1, ge=0, description="b, weight of the contrast with the image in another distribution")
    contrast_temperature: float = Field(0.5, gt=0, description="of the contrast")
    mix: float = Field(0.5, ge=0, le=1, description="how much of another image's distribution is mixed in, at most")


class KD3Recipe(DistillationRecipe):
    """Divergence on kept images, alignment and contrast.

    Args:
        teacher, params: see ``DistillationRecipe``.
        student: the network inside the trained module.
    """

    supports_data_parallel = False  # the threshold and the contrast are the whole minibatch's

    def __init__(self, teacher: Teacher, params: KD3Params, student: ClassifierTarget) -> None:
        super().__init__(teacher, params)
        self.student = student

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """tau^2 KL over the kept images + a alignment + b contrast."""
        p, tau = self.params, self.params.temperature
        with torch.no_grad():
            z_t, t = with_penultimate(self.teacher.target, batch.x)
        z_s, s = with_penultimate(self.student, batch.x)
        keep = kept(z_t, z_s.detach(), p.strictness)
        apart = kl(z_t, z_s, teacher_temperature=tau, student_temperature=tau, reduction="none")
        soft = (apart * keep).sum() / keep.sum()
        loss, measured = tau**2 * soft, {"loss_soft": soft, "kept": keep.float().mean()}
        if p.alignment:
            widen = target.module.parts["projection"]
            rows = [last_linear(one.module).weight for one in (self.teacher.target, self.student)]
            aligned = alignment(z_t, t, s, rows[0].detach(), rows[1], widen)
            loss, measured = loss + p.alignment * aligned, {**measured, "loss_alignment": aligned}
        if p.contrast:
            draws = batch.rng("mix-distribution")
            share, partner = draws.uniform((1,)).to(batch.x) * p.mix, draws.fork("partner").uniform((1,)).argsort(0).squeeze(1)
            moved = mixed_distribution(batch.x, batch.x[partner.to(batch.x.device)], share.reshape(-1, 1, 1, 1))
            other = with_penultimate(self.student, moved)[1]
            apart = contrast(s, other, p.contrast_temperature)
            loss, measured = loss + p.contrast * apart, {**measured, "loss_contrast": apart}
        return loss, measured


def kept(teacher: Tensor, student: Tensor, strictness: float) -> Tensor:
    """(B,) bool, of (B, K) logits: whether the mean of both predictions is as sure as the minibatch's mean, times ``strictness``."""
    sure = ((teacher.softmax(1) + student.softmax(1)) / 2).amax(1)
    keep = sure >= strictness * sure.mean()
    # Nobody is as sure as asked: the surest one stays, so that there is something to learn from.
    return keep if bool(keep.any()) else sure == sure.max()


def alignment(logits: Tensor, teacher: Tensor, student: Tensor, rows: Tensor, own: Tensor, widen: nn.Module) -> Tensor:
    """1 - cosine of features weighted by the row of the teacher's class, plus the same of the classifiers' rows; both means.

    Args:
        logits: (B, K), the teacher's.
        teacher, student: (B, D_T) and (B, D_S) features.
        rows, own: (K, D_T) and (K, D_S) weights of the classifiers.
        widen: the linear map from D_S to D_T.
    """
    said, ours = logits.argmax(1), widen(own)
    features = F.cosine_similarity(widen(student) * ours[said], teacher * rows[said], dim=1)
    return (1 - features).mean() + (1 - F.cosine_similarity(ours, rows, dim=1)).mean()


def mixed_distribution(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """(B, C, H, W) images with the mean and the spread of each channel moved by (B, 1, 1, 1) ``share`` towards another image's."""
    means, spreads = zip(
        *((one.mean((2, 3), keepdim=True), one.std((2, 3), keepdim=True, correction=0)) for one in (x, other)), strict=True
    )
    whitened = (x - means[0]) / spreads[0].clamp_min(1e-6)
    moved = whitened * torch.lerp(spreads[0], spreads[1], share) + torch.lerp(means[0], means[1], share)
    return moved.clamp(0, 1)


def contrast(features: Tensor, others: Tensor, temperature: float) -> Tensor:
    """The cross entropy of each of (B, D) features' own partner among (B, D) others, by cosine."""
    scores = F.normalize(features, dim=1) @ F.normalize(others, dim=1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def web_images(train: Arrays, seed: int) -> np.ndarray:
    """(N, C, H, W) float32 in [0, 1], as many as there are training images: half of them distorted, then images of no class."""
    images, random = train.unit(), np.random.default_rng(seed)
    half = len(images) // 2
    shape = (half, 1, 1, 1)
    chosen = images[random.permutation(len(images))[:half]]
    grey = chosen.mean((1, 2, 3), keepdims=True)
    distorted = grey + (chosen - grey) * random.uniform(0.3, 1.5, shape) + random.uniform(-0.2, 0.2, shape)
    distorted = distorted + random.normal(0, 0.1, distorted.shape)
    left = len(images) - half
    first, second = (images[random.integers(0, len(images), left)] for _ in range(2))
    shuffled = random.permuted(first.reshape(left, -1), axis=1).reshape(first.shape)
    foreign = np.where(random.random((left, 1, 1, 1)) < 0.5, shuffled, (first + 1 - second) / 2)
    return np.concatenate([distorted, foreign]).clip(0, 1).astype(np.float32)


class KD3(Distillation):
    """A student of a frozen teacher on images that are not the teacher's."""

    Params = KD3Params
    recipe = KD3Recipe
    source = "Tang et al. 2023, arXiv:2307.11469"

    @override
    def files(self) -> list[Path]:
        """The archive, if one was given: its content is part of the cell's identity."""
        return [self.params.web] if self.params.web else []

    @override
    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """A linear map between the features is trained along and not deployed."""
        ours, theirs = last_linear(student.module).in_features, last_linear(teacher.target.module).in_features
        with seeded_init(context, "projection"):
            projection = nn.Identity() if ours == theirs else nn.Linear(ours, theirs, bias=False)
        return KD3Recipe(teacher, self.params, student), with_auxiliary(student, projection=projection)

    @override
    def fit(self, context: FitContext) -> Target:
        """Distil on the other images; the epoch is chosen on the validation data.

        Raises:
            DataError: the archive has no images, or of another shape than the data's.
        """
        images = self._archive(context) if self.params.web else web_images(context.train, derived_seed(context.seed, "web"))
        nobody = np.zeros(len(images), dtype=np.int64)
        return super().fit(replace(context, train=as_arrays(images, nobody, "web")))

    def _archive(self, context: FitContext) -> np.ndarray:
        file = self.params.web
        try:
            with np.load(file, allow_pickle=False) as archive:
                found = archive["images"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(
                f"{file}: no images can be read from it: {error}", fix="give an .npz archive with 'images', (N, C, H, W)"
            ) from error
        if found.shape[1:] != tuple(context.input_shape) or not len(found):
            raise DataError(
                f"{file}: 'images' has the shape {found.shape}, the data's are {tuple(context.input_shape)}",
                fix="bring them to that size",
            )
        return np.asarray(found)
