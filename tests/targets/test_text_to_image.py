"""Text-to-image targets: what is drawn depends on prompt and seed alone, noise predictions mean what they say, files round-trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robustkd.contracts import DataError, Request, TargetError
from robustkd.defenses.diffusion.small import SmallModelParams, small_model
from robustkd.targets import fingerprint, load_target, save_target
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

SIZES = SmallModelParams(max_tokens=8, text_width=16, text_layers=1, channels=(8, 16), timesteps=40, sampling_steps=3)


@pytest.fixture(scope="module")
def target() -> TextToImageTarget:
    torch.manual_seed(0)
    made = small_model(["A red shirt, worn", "blue boots"], (1, 8, 8), SIZES)
    made.module.eval()
    return made


def test_an_image_depends_on_its_prompt_and_seed_and_not_on_the_batch(target: TextToImageTarget) -> None:
    asked = [
        Request("a red shirt", seed=3),
        Request("blue boots", seed=3),
        Request("a red shirt", seed=4),
        Request("a red shirt"),
    ]
    together = target.respond(asked)
    for question, image in zip(asked, together, strict=True):
        torch.testing.assert_close(target.respond([question])[0], image, atol=1e-5, rtol=0)
        assert image.shape == (1, 8, 8)
        assert 0 <= image.min() <= image.max() <= 1
    distances = [(together[0] - other).abs().max() for other in together[1:]]
    assert min(distances) > 1e-3


def test_the_embeddings_of_a_prompt_stand_for_it_and_carry_gradients(target: TextToImageTarget) -> None:
    ids = target.tokenize(["blue boots", "a red shirt"])
    embeddings = target.embed(ids)
    torch.testing.assert_close(target.encode(embeddings=embeddings).tokens, target.encode(ids).tokens)
    soft = target.respond([Request("", embeddings=embeddings[0], seed=5), Request("a red shirt", seed=5)])
    plain = target.respond([Request("blue boots", seed=5), Request("a red shirt", seed=5)])
    torch.testing.assert_close(torch.stack(soft), torch.stack(plain), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(target.encode(embeddings=embeddings).tokens.square().sum(), embeddings)
    assert gradient[:, 1].norm() > 0


def test_tokens_are_words_between_a_beginning_and_an_end(target: TextToImageTarget) -> None:
    (ids,) = target.tokenize(["A RED shirt, worn"])
    assert ids[0] == target.bos
    assert ids[6:].tolist() == [target.eos, target.pad]
    assert target.decode(ids) == "a red shirt , worn"
    assert target.tokenize([target.decode(ids)]).tolist() == [ids.tolist()]


def test_a_prompt_that_is_too_long_is_refused(target: TextToImageTarget) -> None:
    with pytest.raises(DataError, match="7 tokens is too long, the model reads 6"):
        target.respond([Request("red " * 7)])


def test_guidance_is_the_extrapolation_of_two_predictions(target: TextToImageTarget) -> None:
    """One step from pure noise: z_0 = sqrt(a) z - sqrt(1 - a) v, with the two velocities asked one at a time."""
    z = torch.randn((1, *target.latent_shape), generator=torch.Generator().manual_seed(11))
    one = TextToImageTarget(target.module, target.tokenizer, target.special, target.scheduler, guidance=4.0, steps=1)
    with torch.no_grad():
        given, without = (
            target.unet(z, SIZES.timesteps - 1, target.encode(target.tokenize([text])).tokens).sample
            for text in ("blue boots", "")
        )
    kept = target.scheduler.alphas_cumprod[-1]
    clean = kept.sqrt() * z - (1 - kept).sqrt() * (without + 4.0 * (given - without))
    expected = (clean / 2 + 0.5).clamp(0, 1)[0]
    torch.testing.assert_close(one.respond([Request("blue boots", seed=11)])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_kind_of_prediction_is_told_as_noise(target: TextToImageTarget, kind: str) -> None:
    z0, noise, t = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([5, 30])
    scheduler = type(target.scheduler).from_config(target.scheduler.config, prediction_type=kind)
    told = TextToImageTarget(target.module, target.tokenizer, target.special, scheduler)
    z = told.add_noise(z0, noise, t)
    torch.testing.assert_close(z, scheduler.add_noise(z0, noise, t))
    true = {"epsilon": noise, "v_prediction": scheduler.get_velocity(z0, noise, t), "sample": z0}[kind]
    torch.testing.assert_close(told.training_target(z0, noise, t), true)

    class Knowing(torch.nn.Module):
        def forward(self, latents: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> object:
            return type("Output", (), {"sample": true})

    told.unet = Knowing()
    hidden = Conditioning(torch.zeros(2, 8, 16))
    torch.testing.assert_close(told.predict_noise(z, t, hidden), noise, atol=1e-4, rtol=0)
    torch.testing.assert_close(told.predict_x0(z, t, hidden), z0, atol=1e-4, rtol=0)


def test_a_saved_target_draws_the_same(target: TextToImageTarget, tmp_path: Path) -> None:
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert isinstance(again, TextToImageTarget)
    assert fingerprint(again) == fingerprint(target)
    assert torch.equal(again.respond([Request("blue boots", seed=1)])[0], target.respond([Request("blue boots", seed=1)])[0])


def test_a_card_names_no_other_class_than_a_scheduler(target: TextToImageTarget, tmp_path: Path) -> None:
    card = json.loads(json.dumps(target.card()))
    card["scheduler"]["class"] = "DiffusionPipeline"
    with pytest.raises(TargetError, match="no scheduler 'DiffusionPipeline'"):
        TextToImageTarget.from_card(card)
