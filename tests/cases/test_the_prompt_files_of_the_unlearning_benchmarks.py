"""The benchmarks' files give each request a guidance of its own, name sizes that are not drawn, and have requests that are too long."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from robustkd import plugins
from robustkd.contracts import AttackError, DataError, FitContext, Modality, Prompts, RawData, Request, ThreatModel
from robustkd.data.prompt_lengths import Measure
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.prompts import JudgedAttempts, evaluate_prompt_attack, prepare
from robustkd.judges.labels import sized
from robustkd.targets.text_to_image import TextToImageTarget
from support.blind_judges import SaysNo
from support.command_line import CommandLine
from support.model_folders import PICTURES, clip, stable_diffusion

Command = Callable[..., tuple[int, str]]
# As in I2P: what a picture was made with on the web, and beside it what the benchmark draws with.
I2P = "prompt,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"
ROWS = ("a b c", "a b c", "a b c d e f g h i j k l")


class Never(SaysNo):
    """No picture shows anything."""

    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)


@pytest.fixture
def robustkd(robustkd: CommandLine, tmp_path: Path) -> Command:
    """Call ``robustkd ARGS`` beside a Stable Diffusion and a CLIP of a few weights."""
    stable_diffusion(tmp_path / "model")
    DDIMScheduler(steps_offset=1, clip_sample=False).save_pretrained(tmp_path / "model" / "scheduler")
    clip(tmp_path / "clip")

    def call(*arguments: str) -> tuple[int, str]:
        said = robustkd(*arguments)
        return said.code, said.words

    return call


def loaded(file: Path, **params: object) -> RawData:
    found: RawData = plugins.make("datasets", {"kind": "prompt-csv", "forbidden": {"church": str(file)}, **params}).load()
    return found


def model(folder: Path, **params: object) -> TextToImageTarget:
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), folder)
    target = plugins.make("defenses", {"kind": "text-to-image", "folder": str(folder), "steps": 2, **params}).fit(context)
    assert isinstance(target, TextToImageTarget)
    return target


def pipeline(folder: Path) -> Any:
    """Diffusers' own, from the same folder."""
    made = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_a_request_is_drawn_with_its_own_guidance(robustkd: Command, tmp_path: Path) -> None:
    Path("requests.csv").write_text("prompt,evaluation_seed,evaluation_guidance\na b c,3,1\na b c,3,20\na b c,3,\n")
    asked = loaded(tmp_path / "requests.csv").test.asked()
    assert [question.guidance_scale for question in asked] == [1.0, 20.0, None]
    target = model(tmp_path / "model")
    together = target.respond(asked)
    for question, scale, picture in zip(asked, (1.0, 20.0, 7.5), together, strict=True):
        assert torch.equal(target.respond([question])[0], picture)
        target.guidance = scale
        assert torch.equal(target.respond([Request("a b c", seed=3)])[0], picture)
        target.guidance = 7.5
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_so_are_the_pictures_that_are_judged(robustkd: Command, tmp_path: Path) -> None:
    Path("requests.csv").write_text("prompt,evaluation_seed,evaluation_guidance\na b c,3,1\na b c,3,20\n")
    test, target = loaded(tmp_path / "requests.csv").test, model(tmp_path / "model")
    judges = {"never": Never(Never.Params())}
    batch = prepare(target, test, np.arange(2), judges)
    right = target.respond([Request("a b c", seed=3, guidance_scale=scale) for scale in (1, 20)])
    assert all(torch.equal(*pair) for pair in zip(batch.unattacked.outputs, right, strict=True))
    attack = plugins.make("attacks", {"kind": "no-attack"})
    found = evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(1), judges)
    assert torch.equal(found.adversarial, torch.stack(right))


@pytest.mark.parametrize("scale", ["x", "0.5", "nan", "inf"])
def test_a_guidance_that_is_none(tmp_path: Path, scale: str) -> None:
    (tmp_path / "r.csv").write_text(f"prompt,evaluation_seed,evaluation_guidance\na,1,{scale}\n")
    with pytest.raises(DataError, match=rf"r.csv: request 1 has the guidance '{scale}'"):
        loaded(tmp_path / "r.csv")


def test_sizes_that_are_not_drawn(robustkd: Command, tmp_path: Path) -> None:
    Path("requests.csv").write_text(f"{I2P}a b,1,7,16,16\na b,2,9,16,24\n")
    Path("c.yaml").write_text(PICTURES)
    code, said = robustkd("plan", "c.yaml")
    assert code != 0
    assert "1 of 2 requests are for pictures of another size than 16x16, such as 16x24 of case 1" in said
    Path("c.yaml").write_text(PICTURES.replace("size: 16", "size: 16, other_sizes: draw"))
    code, said = robustkd("plan", "c.yaml")
    assert code == 0, said
    assert "data: 1 of 2 requests of requests.csv are for another size, and drawn at the models' own" in said
    test = loaded(tmp_path / "requests.csv", size=16, other_sizes="draw").test
    assert (test["seed"], test["guidance_scale"]) == (("1", "2"), ("7", "9"))


