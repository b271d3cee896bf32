"""Classifiers behind a diffusion model, and the attack on them that never differentiates the drawing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from robustkd.attacks.image.gradient.diff_protect import DiffProtect, ScoreDistillation
from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import Batch, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import WrappedTarget
from robustkd.defenses.diffusion.small import SmallModelParams, small_model, word_tokenizer
from robustkd.evaluation.images import evaluate_attack
from robustkd.targets import ClassifierTarget, load_target, save_target
from robustkd.targets.redrawn import PurifiedTarget
from robustkd.targets.text_to_image import TextToImageTarget
from support.campaigns import tiny_campaign
from support.toy_text_to_image import Words

CAMPAIGN = tiny_campaign(
    "imitation",
    {
        "drawing": "{kind: text-to-image-pretrain, channels: [8, 16], steps: 3, text_width: 16}",
        "classifier": "{kind: standard, model: tiny-cnn, epochs: 1}",
        "imitated": "{kind: sdedit, drawing: drawing, classifier: classifier, strength: 0.5}",
    },
    {"diff-protect": "{kind: diff-protect, steps: 2}"},
    train=200,
    matrix="{exclude: [{defense: classifier}]}",
)
SIZES = SmallModelParams(max_tokens=8, text_width=16, text_layers=1, channels=(8, 16), timesteps=40, sampling_steps=4)
MEAN, SPREAD = 0.2, 0.5
EPS = ThreatModel("linf", 0.1)


class KnowsAGaussian(nn.Module):
    """The noise that is to be expected in z_t, where every pixel of the latents is normal around MEAN: the best denoiser there is."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, sample_size=4)
        self.register_buffer("kept", kept)

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
        kept = self.kept[t].reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - kept).sqrt() * (z - kept.sqrt() * MEAN) / (kept * SPREAD**2 + 1 - kept))


class Brighter(nn.Module):
    """Class 1 where the image is brighter than the mean picture."""

    def forward(self, images: Tensor) -> Tensor:
        above = (images - (MEAN / 2 + 0.5)).flatten(1).sum(1)
        return torch.stack([-above, above], 1)


def gaussian_drawing() -> TextToImageTarget:
    from diffusers import DDIMScheduler

    tokenizer = word_tokenizer(["anything"])
    scheduler = DDIMScheduler(num_train_timesteps=40, clip_sample=False, set_alpha_to_one=True)
    module = nn.ModuleDict({"unet": KnowsAGaussian(scheduler.alphas_cumprod), "text_encoder": Words(4, 6)})
    module.eval()
    return TextToImageTarget(module, tokenizer, {"bos": 0, "eos": 1, "pad": 1}, scheduler, guidance=1.0, steps=8)


def small_drawing() -> TextToImageTarget:
    torch.manual_seed(0)
    drawing = small_model(["a red shirt"], (1, 8, 8), SIZES)
    drawing.module.eval()
    return drawing


def batch_of(images: Tensor, labels: Tensor) -> Batch:
    return Batch(images, labels, torch.arange(len(images)))


@pytest.fixture
def imitated() -> PurifiedTarget:
    classifier = ClassifierTarget(Brighter(), num_classes=2, input_shape=(1, 4, 4))
    return PurifiedTarget(gaussian_drawing(), classifier, strength=0.25)


def test_an_image_is_redrawn_step_by_step_as_the_sampler_would() -> None:
    drawing = gaussian_drawing()
    scheduler = drawing.scheduler
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    target = PurifiedTarget(drawing, ClassifierTarget(Brighter(), num_classes=2, input_shape=(1, 4, 4)), strength=0.5, seed=5)
    kept, noise = scheduler.alphas_cumprod, torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(5))
    t = 15  # four of eight steps over forty levels are left: 15, 10, 5, 0
    z = kept[t].sqrt() * (2 * images - 1) + (1 - kept[t]).sqrt() * noise
    for t in (15, 10, 5, 0):
        said = drawing.unet(z, torch.tensor([t]), None).sample
        clean = (z - (1 - kept[t]).sqrt() * said) / kept[t].sqrt()
        before = kept[t - 5] if t >= 5 else torch.tensor(1.0)
        z = before.sqrt() * clean + (1 - before).sqrt() * said
    torch.testing.assert_close(target.module.redrawn(images), (z / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_an_answer_does_not_depend_on_the_batch_and_survives_saving(tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=3)
    classifier.module.eval()
    target = PurifiedTarget(small_drawing(), classifier, strength=0.5)
    images = torch.rand(4, 1, 8, 8)
    logits = target(images)
    torch.testing.assert_close(torch.cat([target(image[None]) for image in images]), logits, atol=1e-5, rtol=1e-5)
    assert (logits[0] - classifier(images)[0]).abs().max() > 1e-3
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    torch.testing.assert_close(load_target(tmp_path / "saved")(images), logits, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_drawn_with_the_model_s_guidance() -> None:
    classifier = ClassifierTarget(Brighter(), num_classes=2, input_shape=(1, 8, 8))
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))

    def drawn(prompt: str, guidance: float) -> torch.Tensor:
        drawing = small_drawing()
        drawing.guidance = guidance
        redrawn: torch.Tensor = PurifiedTarget(drawing, classifier, strength=0.5, prompt=prompt).module.redrawn(images)
        return redrawn.detach()

    torch.testing.assert_close(drawn("", 3.0), drawn("", 1.0))
    assert (drawn("a red shirt", 1.0) - drawn("", 1.0)).abs().max() > 1e-5
    assert (drawn("a red shirt", 3.0) - drawn("a red shirt", 1.0)).abs().max() > 1e-5


def test_the_slope_is_what_the_unet_says_pulled_back_through_the_encoder_alone() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    drawing = small_drawing()
    vae = AutoencoderKL(1, 1, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), (8,), latent_channels=1, norm_num_groups=4)
    parts = {"unet": drawing.unet, "text_encoder": drawing.text_encoder, "vae": vae.eval()}
    drawing = TextToImageTarget(nn.ModuleDict(parts), drawing.tokenizer, drawing.special, drawing.scheduler, steps=4)
    images = torch.rand(2, 1, 8, 8)
    rows, rng = torch.arange(2), SampleRng(0, torch.arange(2))
    hidden = drawing.encode(drawing.tokenize([""])).detach()
    passes = SimpleNamespace(forwards=torch.zeros(2), backwards=torch.zeros(2))
    state: Any = SimpleNamespace(x=images, rows=rows)
    nothing: Any = None
    found = ScoreDistillation(drawing, hidden, rng, -1)(passes, state, nothing, 3)  # type: ignore[arg-type]

    draws = rng.fork(3)
    level, noise = draws.integers((), drawing.timesteps), draws.normal((1, 8, 8))
    x = images.clone().requires_grad_()
    z = vae.encode(2 * x - 1).latent_dist.mean * vae.config.scaling_factor
    kept = drawing.scheduler.alphas_cumprod[level].view(-1, 1, 1, 1)
    noisy = (kept.sqrt() * z + (1 - kept).sqrt() * noise).detach()
    velocity = drawing.unet(noisy, level, hidden.expand(2).tokens).sample.detach()
    excess = kept.sqrt() * velocity + (1 - kept).sqrt() * noisy - noise
    (expected,) = torch.autograd.grad((z * excess).sum(), x)
    torch.testing.assert_close(found, -expected)
    assert passes.forwards.tolist() == passes.backwards.tolist() == [1, 1]


