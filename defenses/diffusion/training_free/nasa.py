"""NASA: the attention of a negative prompt is taken away from that of the prompt (SNOOPI, Nguyen et al. 2024).

    out = Attn(z, c) - scale Attn(z, c_negative)        in every cross-attention of the UNet, Attn with its last projection

Models that draw in one step draw without guidance, so that a negative prompt in guidance (``negative-prompt``) has no effect on
them; this has. It needs no training. The scale may be too much for what is to be kept: read it beside usefulness.

Control: ``scale: 0``, the model as it is. At scale 1 a prompt that is the negative one adds nothing to the attention.

Source: Nguyen et al.: SNOOPI (2024), arXiv:2412.02687, of which the abstract was read; the formula is as it is cited by others. That the
last projection belongs to it, and that guided models have it in both of their passes, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params
from robustkd.defenses.diffusion.training_free.alteration import Alteration, AlterationParams
from robustkd.lazy import torch
from robustkd.targets.altered_drawing import AlteredDrawing
from robustkd.targets.text_encoders import Conditioning

if TYPE_CHECKING:
    from torch import Tensor


class NASASettings(Params):
    """What is taken away."""

    negative: str = Field(min_length=1, description="what is not to be in the picture", examples=["nudity"])
    scale: float = Field(0.5, ge=0, description="how much of its attention is taken away; 0: none, the control")


class NASATarget(AlteredDrawing[NASASettings]):
    """A model whose cross-attention leaves out what a negative prompt attends to."""

    kind = "nasa"
    Settings = NASASettings

    @override
    def _asked(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        with torch.no_grad():
            negative = self.encode(self.tokenize([self.settings.negative])).tokens
        with self._without(negative):
            return super()._asked(latents, t, hidden)

    @contextmanager
    def _without(self, negative: Tensor) -> Iterator[None]:
        """Until the end of the block, the attention of the (1, T, D) negative prompt is taken away."""

        def lessened(module: Any, args: tuple[Any, ...], told: dict[str, Any], output: Tensor) -> Tensor:
            # The processor, not the module: whose hook this is.
            other = module.processor(module, *args, **told | {"encoder_hidden_states": negative.expand(len(output), -1, -1)})
            return output - self.settings.scale * other

        layers = [module for name, module in self.unet.named_modules() if name.endswith("attn2")]
        hooks = [layer.register_forward_hook(lessened, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class NASAParams(NASASettings, AlterationParams):
    """The model, and what is taken away."""


class NASA(Alteration):
    """Takes a negative prompt's attention away, also from models that draw in one step."""

    Params = NASAParams
    target = NASATarget
    source = "Nguyen et al., SNOOPI: supercharged one-step diffusion distillation with proper guidance, 2024, arXiv:2412.02687"

    def texts(self) -> list[str]:
        """The negative prompt."""
        return [self.params.negative]
