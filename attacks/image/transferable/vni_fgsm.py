"""VNI-FGSM: variance tuning, with all gradients taken where the momentum leads.

    ahead = x_t + size * decay * n * g_t
    grad_t = grad J(ahead) + v_t,   v_{t+1}: the variance of VMI-FGSM around ahead

It is ``vmi-fgsm`` inside the look-ahead of ``ni-fgsm``; n is explained there.

Good for transfer; a step costs N + 1 gradients, like one of ``vmi-fgsm``.

Source: Wang & He: Enhancing the transferability of adversarial attacks through variance tuning (CVPR 2021), section 3.3.
"""

from __future__ import annotations

from typing_extensions import override

from robustkd.attacks.image.engine.ascent import GradientEstimator
from robustkd.attacks.image.transferable.ni_fgsm import NesterovGradient
from robustkd.attacks.image.transferable.vmi_fgsm import VMIFGSM
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng


class VNIFGSM(VMIFGSM):
    """Variance-tuned Nesterov iterative FGSM (VNI-FGSM)."""

    version = "1"
    source = "Wang & He 2021, arXiv:2103.15571"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        return NesterovGradient(self.size, self.params.decay, super().estimator(threat, rng))
