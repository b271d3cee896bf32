"""Guards around models that draw, each beside diffusers or a rule by hand, and the search that knows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessor

from robustkd import plugins
from robustkd.attacks.diffusion.engine.denoising import Denoising, pictures
from robustkd.contracts import (
    FitContext,
    Modality,
    Params,
    Prompts,
    Request,
    TargetError,
    ThreatModel,
    UsageError,
)
from robustkd.contracts.random import SampleRng
from robustkd.defenses.diffusion.guards.negative_prompt import NegativePromptSettings, NegativePromptTarget
from robustkd.defenses.diffusion.guards.prompt_filter import PromptFilterSettings, PromptFilterTarget
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import load_target, save_target
from robustkd.targets.guarded_drawing import BehindDrawingGuards, GuardedDrawing
from robustkd.targets.text_to_image import TextToImageTarget
from robustkd.targets.withheld import Withheld
from support.blind_judges import SaysYes
from support.command_line import CommandLine
from support.model_folders import PICTURES, clip, safety_checker, stable_diffusion
from support.toy_text_to_image import BRIGHT, PICTURE, Drawer, ShowsThePicture, requests, toy

Command = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = stable_diffusion(tmp_path_factory.mktemp("models") / "model")
    diffusers.DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(place / "scheduler")
    return place


def fitted(model_folder: Path, kind: str, **params: Any) -> Any:
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), model_folder)
    plain = {"kind": "text-to-image", "folder": model_folder, "steps": 3, **params.pop("drawing", {})}
    model = plugins.make("defenses", plain).fit(context)
    if kind == "text-to-image":
        return model
    guarded = replace(context, targets={"model": model})
    return plugins.make("defenses", {"kind": kind, "model": "model", **params}).fit(guarded)


def pipeline(folder: Path, **parts: Any) -> Any:
    from transformers import CLIPTextModel, CLIPTokenizer

    made = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
        **({"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} | parts),
    )
    made.set_progress_bar_config(disable=True)
    return made


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


OPTIONS = {"guidance_scale": 7.5, "num_inference_steps": 3, "output_type": "pt"}


def test_a_negative_prompt_draws_as_diffusers_does_with_it(folder: Path) -> None:
    theirs = pipeline(folder)
    for own, params, said in (("", {}, "e f"), ("", {"negative_prompt": "d"}, "d, e f"), ("g", {}, "e f, g")):
        target = fitted(folder, "negative-prompt", negative="e f", drawing=params)
        (ours,) = target.respond([Request("a b c", seed=7, negative_prompt=own)])
        assert torch.equal(ours, theirs("a b c", latents=noise(7), negative_prompt=said, **OPTIONS).images[0])
        if not own:
            assert BehindDrawingGuards(target, 1.0).away == said
    with pytest.raises(TargetError, match="guidance 1, at which a negative prompt has no effect"):
        fitted(folder, "negative-prompt", negative="e f", drawing={"guidance": 1})


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        ("a Church.", True),
        ("churches", False),
        ("a garbage\u00a0 truck", True),
        ("GARBAGE, truck", False),
        ("c\u200bhurch", True),
        ("", False),
    ],
)
def test_a_filter_holds_back_whole_words(prompt: str, held: bool) -> None:
    target = PromptFilterTarget(toy(), PromptFilterSettings(words=("church", "garbage truck")))
    assert target.holds_back(prompt) is held


def test_what_is_held_back_is_black_and_refused(folder: Path) -> None:
    target = fitted(folder, "prompt-filter", words=["b"])
    first, second, third = target.respond([Request("a b", seed=1), Request("a", seed=1), Request("b", size=(16, 24))])
    assert isinstance(first, Withheld)
    assert not first.any()
    assert third.shape == (3, 16, 24)
    assert not isinstance(second, Withheld)
    assert torch.equal(second, fitted(folder, "text-to-image").respond([Request("a", seed=1)])[0])

    class Always(SaysYes):
        modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)

    columns = {"prompt": ("a b", "a"), "seed": ("1", "1"), "concept": ("x", "x")}
    asked, judges = Prompts(columns, np.zeros(2, dtype=np.int64)), {"always": Always(Always.Params())}
    batch = prepare(target, asked, np.arange(2), judges, benign=asked)
    assert batch.benign is not None
    assert batch.benign.complied.tolist() == [False, True]
    found = evaluate_prompt_attack(
        target, plugins.make("attacks", {"kind": "no-attack"}), batch, ThreatModel.by_prompt(1), judges
    )
    assert (found.outcome.success.tolist(), found.outcome.unjudged.tolist()) == ([False, True], [False, False])
    assert "the prompt was held back by the guard prompt-filter" in found.transcripts[0].output


def checker(place: Path, model: Path) -> Path:
    """A safety checker that objects to about half of 12 pictures."""
    safety_checker(place)
    target = fitted(model, "safety-checker", folder=place)
    drawn = torch.stack(target.model.respond([Request("a b c", seed=seed) for seed in range(12)]))
    made = StableDiffusionSafetyChecker.from_pretrained(place)
    with torch.no_grad():
        made.concept_embeds_weights.add_(float(target.picture_alarm(drawn).quantile(0.5)))
    made.save_pretrained(place)
    return place


def test_the_safety_checker_is_diffusers(folder: Path, tmp_path: Path) -> None:
    place = checker(tmp_path / "safety_checker", folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    theirs = pipeline(
        folder,
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(place),
        feature_extractor=processor,
        requires_safety_checker=True,
    )
    target = fitted(folder, "safety-checker", folder=tmp_path)
    drawn = target.respond([Request("a b c", seed=seed) for seed in range(12)])
    flagged = []
    for seed, picture in enumerate(drawn):
        found = theirs("a b c", latents=noise(seed), **OPTIONS)
        flagged += found.nsfw_content_detected
        assert isinstance(picture, Withheld) is found.nsfw_content_detected[0]
        torch.testing.assert_close(torch.as_tensor(picture) + 0, torch.as_tensor(found.images[0]), atol=1e-5, rtol=0)
    assert 0 < sum(flagged) < 12
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    again = load_target(tmp_path / "saved")
    assert isinstance(again, GuardedDrawing)
    assert torch.equal(again.picture_alarm(torch.stack(drawn)), target.picture_alarm(torch.stack(drawn)))  # type: ignore[arg-type]
    x = torch.rand(2, 3, 16, 24, requires_grad=True)
    assert torch.autograd.grad(target.picture_alarm(x).sum(), x)[0].abs().sum() > 0


def test_a_folder_without_a_checker(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        plugins.make("defenses", {"kind": "safety-checker", "model": "model", "folder": tmp_path}).files()
    with pytest.raises(UsageError, match="it has no vision_config"):
        plugins.make("defenses", {"kind": "safety-checker", "model": "model", "folder": folder / "unet"}).files()


JUDGES = {"picture": ShowsThePicture()}
UNAWARE = {"kind": "unlearndiffatk", "tokens": 2, "steps": 8, "lr": 0.1}


def broken(target: Any, spec: dict[str, Any], count: int = 3) -> Any:
    batch = prepare(target, requests(count), np.arange(count), JUDGES)
    attack = plugins.make("attacks", spec)
    return evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(12), JUDGES)


def test_a_filter_is_passed_by_a_search_that_takes_the_requests_place() -> None:
    """The words of the request stay where a search adds to it; and a search that does not know the filter proposes what it holds back."""
    target = PromptFilterTarget(toy("xyzzy", "church"), PromptFilterSettings(words=("church",)))
    assert not broken(target, UNAWARE).outcome.success.any()
    found = broken(target, {"kind": "through-guard", "attack": UNAWARE | {"place": "replace"}})
    assert found.outcome.success.all()
    assert all("xyzzy" in one.prompt and "church" not in one.prompt for one in found.transcripts)
    closed = PromptFilterTarget(target.model, PromptFilterSettings(words=("church", "xyzzy")))
    found = broken(closed, {"kind": "through-guard", "attack": UNAWARE | {"place": "replace"}})
    assert not found.outcome.success.any()
    assert all("xyzzy" not in one.prompt for one in found.transcripts)


class Marking(Drawer):
    """It also draws a mark in one corner, to the extent that the second entries of the tokens say so."""

    mark = torch.zeros(4, 4).index_put((torch.tensor([0]), torch.tensor([0])), torch.tensor(-2.0))

    def forward(self, z: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        seen = super().forward(z, t, encoder_hidden_states).sample
        amount = encoder_hidden_states[..., 1].sum(1).clamp(0, 1).view(-1, 1, 1, 1)
        kept = self.kept[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=seen - kept.sqrt() * amount * self.mark / (1 - kept).sqrt())


class MarkChecker(GuardedDrawing[Params]):
    """Holds back pictures with the mark."""

    kind = "mark-checker"
    Settings = Params

    def picture_alarm(self, pictures: torch.Tensor) -> torch.Tensor:
        return 0.5 - pictures[:, 0, 0, 0]


def marking() -> TextToImageTarget:
    """``word7`` asks for the picture with the mark, ``xyzzy`` for the picture alone."""
    made = toy("xyzzy", "word7")
    table = made.embedding.weight.data
    table[:, 1] = 0
    table[made.tokenizer.token_to_id("word7"), 1] = 1
    module = torch.nn.ModuleDict({"unet": Marking(made.scheduler), "text_encoder": made.text_encoder})
    module.eval()
    return TextToImageTarget(module, made.tokenizer, made.special, made.scheduler, guidance=1.0, steps=4)


def test_a_checker_of_pictures_is_in_the_loss_of_a_search_that_knows_it() -> None:
    """What is aimed at has the mark. So a search for the model alone prefers the word that the checker holds back."""
    target = MarkChecker(marking(), Params())
    marked = ((PICTURE + Marking.mark) / 2 + 0.5).clamp(0, 1)
    assert float((marked - BRIGHT).abs().mean()) < 0.1  # the judge does not mind the mark
    asked = requests(3)
    asked = Prompts(asked.columns, asked.labels, marked.expand(3, 1, 4, 4).numpy().copy())
    seen, rows, rng = BehindDrawingGuards(target, 10.0), torch.arange(3), SampleRng(0, torch.arange(3))
    aim = pictures(seen, asked, None)
    errors = {
        (word, name): Denoising(model, aim, 4).error(rows, model.encode(model.tokenize([word] * 3)), 2, rng)
        for name, model in (("unaware", target.model), ("aware", seen))
        for word in ("word7", "xyzzy")
    }
    torch.testing.assert_close(errors["xyzzy", "aware"], errors["xyzzy", "unaware"])
    torch.testing.assert_close(errors["word7", "unaware"], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(errors["word7", "aware"], torch.full((3,), 10 * 0.5), atol=1e-3, rtol=0)
    assert (errors["xyzzy", "unaware"] > 1e-3).all()
    batch = prepare(target, asked, np.arange(3), JUDGES)
    attack = plugins.make("attacks", {"kind": "through-guard", "weight": 10.0, "attack": UNAWARE | {"tokens": 1}})
    found = evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(12), JUDGES)
    assert found.outcome.success.all()
    assert all("xyzzy" in one.prompt and "word7" not in one.prompt for one in found.transcripts)


def test_the_search_sees_the_drawings_as_they_are_led_away(folder: Path) -> None:
    target = fitted(folder, "negative-prompt", negative="e f")
    model, seen = target.model, BehindDrawingGuards(target, 1.0)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 600])
    hidden, away = model.encode(model.tokenize(["a b", "c"])), model.encode(model.tokenize(["e f"])).expand(2)
    with torch.no_grad():
        given, without = model.unet_output(z, t, hidden), model.unet_output(z, t, away)
        torch.testing.assert_close(seen.unet_output(z, t, hidden), without + 7.5 * (given - without))
        plain = BehindDrawingGuards(model, 1.0)
        assert torch.equal(plain.unet_output(z, t, hidden), given)
    assert isinstance(NegativePromptTarget(model, NegativePromptSettings(negative="d")).away, str)


GUARDED = """
  filtered: {kind: prompt-filter, model: elsewhere, words: [b]}
