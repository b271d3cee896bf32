"""LoRA weights in a file, added to the UNet and the text encoders of a text-to-image model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustkd.contracts import TargetError
from robustkd.lazy import nn, torch


def merge_lora(parts: nn.ModuleDict, tokenizer: Any, scheduler: Any, file: Path, scale: float) -> None:
    """Add the LoRA weights of a safetensors file to the networks' own, as diffusers reads and fuses them.

    Args:
        parts: ``unet``, ``text_encoder``, of SDXL ``text_encoder_2`` and, of a latent model, ``vae``.
        scale: what the added weights are multiplied with.

    Raises:
        TargetError: peft is not installed, the file does not fit the model, or changes nothing of it.
    """
    import diffusers

    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise TargetError("LoRA files need peft", fix="pip install peft") from error
    named: Any = parts
    common = {"tokenizer": tokenizer, "scheduler": scheduler, "vae": getattr(named, "vae", None)}
    tuned = {name: named[name] for name in parts if name != "vae"}
    pipeline: Any = (
        diffusers.StableDiffusionXLPipeline(**common, **tuned, tokenizer_2=tokenizer, add_watermarker=False)
        if "text_encoder_2" in tuned
        else diffusers.StableDiffusionPipeline(
            **common, **tuned, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    )
    before = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
        pipeline.fuse_lora(components=list(tuned), lora_scale=scale)
        pipeline.unload_lora_weights()
    except Exception as error:  # diffusers and peft raise whatever they meet in a file
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TargetError(
            f"the LoRA file {file} does not fit the model: {said}", fix="give the model that it was trained on"
        ) from error
    after = parts.state_dict()
    if before.keys() != after.keys() or all(torch.equal(tensor, after[name]) for name, tensor in before.items()):
        raise TargetError(f"the LoRA file {file} changes nothing of the model", fix="give the model that it was trained on")
