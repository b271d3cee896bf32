"""Quantised distillation: a student with weights of a few bits, trained as it will be deployed.

    Q(w) = min + (max - min) / n * round( n * (w - min) / (max - min) ),      n = 2^bits - 1, in buckets of 256 weights

    g  = gradient of  a * tau^2 * KL(T(x; tau) || S(x; tau)) + (1 - a) * CE(S(x), y)   at Q(w)
    w <- w - lr * g                                                                    in full precision

All weights of layers are quantised; biases and normalisations are not. What is deployed are the values Q(w). Few bits mask no
gradient here, but flatten the function that is attacked.

Good for small networks on disk. What is deployed is an ordinary network with few different weights, attacked like any other;
no adversarial example is seen, so none is withstood.

Source: Polino, Pascanu, Alistarh: Model compression via distillation and quantization (ICLR 2018), sections 2.1 and 3, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class QuantisedDistillationParams(StudentParams):
    bits: int = Field(4, ge=1, le=16, description="of each weight")
    bucket: int = Field(256, ge=2, description="weights that share a range")
    temperature: float = Field(2.0, gt=0, description="tau, of teacher and student")
    alpha: float = Field(0.7, ge=0, le=1, description="a, weight of the teacher; the labels get the rest")


def quantised(weights: Tensor, bits: int, bucket: int) -> Tensor:
    """Q(w), of the same shape; the last bucket may be smaller."""
    levels = 2**bits - 1
    parts = []
    for part in weights.detach().flatten().split(bucket):
        low = part.min()
        step = (part.max() - low) / levels
        # A bucket of equal weights has no range; they are their own level.
        parts.append(low + step * ((part - low) / step.clamp_min(torch.finfo(part.dtype).tiny)).round())
    return torch.cat(parts).view_as(weights)


class Quantised(nn.Module):
    """A network that answers with Q(w), and whose gradient there is passed to w unchanged."""

    def __init__(self, network: nn.Module, bits: int, bucket: int) -> None:
        super().__init__()
        self.network, self.bits, self.bucket = network, bits, bucket

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        # Adding w and taking it away again would round: the values must be those that are deployed.
        coarse = {name: _StraightThrough.apply(w, quantised(w, self.bits, self.bucket)) for name, w in self._weights()}
        logits: Tensor = torch.func.functional_call(self.network, coarse, (images,))
        return logits

    def bake(self) -> None:
        """Replace the weights by Q(w) for good."""
        with torch.no_grad():
            for _, weight in self._weights():
                weight.copy_(quantised(weight, self.bits, self.bucket))

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.network.named_parameters() if weight.dim() > 1]


class _StraightThrough(torch.autograd.Function):
    """The second argument forwards, the first one's gradient backwards."""

    @staticmethod
    def forward(ctx, weights, values):  # type: ignore[no-untyped-def]
        return values

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient, None


class QuantisedDistillationRecipe(DistillationRecipe):
    """Hinton's loss, of a network that quantises itself."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """a tau^2 KL + (1 - a) CE."""
        p, tau, logits = self.params, self.params.temperature, target(batch.x)
        soft = kl(self.teacher.clean(batch), logits, teacher_temperature=tau, student_temperature=tau, reduction="batch")
        return p.alpha * tau**2 * soft + (1 - p.alpha) * F.cross_entropy(logits, batch.y), {"loss_soft": soft}


class QuantisedDistillation(Distillation):
    """A student with weights of a few bits."""

    Params = QuantisedDistillationParams
    recipe = QuantisedDistillationRecipe
    source = "Polino et al. 2018, arXiv:1802.05668"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Wrap the student in the quantiser, so that the loss sees Q(w) and the step moves w."""
        coarse = Quantised(student.module, self.params.bits, self.params.bucket)
        target = ClassifierTarget(
            coarse, num_classes=student.num_classes, input_shape=student.input_shape, bounds=student.bounds
        )
        return self.recipe(teacher, self.params), target

    def fit(self, context: FitContext) -> Target:
        """Distil, and deploy Q(w); the epoch is chosen by the quantised network's validation accuracy."""
        student = super().fit(context)
        Quantised(student.module, self.params.bits, self.params.bucket).bake()
        return student