@pytest.mark.parametrize(
    ("choice", "said", "prompts"),
    [
        ("leave-out", "1 of 3 requests of requests.csv have more than 10 tokens and are left out", ROWS[:2]),
        ("truncate", "1 of 3 requests of requests.csv have more than 10 tokens and are truncated", (*ROWS[:2], ROWS[2][:19])),
    ],
)
def test_a_request_that_is_too_long(
    robustkd: Command, tmp_path: Path, choice: str, said: str, prompts: tuple[str, ...]
) -> None:
    """One of them took every number of the campaign, and the plan said nothing."""
    Path("requests.csv").write_text("\n".join(["prompt,evaluation_seed", *(f"{row},1" for row in ROWS)]) + "\n")
    settings = "size: 16, tokenizer: model/tokenizer, longest: 10"
    Path("c.yaml").write_text(PICTURES.replace("size: 16", settings))
    code, told = robustkd("plan", "c.yaml")
    assert code != 0
    assert "requests.csv have more than 10 tokens, the first is case 2 with 12: 'a b c d" in told
    assert "long: leave-out" in told
    Path("c.yaml").write_text(PICTURES.replace("size: 16", f"{settings}, long: {choice}"))
    code, told = robustkd("plan", "c.yaml")
    assert code == 0, told
    assert f"data: {said}" in told
    code, told = robustkd("run", "c.yaml", "--workers", "0", "--no-track", "--device", "cpu", "--quiet", "--out", "out")
    assert code == 0, told
    assert f"data: {said}" in told
    assert said in Path("out/report.html").read_text()
    results = json.loads(Path("out/results.json").read_text())
    assert results["data"]["n"] == len(prompts)
    raw = loaded(tmp_path / "requests.csv", tokenizer=str(tmp_path / "model" / "tokenizer"), longest=10, long=choice)
    assert raw.test["prompt"] == prompts


def test_lengths_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("prompt,evaluation_seed\na,1\n")
    for key, value in {"long": "truncate", "longest": 10}.items():
        with pytest.raises(DataError, match=f"{key}: {value} has no effect without 'tokenizer'"):
            loaded(tmp_path / "r.csv", **{key: value})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no tokenizer"):
        loaded(tmp_path / "r.csv", tokenizer=str(tmp_path / "empty"))


