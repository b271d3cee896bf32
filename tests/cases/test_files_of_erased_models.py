"""Erased models as their authors publish them: a file of the UNet's weights, whole or what was changed of it, and LoRA weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from robustkd.contracts import Request, TargetError
from support.drawing_model import loaded
from support.model_folders import diffusers_pipeline, stable_diffusion

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("models") / "model"
    stable_diffusion(place)
    diffusers.DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(
        place / "scheduler"
    )  # as Stable Diffusion has it
    return place


@pytest.fixture(scope="module")
def erased(folder: Path) -> State:
    """The UNet with other weights in its cross-attention, as ESD-x has them."""
    state = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    torch.manual_seed(1)
    return {name: tensor + 0.3 * torch.randn_like(tensor) if "attn2" in name else tensor for name, tensor in state.items()}


def drawn(folder: Path, **params: Any) -> torch.Tensor:
    picture: torch.Tensor = loaded(folder, **params).respond([Request("a church", seed=7)])[0]
    return picture


def as_diffusers_draws(made: Any) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    picture = made("a church", latents=noise, guidance_scale=7.5, num_inference_steps=3, output_type="pt").images[0]
    return torch.as_tensor(picture)


@pytest.mark.parametrize("before", ["", "module.", "unet.", "state_dict."])
def test_a_file_of_weights_draws_as_diffusers_does_with_them(folder: Path, erased: State, tmp_path: Path, before: str) -> None:
    theirs = diffusers_pipeline(folder)
    theirs.unet.load_state_dict(erased)
    if before == "state_dict.":
        torch.save({"state_dict": erased}, tmp_path / "esd.pt")
    else:
        torch.save({before + name: tensor for name, tensor in erased.items()}, tmp_path / "esd.pt")
    ours = drawn(folder, unet=tmp_path / "esd.pt")
    assert torch.equal(ours, as_diffusers_draws(theirs))
    assert not torch.equal(ours, drawn(folder))


def test_what_was_changed_alone(folder: Path, erased: State, tmp_path: Path) -> None:
    changed = {name: tensor.contiguous() for name, tensor in erased.items() if "attn2" in name}
    save_file(changed, tmp_path / "esd.safetensors")
    torch.save(erased, tmp_path / "whole.pt")
    with pytest.raises(TargetError, match="does not fit the network: it lacks") as refused:
        loaded(folder, unet=tmp_path / "esd.safetensors")
    assert "partial: true" in str(refused.value.fix)
    ours = drawn(folder, unet=tmp_path / "esd.safetensors", partial=True)
    assert torch.equal(ours, drawn(folder, unet=tmp_path / "whole.pt"))


def test_a_text_encoder_of_advunlearn(folder: Path, tmp_path: Path) -> None:
    state = CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict()
    torch.manual_seed(1)
    other = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in state.items()}
    outdated = {"text_encoder.text_model.embeddings.position_ids": torch.arange(12)}
    torch.save({f"text_encoder.{name}": tensor for name, tensor in other.items()} | outdated, tmp_path / "te.pt")
    theirs = diffusers_pipeline(folder)
    theirs.text_encoder.load_state_dict(other)
    assert torch.equal(drawn(folder, text_encoder=tmp_path / "te.pt"), as_diffusers_draws(theirs))


def test_what_does_not_fit_is_named(folder: Path, erased: State, tmp_path: Path) -> None:
    first = next(iter(erased))
    wrong: dict[str, tuple[Any, str]] = {
        "shape.pt": (erased | {first: torch.zeros(3)}, f"differs in shape at {first}"),
        "other.pt": ({"fc.weight": torch.zeros(2, 2)}, "has unknown fc.weight"),
        "compvis.pt": ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, "the names of CompVis' code"),
        "empty.pt": ({"a": 1}, "no state_dict"),
    }
    for name, (content, said) in wrong.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(TargetError) as refused:
            loaded(folder, unet=tmp_path / name, partial=True)
        assert said in str(refused.value), name
        assert name in str(refused.value)
        assert refused.value.fix


def test_lora_weights_of_the_text_encoder(folder: Path, tmp_path: Path) -> None:
    """By hand: the weight and B A."""
    pytest.importorskip("peft")
    torch.manual_seed(4)
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    lora = {f"text_encoder.{layer}.lora_A.weight": down, f"text_encoder.{layer}.lora_B.weight": up}
    save_file(lora, tmp_path / "lora.safetensors")
    before = loaded(folder).text_encoder.state_dict()
    after = loaded(folder, lora=tmp_path / "lora.safetensors").text_encoder.state_dict()
    (name,) = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert name.endswith(f"{layer.removeprefix('text_model.')}.weight")
    torch.testing.assert_close(after[name], before[name] + up @ down, atol=1e-5, rtol=0)


def test_lora_weights_draw_as_diffusers_does_with_them(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trained, theirs = diffusers_pipeline(folder), diffusers_pipeline(folder)
    torch.manual_seed(2)
    trained.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(trained.unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="lora.safetensors")
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    ours = drawn(folder, lora=tmp_path / "lora.safetensors")
    torch.testing.assert_close(ours, as_diffusers_draws(theirs), atol=1e-5, rtol=0)  # merged here, added there
    assert not torch.equal(ours, drawn(folder))
    assert not torch.equal(ours, drawn(folder, lora=tmp_path / "lora.safetensors", lora_scale=0.5))
    save_file({"lora.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(TargetError, match=r"other\.safetensors"):
        loaded(folder, lora=tmp_path / "other.safetensors")
