"""Folders in diffusers' layout: the same pictures as diffusers' own pipeline draws, and what is wrong with a folder is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from robustkd import plugins
from robustkd.contracts import FitContext, Request, RobustkdError, ThreatModel, UsageError
from robustkd.targets.text_to_image import TextToImageTarget
from support.model_folders import tiny_unet, tiny_vae

PNDM = diffusers.PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
)
VELOCITY = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)


def tiny_pipeline(scheduler: Any) -> Any:
    """Stable Diffusion's parts, with a few thousand weights."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "ab", "ab</w>", "cab</w>", *special]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=[("a", "b"), ("a", "b</w>"), ("c", "ab</w>")],
        model_max_length=12,
    )
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=vocabulary.index(special[0]),
        eos_token_id=vocabulary.index(special[1]),
        pad_token_id=vocabulary.index(special[1]),
    )
    unet, vae = tiny_unet(), tiny_vae()
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(PNDM).save_pretrained(place)
    return place


def loaded(folder: Path, **params: Any) -> TextToImageTarget:
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), folder)
    target = plugins.make("defenses", {"kind": "text-to-image", "folder": folder, **params}).fit(context)
    assert isinstance(target, TextToImageTarget)
    return target


@pytest.mark.parametrize("scheduler", [PNDM, VELOCITY], ids=["pndm", "v-prediction"])
def test_the_pictures_are_those_of_diffusers_pipeline(scheduler: Any, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(scheduler)
    pipeline.save_pretrained(tmp_path / "model")
    target = loaded(tmp_path / "model", steps=4, guidance=3.0)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a cab", latents=noise, guidance_scale=3.0, num_inference_steps=4, output_type="np").images[0]
    ours = target.respond([Request("a cab", seed=7)])[0]
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), drawn, atol=1e-4)


def test_prompts_and_latents_are_as_in_stable_diffusion(folder: Path) -> None:
    target = loaded(folder)
    ids = target.tokenize(["A cab ab"])
    assert target.decode(ids[0]) == "a cab ab"
    assert ids.tolist() == CLIPTokenizer.from_pretrained(folder / "tokenizer")(["A cab ab"], padding="max_length").input_ids
    images = torch.rand(2, 3, 16, 16)
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        expected = vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(target.latents(images), expected)


def test_another_unet_takes_the_place_of_the_models_own(folder: Path, tmp_path: Path) -> None:
    erased = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        erased.conv_out.bias.add_(1)
    erased.save_pretrained(tmp_path / "erased")
    own, other = loaded(folder), loaded(folder, unet=tmp_path / "erased")
    torch.testing.assert_close(other.unet.conv_out.bias, own.unet.conv_out.bias + 1)
    assert torch.equal(other.embedding.weight, own.embedding.weight)
    files = plugins.make("defenses", {"kind": "text-to-image", "folder": folder, "unet": tmp_path / "erased"}).files()
    assert tmp_path / "erased" / "diffusion_pytorch_model.safetensors" in files


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda place: shutil.rmtree(place / "text_encoder"), "lacks the part 'text_encoder'"),
        (lambda place: shutil.rmtree(place / "vae"), "lacks the part 'vae'"),
        (lambda place: (place / "unet" / "config.json").unlink(), "has no config.json"),
        (lambda place: (place / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "has no weights"),
        (
            lambda place: (place / "unet" / "diffusion_pytorch_model.safetensors").rename(place / "unet" / "model.bin"),
            "model.bin is pickled and could run code",
        ),
        (lambda place: shutil.rmtree(place), "there is no folder"),
    ],
)
def test_a_folder_with_something_missing_says_what(folder: Path, tmp_path: Path, break_it: Any, message: str) -> None:
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    break_it(place)
    with pytest.raises(UsageError, match=message) as caught:
        loaded(place)
    assert caught.value.fix


def test_a_model_is_a_folder_or_the_hubs(folder: Path) -> None:
    with pytest.raises(RobustkdError, match="give either folder or hub"):
        plugins.make("defenses", {"kind": "text-to-image"})


def test_a_tokenizer_that_was_saved_after_its_use_reads_all_of_a_prompt(folder: Path, tmp_path: Path) -> None:
    """Its file then says to pad and to truncate, as the last call did."""
    place = shutil.copytree(folder, tmp_path / "copy")
    tokenizer = CLIPTokenizer.from_pretrained(place / "tokenizer")
    tokenizer("a", padding="max_length", max_length=4, truncation=True)
    tokenizer.save_pretrained(place / "tokenizer")
    right, found = (loaded(each).tokenize(["a b c d e"]) for each in (folder, place))
    assert torch.equal(found, right)