@pytest.mark.parametrize(("direction", "sign"), [("up", 1), ("down", -1)])
def test_where_the_best_denoiser_is_known_the_attack_ends_where_theory_says(
    imitated: PurifiedTarget, direction: str, sign: int
) -> None:
    # What is expected of the slope is a multiple of z - MEAN at every noise level: away from the mean picture, or towards it.
    far = torch.where(torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5, 0.15, 0.95)
    attack = DiffProtect(DiffProtect.Params(direction=direction, steps=150))
    labels = imitated(far).argmax(1)
    result = attack.run(imitated, batch_of(far, labels), EPS, SampleRng(0, torch.arange(4)))
    corner = (far + sign * EPS.eps * (far - (MEAN / 2 + 0.5)).sign()).clamp(0, 1)
    standing = ~result.success
    assert standing.any()
    moved = result.adversarial[standing] - far[standing]
    agreed = (moved.sign() == (corner - far)[standing].sign()).float().mean()
    assert agreed > 0.9
    assert (result.adversarial - far).abs().max() <= EPS.eps + 1e-6


def test_its_cost_is_a_pass_a_step_and_what_it_holds_for_broken_is(imitated: PurifiedTarget) -> None:
    near = torch.full((3, 1, 4, 4), MEAN / 2 + 0.5) + torch.tensor([0.004, -0.004, 0.3]).view(3, 1, 1, 1)
    labels = imitated(near).argmax(1)
    attack = DiffProtect(DiffProtect.Params(steps=12, direction="down", restarts=2))
    result = attack.run(WrappedTarget(imitated), batch_of(near, labels), EPS, SampleRng(1, torch.arange(3)))
    assert result.success.tolist() == (imitated(result.adversarial).argmax(1) != labels).tolist()
    assert not result.success[2]
    assert result.forwards[2] == 1 + 2 * (12 + 1)
    assert result.backwards[2] == 2 * 12


def test_the_drawing_can_be_differentiated_as_well(imitated: PurifiedTarget) -> None:
    near = torch.full((2, 1, 4, 4), MEAN / 2 + 0.5) + torch.tensor([0.03, -0.03]).view(2, 1, 1, 1)
    labels = imitated(near).argmax(1)
    assert PGD().run(imitated, batch_of(near, labels), EPS, SampleRng(0, torch.arange(2))).success.all()


def test_a_target_that_draws_nothing_is_refused() -> None:
    target = ClassifierTarget(Brighter(), num_classes=2, input_shape=(1, 4, 4))
    with pytest.raises(TargetError, match=r"'diff-protect' needs denoising, which this target \(classifier\)"):
        evaluate_attack(target, DiffProtect(), batch_of(torch.rand(1, 1, 4, 4), torch.zeros(1).long()), EPS)


def test_a_classifier_of_other_images_is_refused() -> None:
    other = ClassifierTarget(Brighter(), num_classes=2, input_shape=(1, 8, 8))
    with pytest.raises(TargetError, match="draws from"):
        PurifiedTarget(gaussian_drawing(), other, strength=0.5)


def test_a_campaign_of_images_trains_the_drawing_and_attacks_what_stands_behind_it(tmp_path: Path) -> None:
    text = CAMPAIGN.replace("{defense: classifier}", "{defense: classifier}, {defense: drawing}")
    results = run(plan.build(spec.from_text(text, "test.yaml", Path())), tmp_path, InlineEngine(), device="cpu")
    (cell,) = results.cells
    assert (cell.defense, cell.n, results.incomplete) == ("imitated", 20, False)
    assert cell.backward_passes == 2 * round(cell.clean_accuracy * 20)

    reasons = {item.defense: item.reason for item in plan.build(spec.from_text(CAMPAIGN, "test.yaml", Path())).skipped}
    assert reasons["drawing"].startswith("needs logits, which targets of 'drawing' do not have")
