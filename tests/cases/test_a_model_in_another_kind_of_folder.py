"""Folders and files that hold a generative model in another way than ``save_pretrained`` writes it: said by name, or loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from robustkd import plugins
from robustkd.contracts import TargetError
from robustkd.defenses.text import causal_lm
from robustkd.targets import load_target, save_target
from support.model_folders import PICTURES, language_model
from support.toy_language_model import toy_language_model

Command = Callable[..., tuple[int, str, str]]


class Context:
    device = torch.device("cpu")


def loaded(**params: Any) -> Any:
    return plugins.make("defenses", {"kind": "causal-lm", "max_new_tokens": 4, **params}).fit(Context())  # type: ignore[arg-type]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA folder whose weights are not zero."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = get_peft_model(toy_language_model(("say", "it", "hello")).module, config)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_and_stored_with_the_model(tmp_path: Path, adapter: Path) -> None:
    model = language_model(tmp_path / "model")
    plain, tuned = loaded(path=model), loaded(path=model, adapter=adapter)
    laid = tuned.batch([tuned.encode("say it", "hello")])
    with torch.no_grad():
        found = tuned.completion_logprob(laid)
        assert not torch.allclose(found, plain.completion_logprob(laid))
        (tmp_path / "saved").mkdir()
        save_target(tuned, tmp_path / "saved")
        assert torch.equal(load_target(tmp_path / "saved").completion_logprob(laid), found)  # type: ignore[attr-defined]
    files = plugins.make("defenses", {"kind": "causal-lm", "path": model, "adapter": adapter}).files()
    assert adapter / "adapter_model.safetensors" in files


def test_an_adapter_is_no_model(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(TargetError, match=r"adapter is an adapter, which says that it belongs to") as refused:
        loaded(path=adapter)
    assert "this folder as 'adapter'" in str(refused.value.fix)
    model = language_model(tmp_path / "model")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/base"}))
    with pytest.raises(TargetError, match=r"is an adapter beside a model, which says that it belongs to 'somebody/base'"):
        loaded(path=model)


def test_a_model_is_no_adapter_and_another_model_s_adapter_does_not_fit(tmp_path: Path, adapter: Path) -> None:
    model = language_model(tmp_path / "model")
    with pytest.raises(TargetError, match=r"holds no adapter_config\.json"):
        loaded(path=model, adapter=model)
    with pytest.raises(TargetError, match="does not fit the model"):
        loaded(path=language_model(tmp_path / "other", hidden_size=32), adapter=adapter)


def test_a_quantised_model_is_refused_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bitsandbytes leaves it: its weights are no tensors that a network of the same configuration has."""
    whole = causal_lm.pretrained_network

    def quantised(*arguments: Any, **options: Any) -> Any:
        module = whole(*arguments, **options)
        module.is_quantized = True
        return module

    monkeypatch.setattr(causal_lm, "pretrained_network", quantised)
    with pytest.raises(TargetError, match="is quantised"):
        loaded(path=language_model(tmp_path / "model"))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIP"]}, "StableDiffusionXLPipeline"),
        (
            {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer"]},
            "FluxPipeline with the part 'transformer'",
        ),
    ],
)
def test_another_kind_of_diffusion_model_is_refused_by_name_at_plan(
    robustkd: Command, tmp_path: Path, index: dict[str, Any], said: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    assert said in planned(robustkd, tmp_path, PICTURES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("folder: esd.pt", "esd.pt is a single file"),
        ("folder: model, unet: esd.onnx", "esd.onnx is neither the folder of a part nor a file of its weights"),
        ("folder: model, lora: esd.pt", "esd.pt is no safetensors file of LoRA weights"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told_at_plan(robustkd: Command, tmp_path: Path, given: str, said: str) -> None:
    for name in ("esd.pt", "esd.onnx"):
        (tmp_path / name).write_bytes(b"")
    for part in ("tokenizer", "scheduler", "unet", "text_encoder", "vae"):
        (tmp_path / "model" / part).mkdir(parents=True)
        for name in ("config.json", "vocab.json", "model.safetensors"):
            (tmp_path / "model" / part / name).write_text("{}")
    assert said in planned(robustkd, tmp_path, PICTURES.replace("folder: model", given))


def planned(robustkd: Command, folder: Path, text: str) -> str:
    (folder / "requests.csv").write_text("prompt,evaluation_seed\na church,1\n")
    (folder / "c.yaml").write_text(text)
    code, _, err = robustkd("plan", "c.yaml")
    assert code
    return err
