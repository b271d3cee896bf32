"""UNDO: what was unlearnt is distilled into a noised copy, so that little is left to relearn it from.

    theta <- (1 - a) theta + a b n,   n with the spread of each weight matrix's own entries;    min_S  KL(p_T || p_S)

The teacher is a model that refuses or has unlearnt, the student its own copy with noise: a trades compute for
robustness to relearning (``relearning``, ``harmful-finetuning``). Its control is ``noise: {share: 0}``, the teacher
distilled into an exact copy of itself.

Source: Lee et al.: Distillation robustifies unlearning (NeurIPS 2025), as its abstract and others describe it:
unlearn, noise, distil. The forward KL is theirs. That n is normal with each matrix's own standard deviation, that
biases and norms, which no initialisation draws, are left as they are, a = 0.3 and b = 1, steps and rate are ours.
"""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import FitContext, Params, Prompts
from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams
from robustkd.defenses.text.training import own_copy
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget


class NoiseParams(Params):
    """How far the student begins from its teacher."""

    share: float = Field(0.3, ge=0, le=1, description="a, of the noise; 0: the control, the teacher's own weights")
    scale: float = Field(1.0, ge=0, description="b, of the noise, relative to the standard deviation of each weight matrix")


class UNDOParams(LMDistilParams):
    noise: NoiseParams = Field(default_factory=NoiseParams, description="how far the student begins from its teacher")


class UNDO(LMDistil):
    """A noised copy of a model that refuses, distilled back to it."""

    Params = UNDOParams
    source = "Lee et al. 2025, arXiv:2506.06278"

    @override
    def begin(self, context: FitContext[Prompts], teacher: CausalLMTarget) -> CausalLMTarget:
        """The teacher with noise, or the model that ``start`` names with noise."""
        student = super().begin(context, teacher) if self.params.start is not None else own_copy(teacher)
        student.module.float().requires_grad_(True)
        with seeded_init(context, "noise"), torch.no_grad():
            for weight in student.module.parameters():
                if weight.dim() > 1:
                    add_noise(weight, self.params.noise)
        return student


def add_noise(weight: torch.Tensor, noise: NoiseParams) -> None:
    """theta <- (1 - a) theta + a b n, in place; the numbers are drawn on the CPU, so that they are the same on every device."""
    drawn = torch.randn(weight.shape).to(weight) * weight.std(correction=0)
    weight.mul_(1 - noise.share).add_(drawn, alpha=noise.share * noise.scale)
