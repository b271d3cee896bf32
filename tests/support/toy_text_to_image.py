"""A hand-made text-to-image model: it draws its one picture to the extent that the words of the prompt say so."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkd.contracts import Judge, Prompts
from robustkd.defenses.diffusion.small import word_tokenizer
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

FILLER = " ".join(f"word{number}" for number in range(300))
PICTURE = torch.tensor([[1.0, -1, -1, 1], [-1, 1, 1, -1], [-1, 1, 1, -1], [1, -1, -1, 1]])
BRIGHT = PICTURE / 2 + 0.5


class Words(nn.Module):
    """Each token's embedding; its first entry says how much of the picture it asks for."""

    def __init__(self, size: int, length: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=length)
        self.table = nn.Embedding(size, 4)
        nn.init.normal_(self.table.weight)
        self.table.weight.data[:, 0] = 0

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


class Drawer(nn.Module):
    """It knows the noise of z_t = sqrt(a_t) s picture + sqrt(1 - a_t) noise, with s the amount that the prompt asks for."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, sample_size=4)
        self.register_buffer("kept", scheduler.alphas_cumprod)
        self.register_buffer("picture", PICTURE)

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
        amount = encoder_hidden_states[..., 0].sum(1).clamp_max(1).view(-1, 1, 1, 1)
        kept = self.kept[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(z - kept.sqrt() * amount * self.picture) / (1 - kept).sqrt())


def toy(*asking: str, length: int = 12) -> TextToImageTarget:
    """The model; ``asking`` are the words that ask for the picture."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    tokenizer = word_tokenizer(["a photo of the church, xyzzy", FILLER])
    special = {"bos": 0, "eos": 1, "pad": 1}
    scheduler = DDIMScheduler(num_train_timesteps=40, clip_sample=False, set_alpha_to_one=True)
    words = Words(tokenizer.get_vocab_size(), length)
    for word in asking:
        words.table.weight.data[tokenizer.token_to_id(word), 0] = 1
    module = nn.ModuleDict({"unet": Drawer(scheduler), "text_encoder": words})
    module.eval()
    return TextToImageTarget(module, tokenizer, special, scheduler, guidance=1.0, steps=4)


class Summing(TextToImageTarget):
    """Its text encoder adds up the words so far, so that the end of a prompt knows all of it."""

    def encode(self, ids: Tensor | None = None, embeddings: Tensor | None = None) -> Conditioning:
        return Conditioning(super().encode(ids, embeddings).tokens.cumsum(1))


def summing(*asking: str) -> Summing:
    made = toy(*asking)
    return Summing(made.module, made.tokenizer, made.special, made.scheduler, guidance=1.0, steps=2)


def requests(count: int, images: bool = True) -> Prompts:
    """The same request with other seeds, and the picture that it should give."""
    columns = {"prompt": ("photo of the church",) * count, "seed": tuple(str(7 + i) for i in range(count))}
    pictures = BRIGHT.expand(count, 1, 4, 4).numpy().copy() if images else None
    return Prompts(columns | {"concept": ("church",) * count}, np.zeros(count, dtype=np.int64), pictures)


class ShowsThePicture(Judge):
    modalities = ("text-to-image",)

    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
        return np.array([float((image[0] - BRIGHT).abs().mean()) < 0.1 for image in outputs])
