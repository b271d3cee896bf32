"""Weights that cover a network in part: a layer is missing, every name has a prefix, the file is cut off. Never random numbers instead."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, Prompts, Request, RobustkdError, ThreatModel
from support.command_line import CommandLine
from support.model_folders import PICTURES, TEXT, State, clip, encoder, language_model, rewritten, stable_diffusion

Change = Callable[[State], State]


def without_a_layer(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "layers.1." not in name}


def without_two(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in sorted(state)[:2]}


def prefixed(state: State) -> State:
    return {f"te.{name}": tensor for name, tensor in state.items()}


def with_more(state: State) -> State:
    return state | {"model.layers.2.mlp.up_proj.weight": torch.ones(1)}


def of_another_size(state: State) -> State:
    return state | {min(state): torch.ones(3, 3, 3)}


def cut_off(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_bytes(b"")


def fitted(kind: str, place: Path, /, **params: Any) -> Any:
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), place)
    return plugins.make("defenses", {"kind": kind, **params}).fit(context)


def refused(load: Callable[[], Any]) -> str:
    with pytest.raises(RobustkdError) as caught:
        load()
    assert caught.value.fix
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_a_layer, "it lacks model.layers.1.input_layernorm.weight, "),
        (without_a_layer, " and 6 more"),
        (prefixed, "it lacks lm_head.weight, "),
        (prefixed, "it has unknown te.lm_head.weight, "),
        (with_more, "it has unknown model.layers.2.mlp.up_proj.weight"),
        (of_another_size, "it differs in shape at lm_head.weight"),
    ],
)
def test_a_language_model(tmp_path: Path, change: Change, said: str) -> None:
    folder = language_model(tmp_path / "model", tie_word_embeddings=False)
    rewritten(folder, change)
    message = refused(lambda: fitted("causal-lm", tmp_path, path=folder))
    assert f"{folder} does not fit the network" in message
    assert said in message


def test_a_tied_head_may_be_missing(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "model", tie_word_embeddings=True)
    rewritten(folder, lambda state: {name: tensor for name, tensor in state.items() if name != "lm_head.weight"})
    assert fitted("causal-lm", tmp_path, path=folder).respond([Request("say it")])
    rewritten(folder, lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})  # old checkpoints'
    rewritten(
        folder, lambda state: state | {"vision_tower.patch.weight": torch.ones(4)}
    )  # a model of text and images, text alone
    assert fitted("causal-lm", tmp_path, path=folder).respond([Request("say it")])


@pytest.mark.parametrize("damage", [cut_off, empty])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = language_model(tmp_path / "model")
    damage(folder)
    message = refused(lambda: fitted("causal-lm", tmp_path, path=folder))
    assert f"{folder / 'model.safetensors'} is damaged" in message


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("drawing") / "model")


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("change", [without_two, prefixed, with_more, of_another_size, cut_off])
@pytest.mark.parametrize("instead", [False, True])
def test_a_part_of_a_text_to_image_model(drawing: Path, tmp_path: Path, part: str, change: Any, instead: bool) -> None:
    if instead and part == "vae":
        pytest.skip("a VAE comes with its model")
    model = shutil.copytree(drawing, tmp_path / "model")
    folder = shutil.copytree(drawing / part, tmp_path / "other") if instead else model / part
    change(folder) if change is cut_off else rewritten(folder, change)
    message = refused(lambda: fitted("text-to-image", tmp_path, folder=model, **({part: folder} if instead else {})))
    assert str(folder) in message
    says = {without_two: "it lacks ", prefixed: "unknown te.", with_more: "unknown model.layers.2.mlp.up_proj.weight"}
    assert says.get(change, "is damaged" if change is cut_off else "shape") in message


def test_the_whole_model_still_loads(drawing: Path, tmp_path: Path) -> None:
    (picture,) = fitted("text-to-image", tmp_path, folder=drawing, steps=2).respond([Request("a b", seed=1)])
    assert picture.shape == (3, 16, 16)


@pytest.mark.parametrize("change", [without_two, prefixed])
def test_a_judges_clip(tmp_path: Path, change: Change) -> None:
    folder = clip(tmp_path / "clip")
    judge = plugins.make("judges", {"kind": "clip-score", "folder": str(folder), "threshold": 20})
    asked = Prompts({"prompt": ("a",)}, np.zeros(1, dtype=np.int64))
    judge.complied(asked, [torch.rand(3, 16, 16)])
    rewritten(folder, change)
    judge = plugins.make("judges", {"kind": "clip-score", "folder": str(folder), "threshold": 20})
    assert f"{folder} does not fit the network: it lacks " in refused(lambda: judge.complied(asked, [torch.rand(3, 16, 16)]))


def test_a_judges_encoder(tmp_path: Path) -> None:
    from robustkd.judges.sentences import SentenceEncoder

    folder = encoder(tmp_path / "encoder")
    whole = SentenceEncoder(str(folder))(["sorry"])
    # The pooler and a head are not used for the mean of the states.
    rewritten(folder, lambda state: {name: tensor for name, tensor in state.items() if "pooler" not in name})
    rewritten(folder, lambda state: state | {"cls.predictions.bias": torch.ones(4)})
    # Memory that is aligned otherwise is multiplied by another kernel on some processors: the last bit may differ.
    np.testing.assert_allclose(SentenceEncoder(str(folder))(["sorry"]), whole, atol=1e-6)
    rewritten(folder, lambda state: {name: tensor for name, tensor in state.items() if "layer.1." not in name})
    assert "does not fit the network: it lacks encoder.layer.1." in refused(lambda: SentenceEncoder(str(folder)))


@pytest.mark.parametrize(("campaign", "part"), [(TEXT, "."), (PICTURES, "text_encoder")])
def test_the_campaign_has_no_number(robustkd: CommandLine, campaign: str, part: str, tmp_path: Path) -> None:
    Path("requests.csv").write_text("prompt,evaluation_seed\nsay it,1\n")
    Path("c.yaml").write_text(campaign)
    if campaign is TEXT:
        rewritten(language_model(tmp_path / "model"), without_a_layer)
    else:
        clip(tmp_path / "clip")
        rewritten(stable_diffusion(tmp_path / "model") / part, prefixed)
    said = robustkd("run", "c.yaml", "--workers", "0", "--no-track", "--device", "cpu", "--quiet")
    assert said.code == 3
    assert "does not fit the network: it lacks" in said.words
    assert "this is a bug" not in said.words