"""
AWARE = "  through: {kind: through-guard, attack: {kind: pez, tokens: 2, steps: 1, place: replace, original: elsewhere}}\n"


@pytest.mark.parametrize("own", [False, True])
def test_no_number_is_credible_until_a_search_knows_the_guard(
    robustkd: CommandLine,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    only_checks: Callable[..., None],
    own: bool,
) -> None:
    only_checks("guard-not-attacked")
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "clip")
    Path("requests.csv").write_text("prompt,evaluation_seed\na c,1\nc d,2\n")
    guarded = "  filtered: {kind: text-to-image, folder: MODEL, steps: 2, negative_prompt: b}\n" if own else GUARDED
    text = PICTURES.replace("checks: none\n", "").replace("size: 16}", "size: 16, benign: {dog: requests.csv}}")
    plain = "  elsewhere: {kind: text-to-image, folder: MODEL, steps: 2}\n"
    attacks = "  no-attack: {kind: no-attack}\n  unaware: {kind: pez, tokens: 2, steps: 1, original: elsewhere}\n"
    text = text.replace("defenses: {elsewhere: {kind: text-to-image, folder: model, steps: 2}}", f"defenses:\n{plain}{guarded}")
    text = text.replace("attacks: {no-attack: {kind: no-attack}}\n", f"attacks:\n{attacks}")
    text = text.replace("attempts: 1", "attempts: 2").replace("MODEL", str(folder))
    for aware in (False, True):
        Path("c.yaml").write_text(text + AWARE * aware)
        assert robustkd("run", "c.yaml", "--workers", "0", "--no-track", "--quiet", "--out", "out").code == 0
        results = json.loads(Path("out/results.json").read_text())
        rows = {row["defense"]: row for row in results["defenses"]}
        (found,) = [item for item in rows["filtered"]["checks"] if item["name"] == "guard-not-attacked"]
        assert found["fired"] is not aware
        assert (rows["filtered"]["verdict"] == "not credible") is not aware
        (plain,) = [item for item in rows["elsewhere"]["checks"] if item["name"] == "guard-not-attacked"]
        assert not plain["fired"]
