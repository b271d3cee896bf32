"""A text-to-image model small enough to be trained in a campaign: the classes of Stable Diffusion, without an autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import Params, UsageError
from robustkd.lazy import nn
from robustkd.targets.text_to_image import TextToImageTarget, require_diffusers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unknown": "<|unknown|>"}


class SmallModelParams(Params):
    """The sizes of a small text-to-image model."""

    max_tokens: int = Field(28, ge=4, description="positions of a prompt, its beginning and end included")
    text_width: int = Field(64, ge=8, multiple_of=8, description="hidden size of the text encoder")
    text_layers: int = Field(2, ge=1, description="its layers")
    channels: tuple[int, ...] = Field(
        (16, 32, 64), min_length=2, description="of the UNet, from the images' size downwards; the last level has attention"
    )
    timesteps: int = Field(200, ge=10, description="noise levels of the diffusion")
    sampling_steps: int = Field(8, ge=1, description="of DDIM, to draw an image")
    guidance: float = Field(3.0, ge=1, description="classifier-free guidance to draw with")


def small_model(prompts: Iterable[str], image_shape: Sequence[int], params: SmallModelParams) -> TextToImageTarget:
    """A freshly initialised model (the caller has seeded torch) whose vocabulary is the words of ``prompts``.

    Args:
        image_shape: (C, H, W) with H = W, a multiple of 2^(levels - 1).

    Raises:
        UsageError: images of that shape cannot be halved so often.
    """
    require_diffusers()
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    colours, height, width = image_shape
    levels = len(params.channels)
    if height != width or height % 2 ** (levels - 1):
        raise UsageError(
            f"images of {height}x{width} cannot be halved {levels - 1} times", fix="use square ones, or fewer UNet channels"
        )
    tokenizer = word_tokenizer(prompts)
    vocabulary = tokenizer.get_vocab()
    ids = {name: vocabulary[text] for name, text in _SPECIAL.items()}
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=params.text_width,
        intermediate_size=4 * params.text_width,
        num_hidden_layers=params.text_layers,
        num_attention_heads=max(1, params.text_width // 16),
        max_position_embeddings=params.max_tokens,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["eos"],
    )
    unet = UNet2DConditionModel(
        sample_size=height,
        in_channels=colours,
        out_channels=colours,
        block_out_channels=params.channels,
        layers_per_block=1,
        # At larger sizes attention costs most of the time of so small a model.
        down_block_types=(*["DownBlock2D"] * (levels - 1), "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", *["UpBlock2D"] * (levels - 1)),
        cross_attention_dim=params.text_width,
        attention_head_dim=2,  # diffusers reads it as the number of heads
        norm_num_groups=8,
    )
    # Velocities, as in Stable Diffusion 2: at high noise, where the drawing is decided, predicting the noise teaches next to nothing.
    # No clipping of the drawing: under guidance, on images with a black background, the clipped steps add up to another picture.
    scheduler = DDIMScheduler(
        num_train_timesteps=params.timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    parts: dict[str, Any] = {"unet": unet, "text_encoder": CLIPTextModel(text)}
    module = nn.ModuleDict(parts)
    special = {"bos": ids["bos"], "eos": ids["eos"], "pad": ids["eos"]}
    return TextToImageTarget(module, tokenizer, special, scheduler, guidance=params.guidance, steps=params.sampling_steps)


def word_tokenizer(prompts: Iterable[str]) -> Tokenizer:
    """One token for each word and punctuation mark of ``prompts``, lower-cased; what is new later is unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for text in prompts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL.values(), *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unknown"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    return tokenizer
