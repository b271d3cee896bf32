"""Tiny models in folders, as they come from elsewhere, and the campaigns that load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from support.toy_language_model import toy_language_model

State = dict[str, Tensor]

TEXT = """\
version: 1
name: text
data: {name: behaviors, file: requests.csv}
threat: {attempts: 1}
judges: {refusal: {kind: refusal-match}}
defenses: {elsewhere: {kind: causal-lm, path: model}}
attacks: {direct: {kind: direct}}
checks: none
"""
PICTURES = """\
version: 1
name: pictures
data: {name: prompt-csv, forbidden: {church: requests.csv}, size: 16}
threat: {attempts: 1}
judges: {clip: {kind: clip-score, folder: clip, threshold: 20}}
defenses: {elsewhere: {kind: text-to-image, folder: model, steps: 2}}
attacks: {no-attack: {kind: no-attack}}
checks: none
"""


def language_model(folder: Path, **config: Any) -> Path:
    """A Llama of two layers, in safetensors."""
    made = toy_language_model(("say", "it", "hello"), **config)
    made.module.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def tiny_unet(**other: Any) -> Any:
    """Diffusers' conditional UNet with random weights, of two blocks; ``other`` are its parameters that differ."""
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {"cross_attention_dim": 16, "attention_head_dim": 2, **other}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **config,
    )


def tiny_vae(**other: Any) -> Any:
    """Diffusers' autoencoder with random weights, of 16x16 pictures in four channels of 8x8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **other,
    )


def diffusers_pipeline(folder: Path, kind: Any = None) -> Any:
    """Diffusers' own, of this kind, from the parts in a folder in its layout; default Stable Diffusion's."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer

    made = (kind or diffusers.StableDiffusionPipeline)(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion's parts of a few thousand weights."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes, **ends))
    unet, vae = tiny_unet(), tiny_vae()
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": text, "tokenizer": tokenizer}
    for name, part in (parts | {"scheduler": diffusers.DDIMScheduler()}).items():
        part.save_pretrained(folder / name)
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def sdxl(folder: Path, **index: Any) -> Path:
    """SDXL's parts of a few thousand weights: the second text encoder is wider, and pads with another token.

    Args:
        index: what else ``model_index.json`` says.
    """
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer(pad_token="a")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    # The first one as OpenAI's, whose configuration names another token as eos, and which is read by the highest id.
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": 1}
    first = CLIPTextConfig(hidden_size=16, intermediate_size=32, eos_token_id=2, **sizes, **ends)
    second = CLIPTextConfig(
        hidden_size=24, intermediate_size=32, projection_dim=8, eos_token_id=tokenizer.eos_token_id, **sizes, **ends
    )
    unet = tiny_unet(
        cross_attention_dim=16 + 24,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    vae = tiny_vae(scaling_factor=0.13025)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
    ).save_pretrained(folder)
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | index))
    return folder


def clip_tokenizer(**special: str) -> Any:
    """Letters, and nothing else."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=12, **special)


def clip(folder: Path) -> Path:
    """CLIP of a few thousand weights."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def safety_checker(folder: Path) -> Path:
    """Stable Diffusion's safety checker of a few thousand weights, whose thresholds nothing reaches."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(3)
    made = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=sizes | {"vocab_size": 54}, vision_config=vision, projection_dim=8)
    )
    with torch.no_grad():
        for concepts in (made.concept_embeds, made.special_care_embeds):
            concepts.copy_(torch.randn_like(concepts))
    made.save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    """An encoder of sentences, of a few thousand weights."""
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=4, **sizes)).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "sorry": 1}, "<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>").save_pretrained(folder)
    return folder


def rewritten(folder: Path, change: Callable[[State], State]) -> None:
    """Other tensors in the folder's only file of weights."""
    (file,) = folder.glob("*.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file, {"format": "pt"})
