"""Checkpoints with the names of CompVis' and Stability's code: whole models (Stable Diffusion 1.x, 2.x, XL), and UNets erased with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from robustkd import plugins
from robustkd.contracts import Request, TargetError, UsageError
from support import compvis_names
from support.drawing_model import loaded
from support.model_folders import sdxl, stable_diffusion

KINDS = ("1.x", "2.x", "xl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    one = stable_diffusion(place / "one")
    return {"1.x": one, "2.x": one, "xl": sdxl(place / "xl")}


def drawn(folder: Path, **params: Any) -> torch.Tensor:
    picture: torch.Tensor = loaded(folder, **params).respond([Request("a b c", seed=7)])[0]
    return picture


def in_one_file(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    first = CLIPTextModel.from_pretrained(folder / "text_encoder")
    state = compvis_names.unet(unet) | compvis_names.vae(vae) | {"betas": torch.zeros(3)}
    if kind == "1.x":
        outdated = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(12)}
        return state | compvis_names.clip(first) | outdated
    if kind == "2.x":
        unused = {"cond_stage_model.model.text_projection": torch.zeros(16, 8)}
        return state | compvis_names.open_clip(first, "cond_stage_model.model.") | unused
    second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    more = compvis_names.clip(first, "conditioner.embedders.0.transformer.")
    return state | more | compvis_names.open_clip(second, "conditioner.embedders.1.model.")


def without_weights(folder: Path, place: Path) -> Path:
    """The folder as ``from_pretrained`` needs it to build the networks."""
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            (place / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (place / file.relative_to(folder)).write_bytes(file.read_bytes())
    return place


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_as_the_folder_it_was_made_from(folders: dict[str, Path], tmp_path: Path, kind: str, suffix: str) -> None:
    state, file = in_one_file(folders[kind], kind), tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    place = without_weights(folders[kind], tmp_path / "model")
    with pytest.raises(UsageError, match="has no weights"):
        loaded(place)
    assert torch.equal(drawn(place, checkpoint=file), drawn(folders[kind]))
    files = plugins.make("defenses", {"kind": "text-to-image", "folder": place, "checkpoint": file}).files()
    assert file in files
    assert place / "unet" / "config.json" in files


def test_what_it_lacks_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = in_one_file(folders["1.x"], "1.x")
    for what, said in (
        ("model.diffusion_model.out.2.bias", r"\(unet\) does not fit the network: it lacks conv_out\.bias"),
        ("first_stage_model.decoder.mid.attn_1.q.weight", r"\(vae\) does not fit the network: it lacks decoder\.mid_block"),
        ("cond_stage_model.", "has no weights of the part 'text_encoder'"),
        ("model.diffusion_model.", "has no weights of the part 'unet'"),
    ):
        save_file(
            {name: each.contiguous() for name, each in whole.items() if not name.startswith(what)},
            tmp_path / "part.safetensors",
        )
        with pytest.raises(TargetError, match=said) as refused:
            loaded(folders["1.x"], checkpoint=tmp_path / "part.safetensors")
        assert "part.safetensors" in str(refused.value)
    save_file({name: each.contiguous() for name, each in whole.items()}, tmp_path / "one.safetensors")
    with pytest.raises(TargetError, match=r"one\.safetensors"):
        loaded(folders["xl"], checkpoint=tmp_path / "one.safetensors")
    with pytest.raises(UsageError, match="is no file of weights"):
        loaded(folders["1.x"], checkpoint=tmp_path / "none.safetensors")


@pytest.mark.parametrize("before", ["", "model.diffusion_model.", "state_dict.model.diffusion_model."])
def test_an_erased_unet_under_those_names(folders: dict[str, Path], tmp_path: Path, before: str) -> None:
    """As UnlearnDiffAtk's and ESD's older files are; beside it there may be the other parts."""
    network = diffusers.UNet2DConditionModel.from_pretrained(folders["1.x"] / "unet")
    torch.manual_seed(1)
    erased = {
        name: tensor + 0.3 * torch.randn_like(tensor) if "attn2" in name else tensor
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(erased)
    torch.save(erased, tmp_path / "right.pt")
    torch.save(compvis_names.unet(network, before) | {"first_stage_model.x": torch.zeros(1)}, tmp_path / "erased.pt")
    ours = drawn(folders["1.x"], unet=tmp_path / "erased.pt")
    assert torch.equal(ours, drawn(folders["1.x"], unet=tmp_path / "right.pt"))
    assert not torch.equal(ours, drawn(folders["1.x"]))


def test_a_part_in_the_place_of_the_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    state = in_one_file(folders["1.x"], "1.x")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    erased = load_file(next((folders["1.x"] / "unet").glob("*.safetensors")))
    erased["conv_out.bias"] += 1
    save_file(erased, tmp_path / "esd.safetensors")
    place = without_weights(folders["1.x"], tmp_path / "model")
    ours = drawn(place, checkpoint=tmp_path / "model.safetensors", unet=tmp_path / "esd.safetensors")
    assert torch.equal(ours, drawn(folders["1.x"], unet=tmp_path / "esd.safetensors"))
