"""Fides: an answer that a distilled verifier does not share is rejected.

    p = softmax of the service's logits,  q = softmax of the verifier's
    s(p, q) = ( KL(p || q),  1 - cos(p, q),  H(p),  H(q) )
    score(x) = w . standardised s + b,     w, b: logistic regression of honest answers against tampered ones

The verifier is a student of the guarded model (any distillation of the campaign), which the client runs himself. It was made against a
server that tampers with *answers*: there the verifier sees the image that the server saw, so a changed answer stands alone. Here it also
watches for images that are changed. A student shares most of its teacher's adversarial examples, so that much less is to be expected of
it there; the detector learns from tampered answers alone, and never from an attack on images.

A tampered answer swaps the two largest probabilities: of all answers with another class it is the nearest one with the same numbers.

From the authors: a verification model distilled from the service's, statistics of both answers (divergence, cosine, entropy), a detector on
them, a re-classifier (the analysis ``tampered-answers`` counts what both are worth there). From us: the swap in the place of a trained
generator of tampered answers; a logistic regression in the place of a network; any distillation in the place of layer-wise greedy
unfreezing.

Control: a verifier that is no student, such as ``random-teacher`` or the model itself, of which no statistic differs.

Source: Kumar et al.: Fides: a generative framework for result validation of outsourced machine learning workloads via TEE (2023),
arXiv:2304.00083; read in the abstract only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import BaseTarget, Detector, FitContext, Params, Target, TargetError, TargetRef
from robustkd.contracts.target import of_kind
from robustkd.lazy import nn, torch
from robustkd.targets.verified_answers import tampered

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 256
_NEWTON_STEPS, _RIDGE = 30, 1e-2


class FidesParams(Params):
    """The verifier."""

    verifier: TargetRef = Field(
        description="the defense whose model verifies: a student of the guarded one, of the same classes"
    )


def statistics(p: Tensor, q: Tensor) -> Tensor:
    """(B, K) and (B, K) probabilities -> (B, 4): KL(p || q), 1 - cos(p, q), H(p), H(q), in nats."""
    tiny = torch.finfo(p.dtype).tiny
    log_p, log_q = p.clamp_min(tiny).log(), q.clamp_min(tiny).log()
    kl = (p * (log_p - log_q)).sum(1)
    apart = 1 - nn.functional.cosine_similarity(p, q, dim=1)
    return torch.stack([kl, apart, -(p * log_p).sum(1), -(q * log_q).sum(1)], 1)


class Verified(nn.Module):
    """The score. It shares the verifier's weights."""

    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, verifier: Target) -> None:
        super().__init__()
        self.network, self.verifier = verifier.module, verifier
        for name, start in (("centre", 0.0), ("scale", 1.0), ("weight", 0.5)):
            self.register_buffer(name, torch.full((4,), start))
        self.register_buffer("bias", torch.tensor(0.0))

    def forward(self, inputs: Tensor, logits: Tensor) -> Tensor:
        """(B, *shape) and (B, K) -> (B,) the log-odds of a tampered answer."""
        return self.of_answers(logits.softmax(1), self.verifier(inputs).softmax(1))

    def of_answers(self, p: Tensor, q: Tensor) -> Tensor:
        """See ``ScoresAnswers``."""
        return self.log_odds(statistics(p, q).to(self.weight))

    def log_odds(self, found: Tensor) -> Tensor:
        """(B, 4) statistics -> (B,)."""
        return ((found - self.centre) / self.scale) @ self.weight + self.bias


class Fides(Detector):
    """How little a distilled verifier shares the answer."""

    Params: ClassVar[type[Params]] = FidesParams
    source = "Kumar et al. 2023, arXiv:2304.00083"

    @override
    def build(self, model: Target, others: Mapping[str, BaseTarget]) -> nn.Module:
        name = self.params.verifier
        verifier = of_kind(others[name], name, Target)
        if (verifier.num_classes, verifier.input_shape, verifier.bounds) != (
            model.num_classes,
            model.input_shape,
            model.bounds,
        ):
            raise TargetError(
                f"the verifier '{name}' maps {verifier.input_shape} to {verifier.num_classes} classes, the guarded model "
                f"{model.input_shape} to {model.num_classes}",
                fix="name a student of the guarded model",
            )
        return Verified(verifier)

    @override
    def fit(self, scorer: nn.Module, model: Target, context: FitContext[Any]) -> None:
        assert isinstance(scorer, Verified)
        honest, swapped = [], []
        with torch.no_grad():
            for part in torch.from_numpy(context.train.unit()).split(_BATCH):
                x = part.to(context.device)
                p, q = (target(x).cpu().double().softmax(1) for target in (model, scorer.verifier))
                honest.append(statistics(p, q).cpu())
                swapped.append(statistics(tampered(p), q).cpu())
        found = torch.cat([*honest, *swapped])
        labels = torch.cat([torch.zeros(len(found) // 2), torch.ones(len(found) // 2)]).double()
        centre, scale = found.mean(0), found.std(0).clamp_min(1e-6)
        weight, bias = logistic_regression((found - centre) / scale, labels)
        for name, value in (("centre", centre), ("scale", scale), ("weight", weight), ("bias", bias)):
            scorer.get_buffer(name).copy_(value)


def logistic_regression(found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) w and b that minimise  sum log(1 + exp(-+(w . x + b))) + ridge/2 ||w||^2  over (N, D) float64, by Newton's method."""
    design = torch.cat([found, torch.ones_like(found[:, :1])], 1)
    penalty = torch.full((design.shape[1],), _RIDGE, dtype=found.dtype)
    penalty[-1] = 0
    weights = torch.zeros(design.shape[1], dtype=found.dtype)
    for _ in range(_NEWTON_STEPS):
        p = (design @ weights).sigmoid()
        slope = design.T @ (labels - p) - penalty * weights
        curvature = (design * (p * (1 - p)).unsqueeze(1)).T @ design + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(curvature, slope)
        weights = weights + step / step.norm().clamp_min(1)  # a step of at most 1 does not leave the region where it converges
    return weights[:-1], weights[-1]
