"""SDXL: two text encoders, a vector for the whole prompt, the size of the picture as an input, and zeros for an empty prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustkd import plugins
from robustkd.contracts import FitContext, Judge, Modality, Prompts, Request, TargetError, ThreatModel, UsageError
from robustkd.data import SplitParams, load_splits
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import ClassifierTarget, fingerprint, load_target, save_target
from robustkd.targets.redrawn import PurifiedTarget
from robustkd.targets.text_to_image import TextToImageTarget
from support.drawing_model import loaded
from support.model_folders import sdxl, stable_diffusion

SCHEDULERS: dict[str, Any] = {
    "euler": None,  # the folder's own
    "ddim": diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    "euler-a": diffusers.EulerAncestralDiscreteScheduler(steps_offset=1),
    "dpm++": diffusers.DPMSolverMultistepScheduler(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl(tmp_path_factory.mktemp("models") / "model")


def as_diffusers_draws(folder: Path, prompt: str = "a b c", **options: Any) -> torch.Tensor:
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    return drawn_by(pipeline, prompt, **options)


def drawn_by(pipeline: Any, prompt: str = "a b c", **options: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    settings = {"guidance_scale": 7.5, "num_inference_steps": 3, "generator": [generator]} | options
    picture = pipeline(prompt, latents=noise, output_type="pt", **settings).images[0]
    return torch.as_tensor(picture)


def drawn(target: TextToImageTarget, prompt: str = "a b c", **request: Any) -> torch.Tensor:
    picture: torch.Tensor = target.respond([Request(prompt, seed=7, **request)])[0]
    return picture


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_pictures_are_those_of_diffusers_pipeline_to_the_bit(
    folder: Path, tmp_path: Path, name: str, guidance: float
) -> None:
    place = shutil.copytree(folder, tmp_path / "model")
    if SCHEDULERS[name] is not None:
        SCHEDULERS[name].save_pretrained(place / "scheduler")
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
        place, add_watermarker=False, **({} if SCHEDULERS[name] is None else {"scheduler": SCHEDULERS[name]})
    )
    theirs = drawn_by(pipeline, guidance_scale=guidance)
    assert torch.equal(drawn(loaded(place, guidance=guidance)), theirs)
    assert torch.equal(drawn(loaded(place), guidance_scale=guidance), theirs)


@pytest.mark.parametrize("prompt", ["", "a", "x y z", "b a a", "b c d e f g h i j k", "b <|endoftext|> c", "b? c"])
def test_prompts_that_the_two_tokenizers_read_in_two_ways(folder: Path, prompt: str) -> None:
    assert torch.equal(drawn(loaded(folder), prompt), as_diffusers_draws(folder, prompt))


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_prompt_is_zeros_where_the_pipeline_says_so(tmp_path: Path, zeros: bool) -> None:
    place = sdxl(tmp_path / "model", force_zeros_for_empty_prompt=zeros)
    target = loaded(place)
    assert torch.equal(drawn(target), as_diffusers_draws(place))
    assert bool(target.unconditional().tokens.any()) is not zeros


def test_latents_with_a_mean_and_a_deviation_of_their_own(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "model")
    file = place / "vae" / "config.json"
    own = {"latents_mean": [-1.6, 1.1, 0.3, 0.0], "latents_std": [8.4, 5.9, 2.0, 1.0]}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    target = loaded(place)
    assert torch.equal(drawn(target), as_diffusers_draws(place))
    images = torch.rand(1, 3, 16, 16)
    z = target.vae.encode(2 * images - 1).latent_dist.mode()
    mean, std = (torch.tensor(values).reshape(1, 4, 1, 1) for values in own.values())
    torch.testing.assert_close(target.latents(images), (z - mean) * 0.13025 / std)


def test_embeddings_stand_for_a_prompt_in_both_encoders(folder: Path) -> None:
    target = loaded(folder)
    ids = target.tokenize(["a b c", "c"])
    embeddings = target.embed(ids).detach().requires_grad_()
    assert embeddings.shape == (2, 12, 16 + 24)
    told, by_ids = target.encode(embeddings=embeddings), target.encode(ids)
    assert told.pooled is not None
    assert by_ids.pooled is not None
    torch.testing.assert_close(told.tokens, by_ids.tokens)
    torch.testing.assert_close(told.pooled, by_ids.pooled)
    gradient = torch.autograd.grad(told.pooled.square().sum() + told.tokens.square().sum(), embeddings)[0]
    assert gradient[:, 1, :16].norm() > 0
    assert gradient[:, 1, 16:].norm() > 0
    soft = target.respond([Request("", embeddings=embeddings[0].detach(), seed=7)])[0]
    torch.testing.assert_close(soft, drawn(target), atol=1e-5, rtol=0)
    with pytest.raises(TargetError, match="the embeddings of a prompt have no end"):
        target.encode(embeddings=torch.zeros(1, 12, 40))


def test_it_is_stored_and_read_back(folder: Path, tmp_path: Path) -> None:
    target = loaded(folder)
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    again = load_target(tmp_path / "saved")
    assert isinstance(again, TextToImageTarget)
    assert fingerprint(again) == fingerprint(target)
    assert torch.equal(drawn(again), drawn(target))


def test_its_autoencoder_stays_in_float32_in_half_precision(folder: Path, tmp_path: Path) -> None:
    """It overflows in float16, and says so; diffusers casts it for the decoding."""
    target = loaded(folder, precision="float16")
    assert target.dtype == torch.float16
    assert target.vae.dtype == torch.float32
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    again = load_target(tmp_path / "saved")
    assert isinstance(again, TextToImageTarget)
    assert (again.dtype, again.vae.dtype) == (torch.float16, torch.float32)
    assert again.latents(torch.rand(1, 3, 16, 16)).dtype == torch.float16
    assert loaded(folder, precision="bfloat16").vae.dtype == torch.bfloat16


def test_files_of_erased_parts_and_lora(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    torch.manual_seed(1)
    for part, file in (("unet", "esd.pt"), ("text_encoder_2", "te2.safetensors")):
        network = getattr(theirs, part)
        other = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
        network.load_state_dict(other)
        if file.endswith(".pt"):
            torch.save(other, tmp_path / file)
        else:
            save_file(other, tmp_path / file)
    ours = loaded(folder, unet=tmp_path / "esd.pt", text_encoder_2=tmp_path / "te2.safetensors")
    assert torch.equal(drawn(ours), drawn_by(theirs))
    trained = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    trained.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(trained.unet)
    diffusers.StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="lora.safetensors")
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    ours = loaded(folder, lora=tmp_path / "lora.safetensors")
    torch.testing.assert_close(drawn(ours), drawn_by(theirs), atol=1e-5, rtol=0)  # merged here, added there
    assert not torch.allclose(drawn(ours), drawn(loaded(folder)), atol=1e-3)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda place: shutil.rmtree(place / "tokenizer_2"), "lacks the part 'tokenizer_2'"),
        (lambda place: shutil.rmtree(place / "text_encoder_2"), "lacks the part 'text_encoder_2'"),
        (lambda place: _set(place / "model_index.json", text_encoder=[None, None]), "as SDXL's refiner is"),
        (lambda place: _set(place / "model_index.json", transformer=["diffusers", "X"]), "with the part 'transformer'"),
        (lambda place: _set(place / "unet" / "config.json", addition_embed_type=None), "that of a model with one text encoder"),
        (lambda place: _set(place / "unet" / "config.json", time_cond_proj_dim=8), "latent consistency"),
        (lambda place: _set(place / "unet" / "config.json", in_channels=9), "takes 9 channels and gives 4"),
        (lambda place: _set(place / "unet" / "config.json", addition_embed_type="image"), "addition_embed_type 'image'"),
    ],
)
def test_what_draws_otherwise_is_refused_before_anything_is_run(
    folder: Path, tmp_path: Path, broken: Callable[[Path], None], said: str
) -> None:
    place = shutil.copytree(folder, tmp_path / "model")
    broken(place)
    with pytest.raises(UsageError, match=said) as refused:
        plugins.make("defenses", {"kind": "text-to-image", "folder": place}).files()
    assert refused.value.fix


def test_parts_of_the_two_kinds_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    one = stable_diffusion(tmp_path / "one")
    for params, said in (
        ({"folder": one, "unet": folder / "unet"}, r"that of a model with two text encoders \(SDXL\), and there is one"),
        ({"folder": folder, "unet": one / "unet"}, "that of a model with one text encoder, and there are two"),
        ({"folder": one, "text_encoder_2": folder / "text_encoder_2"}, "no second text encoder"),
    ):
        with pytest.raises(UsageError, match=said):
            plugins.make("defenses", {"kind": "text-to-image", **params}).files()


def _set(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Dark(Judge):
    """Something dark in the first of the colours."""

    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)

    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
        return np.array([float(image[0].mean()) < 0.2 for image in outputs])


def requests() -> Prompts:
    columns = {"prompt": ("a b c", "d e"), "seed": ("7", "8"), "concept": ("church", "church")}
    return Prompts(columns, np.zeros(2, dtype=np.int64), np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32))


ATTACKS: dict[str, dict[str, Any]] = {
    "no-attack": {},
    "random-tokens": {"tokens": 2},
    "seed-search": {},
    "unlearndiffatk": {"tokens": 2, "steps": 2},
    "pez": {"tokens": 2, "steps": 2},
    "p4d": {"tokens": 2, "steps": 2, "original": "original"},
    "p4d-union": {"tokens": 2, "steps": 2, "original": "original"},
    "qf": {"tokens": 2, "steps": 2},
    "ring-a-bell": {"tokens": 2, "population": 4, "generations": 2, "frames": ["{}"]},
    "mma-diffusion": {"tokens": 2, "steps": 2, "width": 4, "top_k": 4},
    "concept-inversion": {"steps": 2},
    "test-cases": {"files": ["found.csv"]},
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_every_attack_on_drawing_models_attacks_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("found.csv").write_text("request,prompt\na b c,x y\na b c,y a\nd e,f\nd e,a f\n")
    judges, target = {"dark": Dark(Dark.Params())}, loaded(folder)
    batch = prepare(target, requests(), np.arange(2), judges)
    attack = plugins.make("attacks", {"kind": kind, **ATTACKS[kind]}).with_targets({"original": loaded(folder)})
    found = evaluate_prompt_attack(target, attack, batch, attack.threat_for(ThreatModel.by_prompt(3)), judges)
    assert (found.outcome.attempts >= (1 if kind == "no-attack" else 2)).all()  # a search may find no other text
    if attack.traits.space == "embeddings":
        return  # what it found is no text that could be given anew
    for row, transcript in enumerate(found.transcripts):
        picture = drawn_for(target, transcript.prompt, transcript.seed)
        torch.testing.assert_close(picture, found.adversarial[row], atol=1e-5, rtol=0)


def drawn_for(target: TextToImageTarget, prompt: str, seed: int | None) -> torch.Tensor:
    picture: torch.Tensor = target.respond([Request(prompt, seed=seed)])[0]
    return picture


def test_every_attack_is_among_those() -> None:
    """A new one is tried on SDXL as well."""
    ours = [name for name in plugins.names("attacks") if plugins.family("attacks", name) is None]
    drawn = {name for name in ours if "text-to-image" in plugins.load("attacks", name).modalities}
    elsewhere = {
        "direct",
        "through-guard",
    }  # the first is no-attack, the other needs a guard: tests/defenses/test_drawing_guards.py
    assert drawn - elsewhere == set(ATTACKS)


ERASERS: dict[str, dict[str, Any]] = {
    "esd": {"steps": 2, "lr": 1e-3, "layers": "text-encoder"},
    "uce": {},
    "salun": {"steps": 2, "lr": 1e-3, "layers": "text-encoder"},
    "advunlearn": {"steps": 2, "lr": 1e-3, "attack_steps": 1},
    "receler": {"steps": 2, "lr": 1e-3, "tokens": 2, "attack_steps": 1, "rank": 4},
    "sfd": {"steps": 2, "lr": 1e-3},
}


@pytest.fixture(scope="module")
def fit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextToImageTarget]:
    captions = load_splits("digit-captions", {"per_concept": 4}, SplitParams(validation=20))
    # Their words are letters here, and their pictures coloured and of the size that the model draws.
    rows = {name: tuple("abcdefghij"[len(text) % 10] for text in captions.train[name]) for name in ("prompt",)}
    columns = {**captions.train.columns, **rows, "concept": tuple(_letter(name) for name in captions.train["concept"])}
    shape = (len(captions.train), 3, 16, 16)
    train = Prompts(columns, captions.train.labels, np.random.default_rng(1).random(shape, dtype=np.float32))
    base = loaded(folder)

    def fitted(spec: dict[str, Any]) -> TextToImageTarget:
        context = FitContext(
            train=train,
            validation=train,
            input_shape=(3, 16, 16),
            num_classes=captions.num_classes,
            threat=ThreatModel.by_prompt(2),
            seed=0,
            device=torch.device("cpu"),
            checkpoints=tmp_path_factory.mktemp("checkpoints"),
            targets={"base": base},
        )
        target = plugins.make("defenses", spec).fit(context)
        assert isinstance(target, TextToImageTarget)
        return target

    return fitted


def _letter(concept: str) -> str:
    return "klmnopqrstuvwxyz"[sum(map(ord, concept)) % 16]


@pytest.mark.parametrize("kind", ERASERS)
def test_every_eraser_changes_it(fit: Callable[..., TextToImageTarget], folder: Path, kind: str) -> None:
    before, after = loaded(folder), fit({"kind": kind, "base": "base", **ERASERS[kind]})
    assert after.second == before.second
    old = before.module.state_dict()
    changed = {
        name.partition(".")[0]
        for name, new in after.module.state_dict().items()
        if name not in old or not torch.equal(old[name], new)
    }
    moved = {"advunlearn": {"text_encoder", "text_encoder_2"}, "receler": {"erasers"}}
    of_text = "text-encoder" in str(ERASERS[kind])
    assert changed == (moved["advunlearn"] if of_text else moved.get(kind, {"unet"}))
    assert torch.isfinite(drawn(after)).all()


def test_a_picture_is_purified_by_it(folder: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    classifier = ClassifierTarget(network, num_classes=2, input_shape=(3, 16, 16))
    target = PurifiedTarget(loaded(folder), classifier, strength=0.6)
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(target(x).sum(), x)
    assert gradient.abs().sum() > 0
