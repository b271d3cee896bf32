"""Mahalanobis: an image whose features lie far from those of every class is rejected.

    m_k, C = means of the classes' features and their common covariance, on the training images
    score(x) = min_k (f(x) - m_k)^T C^-1 (f(x) - m_k)

f are the features in front of the last linear layer, with the classes as they are labelled. The authors add the layers before it, a step
of the image along the score's gradient, and weights of the layers that a regression finds on adversarial examples of the attack to be
detected; none of them is here, since no example of an attack belongs into a defense's training data.

Good against images from elsewhere. An attack that is led to another class's mean has the score of a clean image.

Control: an untrained network's features.

Source: Lee et al.: A simple unified framework for detecting out-of-distribution samples and adversarial attacks (NeurIPS 2018),
arXiv:1807.03888, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import BaseTarget, Detector, FitContext, Params, Target
from robustkd.lazy import nn, torch
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 256


class MahalanobisParams(Params):
    """How sure the covariance is."""

    ridge: float = Field(1e-3, gt=0, description="added to the covariance, as a share of its mean variance")


class Distances(nn.Module):
    """The score.

    Args:
        target: the classifier.
        classes: K.
        width: D, of its features.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, target: Target, classes: int, width: int) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("means", torch.zeros(classes, width))
        self.register_buffer("whitening", torch.eye(width))

    def forward(self, inputs: Tensor, logits: Tensor) -> Tensor:
        """(B, *shape) and (B, K) -> (B,)."""
        _, features = with_penultimate(self.target, inputs)
        white = features @ self.whitening.to(features)
        means = (self.means @ self.whitening).to(features)
        return (white.unsqueeze(1) - means).square().sum(2).amin(1)


class Mahalanobis(Detector):
    """How far features are from every class's mean, in the classes' common covariance."""

    Params: ClassVar[type[Params]] = MahalanobisParams
    source = "Lee et al. 2018, arXiv:1807.03888"

    @override
    def build(self, model: Target, others: Mapping[str, BaseTarget]) -> nn.Module:
        return Distances(model, model.num_classes, last_linear(model.module).in_features)

    @override
    def fit(self, scorer: nn.Module, model: Target, context: FitContext[Any]) -> None:
        images, labels = torch.from_numpy(context.train.unit()), torch.from_numpy(context.train.labels).long()
        with torch.no_grad():
            found = [with_penultimate(model, part.to(context.device))[1].cpu().double() for part in images.split(_BATCH)]
        means, whitening = fitted(torch.cat(found), labels, model.num_classes, self.params.ridge)
        scorer.get_buffer("means").copy_(means)
        scorer.get_buffer("whitening").copy_(whitening)


def fitted(features: Tensor, labels: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """(K, D) the means, and (D, D) W with W W^T = C^-1, of (N, D) features in float64; of a class without samples the mean of all."""
    member = nn.functional.one_hot(labels, classes).to(features)
    counts = member.sum(0).unsqueeze(1)
    means = torch.where(counts > 0, member.T @ features / counts.clamp_min(1), features.mean(0))
    centred = features - means[labels]
    covariance = centred.T @ centred / len(features)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    return means, torch.linalg.cholesky(inverse)