def test_a_vocabulary_and_its_merges_count_as_the_whole_tokenizer_does(tmp_path: Path) -> None:
    """Stable Diffusion 1.4 has these two files; what CLIP's tokenizer of transformers makes of them is meant."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    texts = ["A cat's  CAT, 12 caté \n cats", "cat", "", "it's 7.5€"]
    right = CLIPTokenizer.from_pretrained(tmp_path)(texts, add_special_tokens=False, return_offsets_mapping=True)
    assert Measure(tmp_path).ends(texts) == [[stop for _, stop in offsets] for offsets in right["offset_mapping"]]


def test_pictures_that_are_not_square(robustkd: Command, tmp_path: Path) -> None:
    place = tmp_path / "model" / "unet"
    UNet2DConditionModel.from_pretrained(place).save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"sample_size": [8, 12]}))
    (picture,) = model(tmp_path / "model").respond([Request("a b", seed=1)])
    assert picture.shape == (3, 16, 24)
    Path("requests.csv").write_text(f"{I2P}a b,1,7,24,16\n")
    Path("c.yaml").write_text(PICTURES.replace("size: 16", "size: [16, 24]"))
    code, said = robustkd("run", "c.yaml", "--workers", "0", "--no-track", "--device", "cpu", "--quiet", "--out", "out")
    assert code == 0, said


def test_each_request_is_drawn_at_its_own_size(robustkd: Command, tmp_path: Path) -> None:
    """To the bit as diffusers does, alone and beside others; what is kept of them has room for all."""
    Path("requests.csv").write_text(f"{I2P}a b c,3,5,24,16\na b c,3,5,16,32\na b c,3,5,,\n")
    asked = loaded(tmp_path / "requests.csv", size=16, other_sizes="by-row").test.asked()
    assert [question.size for question in asked] == [(16, 24), (32, 16), None]
    pictures = model(tmp_path / "model").respond(asked)
    theirs = pipeline(tmp_path / "model")
    for question, picture in zip(asked, pictures, strict=True):
        height, width = question.size or (16, 16)
        noise = torch.randn(1, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(3))
        right = theirs(
            "a b c",
            height=height,
            width=width,
            latents=noise,
            guidance_scale=5,
            num_inference_steps=2,
            output_type="pt",
        )
        assert torch.equal(picture, right.images[0])
    Path("c.yaml").write_text(PICTURES.replace("size: 16", "size: 16, other_sizes: by-row"))
    code, said = robustkd("run", "c.yaml", "--workers", "0", "--no-track", "--device", "cpu", "--quiet", "--out", "out")
    assert code == 0, said
    assert "data: 2 of 3 requests of requests.csv are drawn at another size than 16x16" in said


def test_pictures_of_several_sizes_are_judged_each_as_it_was_drawn(robustkd: Command, tmp_path: Path) -> None:
    Path("requests.csv").write_text(f"{I2P}a b c,3,5,24,16\na b,4,5,16,32\na,5,5,,\n")
    test = loaded(tmp_path / "requests.csv", size=16, other_sizes="by-row").test
    target, seen = model(tmp_path / "model"), []

    class Looking(Never):
        def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
            seen.extend(tuple(picture.shape[1:]) for picture in outputs)
            return super().complied(requests, outputs)

    judges = {"looking": Looking(Looking.Params())}
    batch = prepare(target, test, np.arange(3), judges)
    attack = plugins.make("attacks", {"kind": "random-tokens", "tokens": 1})
    found = evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(2), judges)
    assert set(seen) == {(16, 24), (32, 16), (16, 16)}
    assert found.adversarial.shape == (3, 3, 32, 24)
    assert found.clean is not None
    assert not found.adversarial[0, :, 16:].any()
    assert torch.equal(found.clean[0, :, :16], target.respond(test.asked())[0])
    both = Evaluation.joined([found, replace(found, adversarial=found.adversarial[:, :, :16, :16], clean=None)])
    assert both.adversarial.shape == (6, 3, 32, 24)


def test_judges_of_pictures_take_several_sizes() -> None:
    images = [torch.rand(3, 8, 12), torch.rand(3, 16, 8)]
    found = sized(images, (3, 8, 8))
    assert all(torch.equal(found[row], sized([image], (3, 8, 8))[0]) for row, image in enumerate(images))
    with pytest.raises(DataError, match="several sizes"):
        sized(images, (3, None, None))


@pytest.mark.parametrize("own", ["", "d"])
def test_each_request_is_led_away_from_its_own_negative_prompt(robustkd: Command, tmp_path: Path, own: str) -> None:
    text = "prompt,evaluation_seed,evaluation_guidance,negative_prompt\na b c,3,5,e f\na b c,3,5,\n"
    Path("requests.csv").write_text(text)
    asked = loaded(tmp_path / "requests.csv").test.asked()
    pictures = model(tmp_path / "model", negative_prompt=own).respond(asked)
    theirs = pipeline(tmp_path / "model")
    for picture, negative in zip(pictures, (f"{own}, e f" if own else "e f", own), strict=True):
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        options = {"guidance_scale": 5, "num_inference_steps": 2, "output_type": "pt"}
        assert torch.equal(picture, theirs("a b c", negative_prompt=negative, latents=noise, **options).images[0])
    assert not torch.allclose(*pictures, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("prompt,evaluation_seed,evaluation_guidance,negative_prompt\na,1,1,b\n", "at which it has no effect"),
        (f"{I2P}a,1,7,24,\n", "case 0 has the size '24' x ''"),
        (f"{I2P}a,1,7,24,x\n", "case 0 has the size '24' x 'x'"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "r.csv").write_text(rows)
    with pytest.raises(DataError, match=said):
        loaded(tmp_path / "r.csv", size=16, other_sizes="by-row")


def test_a_size_that_the_model_cannot_draw(robustkd: Command, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a picture of 17x16, and the model draws multiples of 2"):
        model(tmp_path / "model").respond([Request("a", size=(16, 17))])


def test_an_attack_sets_neither_size_nor_negative_prompt(robustkd: Command, tmp_path: Path) -> None:
    Path("requests.csv").write_text("prompt,evaluation_seed\na b c,3\n")
    judges, target = {"never": Never(Never.Params())}, model(tmp_path / "model")
    batch = prepare(target, loaded(tmp_path / "requests.csv").test, np.arange(1), judges)
    for what, asked in (("size", Request("a", size=(16, 16))), ("negative prompt", Request("a", negative_prompt="b"))):
        attempts = JudgedAttempts(target, batch, ThreatModel.by_prompt(1), judges, "mine")
        with pytest.raises(AttackError, match=f"mine sets the {what} of a request"):
            attempts(torch.zeros(1, dtype=torch.int64), [asked])
