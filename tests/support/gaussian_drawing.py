"""A diffusion model of one normal distribution, whose score is known; and a generator that is linear in its noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.targets.text_to_image import TextToImageTarget
from support.toy_text_to_image import Words, word_tokenizer


class NormalScore(nn.Module):
    """The noise that is seen in z_t where x_0 ~ N(mean, scale^2) in each pixel; whatever is asked for."""

    def __init__(self, alphas: Tensor, mean: float, scale: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, out_channels=1, sample_size=2)
        self.mean, self.log_scale = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(scale).log())
        self.register_buffer("alphas", alphas)

    def picture(self, z: Tensor, kept: Tensor) -> Tensor:
        """E[x_0 | z_t]."""
        variance = (2 * self.log_scale).exp()
        gain = variance * kept.sqrt() / (kept * variance + 1 - kept)
        return self.mean + gain * (z - kept.sqrt() * self.mean)

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
        kept = self.alphas[t].reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=(z - kept.sqrt() * self.picture(z, kept)) / (1 - kept).sqrt())


class Linear(NormalScore):
    """A generator: its picture is mean + scale * noise."""

    def picture(self, z: Tensor, kept: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * z


def gaussian(mean: float, scale: float, kind: type[NormalScore] = NormalScore) -> TextToImageTarget:
    """The model, of 40 noise levels."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    tokenizer = word_tokenizer(["a word"])
    scheduler = DDIMScheduler(num_train_timesteps=40, beta_start=0.001, beta_end=0.3, clip_sample=False, set_alpha_to_one=True)
    words = Words(tokenizer.get_vocab_size(), 6)
    words.requires_grad_(False)
    module = nn.ModuleDict({"unet": kind(scheduler.alphas_cumprod, mean, scale), "text_encoder": words})
    module.eval()
    return TextToImageTarget(module, tokenizer, {"bos": 0, "eos": 1, "pad": 1}, scheduler, guidance=1.0, steps=4)
