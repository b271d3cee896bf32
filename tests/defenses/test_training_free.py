"""Defenses that change how a model draws and none of its weights: each beside diffusers or its formula, and the attack goes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from robustkd.contracts import DataError, Request, TargetError
from robustkd.defenses.diffusion.guards.negative_prompt import NegativePromptSettings, NegativePromptTarget
from robustkd.defenses.diffusion.one_step.drawing import in_one_step
from robustkd.defenses.diffusion.training_free.nasa import NASASettings, NASATarget
from robustkd.defenses.diffusion.training_free.safree import SAFREESettings, SAFREETarget, far_without, projection
from robustkd.defenses.diffusion.training_free.sld import SLDSettings, SLDTarget
from robustkd.targets import load_target, save_target
from robustkd.targets.guarded_drawing import BehindDrawingGuards
from robustkd.targets.text_to_image import TextToImageTarget
from support.drawing_model import loaded
from support.drawing_world import asked, base, fitted
from support.model_folders import diffusers_pipeline, stable_diffusion

SPECS: dict[str, dict[str, Any]] = {
    "nasa": {"negative": "8", "scale": 0.7},
    "sld": {"concept": "8", "warmup": 1},
    "safree": {"concepts": ["8", "eight"]},
}
OFF: dict[str, dict[str, Any]] = {"nasa": {"scale": 0}, "sld": {"scale": 0}, "safree": {"projected": False}}


def altered(kind: str, **params: Any) -> Any:
    return fitted({"kind": kind, "model": "model", **SPECS[kind], **params}, model=base())


@pytest.mark.parametrize("kind", SPECS)
def test_the_control_is_the_model_itself_and_its_weights_are_shared(kind: str) -> None:
    plain = base().respond(requests := [Request("a photo of 8", seed=1), Request("a photo of a pair", seed=2)])
    with_it, without = altered(kind).respond(requests), altered(kind, **OFF[kind]).respond(requests)
    assert all(torch.equal(first, second) for first, second in zip(plain, without, strict=True))
    assert not any(torch.equal(first, second) for first, second in zip(plain, with_it, strict=True))
    assert altered(kind).module is base().module
    assert all(torch.equal(first, second) for first, second in zip(plain, base().respond(requests), strict=True))


@pytest.mark.parametrize("kind", SPECS)
def test_it_comes_back_from_its_file_and_draws_in_one_step_as_well(kind: str, tmp_path: Path) -> None:
    target = altered(kind)
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert isinstance(again, TextToImageTarget)
    assert torch.equal(again.respond([Request("8", seed=1)])[0], target.respond([Request("8", seed=1)])[0])
    single, plain = in_one_step(target), in_one_step(base())
    assert type(single) is type(target)
    # The first step of a drawing is warm-up for SLD here, and there is no other.
    equal = torch.allclose(single.respond([Request("8", seed=1)])[0], plain.respond([Request("8", seed=1)])[0], atol=1e-6)
    assert equal is (kind == "sld")


@pytest.mark.parametrize("kind", SPECS)
def test_a_search_takes_its_gradient_through_it(kind: str) -> None:
    """Against differences; a guard around it does not hide it either."""
    target = altered(kind)
    guarded = BehindDrawingGuards(NegativePromptTarget(target, NegativePromptSettings(negative="9")), 1.0)
    z, t = torch.randn((1, *base().latent_shape), generator=torch.Generator().manual_seed(0)), torch.tensor([30])
    embedded = base().embed(base().tokenize(["a photo of eight"])).detach()

    def output(model: TextToImageTarget, embeddings: torch.Tensor) -> torch.Tensor:
        return model.unet_output(z, t, model.encode(embeddings=embeddings))

    assert not torch.allclose(output(target, embedded), output(base(), embedded))
    away = torch.zeros_like(embedded)
    away[:, 2] = torch.randn(away.shape[-1], generator=torch.Generator().manual_seed(1))
    leaf = embedded.clone().requires_grad_()
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((output(target, leaf) * direction).sum(), leaf)
    assert torch.isfinite(gradient).all()
    assert gradient[:, 2].abs().max() > 0
    if kind == "nasa":
        step = 1e-2
        ahead, behind = (float((output(target, embedded + sign * step * away) * direction).sum()) for sign in (1, -1))
        assert float((gradient * away).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=0.05, abs=1e-4)
    with torch.no_grad():
        empty = target.unet_output(z, t, target.encode(target.tokenize(["9"])))
        given = output(target, embedded)
        torch.testing.assert_close(output(guarded, embedded), empty + base().guidance * (given - empty))


def test_the_negative_prompts_attention_of_itself_is_nothing() -> None:
    """At scale 1 the UNet draws as one whose cross-attention is cut out."""
    target = NASATarget(base(), NASASettings(negative="a photo of 8", scale=1.0))
    z, t = torch.randn((2, *base().latent_shape)), torch.tensor([30, 5])
    told = asked(base(), "a photo of 8", "a photo of 8")
    with torch.no_grad():
        found = target.unet_output(z, t, told)
        layers = [module for name, module in base().unet.named_modules() if name.endswith("attn2")]
        hooks = [layer.register_forward_hook(lambda module, args, output: torch.zeros_like(output)) for layer in layers]
        cut = base().unet_output(z, t, told)
        for hook in hooks:
            hook.remove()
    assert layers
    torch.testing.assert_close(found, cut, atol=1e-6, rtol=1e-5)
    half = NASATarget(base(), NASASettings(negative="9", scale=0.0))
    assert torch.equal(half.unet_output(z, t, told), base().unet_output(z, t, told))


def test_safe_latent_guidance_draws_as_diffusers_does(tmp_path: Path) -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_safe.pipeline_stable_diffusion_safe import StableDiffusionPipelineSafe

    folder = stable_diffusion(tmp_path / "model")
    diffusers.DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
    theirs = diffusers_pipeline(folder, StableDiffusionPipelineSafe)
    theirs.safety_concept = "e f"
    plain = loaded(folder)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    for scale, warmup, threshold, size, decay in (
        (1000.0, 1, 0.01, 0.3, 0.4),
        (5000.0, 0, 1.0, 0.5, 0.7),
        (2.0, 0, -0.1, 0.0, 0.0),
    ):
        target = SLDTarget(
            plain,
            SLDSettings(
                concept="e f", scale=scale, warmup=warmup, threshold=threshold, momentum_scale=size, momentum_decay=decay
            ),
        )
        drawn = theirs(
            "a b c",
            latents=start,
            guidance_scale=7.5,
            num_inference_steps=3,
            output_type="np",
            sld_guidance_scale=scale,
            sld_warmup_steps=warmup,
            sld_threshold=threshold,
            sld_momentum_scale=size,
            sld_mom_beta=decay,
        ).images[0]
        (ours,) = target.respond([Request("a b c", seed=7)])
        np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), drawn, atol=2e-5)


def test_a_prompt_that_is_the_concept_itself_is_not_led_away_by_safe_latent_guidance() -> None:
    """|eps(c) - eps(S)| is 0: so it is in diffusers, and the docstring says so."""
    assert torch.equal(altered("sld", warmup=0).respond([Request("8")])[0], base().respond([Request("8")])[0])


def test_triggers_are_projected_as_the_authors_formulas_have_it() -> None:
    """With pseudo-inverses, one token at a time."""
    random = np.random.default_rng(3)
    without, concept = random.normal(size=(5, 16)), random.normal(size=(3, 16))
    project = concept.T @ np.linalg.pinv(concept @ concept.T) @ concept
    np.testing.assert_allclose(projection(torch.from_numpy(concept)).numpy(), project, atol=1e-9)
    distances = np.linalg.norm((np.eye(16) - project) @ without.T, axis=0)
    rule = [bool(distances[i] >= 1.01 * np.delete(distances, i).mean()) for i in range(5)]
    assert far_without(torch.from_numpy(without), torch.from_numpy(concept), 0.01).tolist() == rule
    assert 0 < sum(rule) < 5
    target = SAFREETarget(base(), SAFREESettings(concepts=("8", "eight")))
    ids = base().tokenize([text := "a photo of eight"])
    with torch.no_grad():
        found, plain = target.encode(ids).tokens[0].numpy(), base().encode(ids).tokens[0].numpy()
        soft = target.encode(embeddings=base().embed(ids)).tokens[0].numpy()
        count = len(text.split())
        masked = ids.repeat(count, 1)
        for place in range(count):
            masked[place, 1 + place] = 0
        span = base().encode(masked).tokens[:, count + 1].double().numpy()
        ends = base().encode(base().tokenize(["8", "eight"])).tokens[:, 2].double().numpy()
    np.testing.assert_allclose(found, soft, atol=1e-6)
    of_concept, of_prompt = (rows.T @ np.linalg.pinv(rows @ rows.T) @ rows for rows in (ends, span))
    distances = np.linalg.norm((np.eye(16) - of_concept) @ span.T, axis=0)
    for place in range(len(found)):
        token = place - 1
        inside = 0 <= token < count
        trigger = inside and distances[token] >= 1.01 * np.delete(distances, token).mean()
        expected = (np.eye(16) - of_concept) @ of_prompt @ plain[place] if trigger else plain[place]
        np.testing.assert_allclose(found[place], expected, atol=2e-4)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="is too long"):
        altered("nasa", negative="8 " * 40)
    target, embedded = altered("safree"), base().embed(base().tokenize(["8"])).detach()
    with pytest.raises(TargetError, match="have no end"):
        target.encode(embeddings=embedded + 1)
