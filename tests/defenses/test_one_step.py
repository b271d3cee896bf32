"""Generators that draw in one step: each method's own equation, its fixed point where it is known, and its control."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler

from robustkd import plugins
from robustkd.contracts import DataError, Prompts, Request, UsageError
from robustkd.defenses.diffusion.erasing import ErasingParams, begin
from robustkd.defenses.diffusion.one_step import disback, score_distillation
from robustkd.defenses.diffusion.one_step.boot import signal, signal_step
from robustkd.defenses.diffusion.one_step.consistency.distillation import consistent, segment_ends
from robustkd.defenses.diffusion.one_step.consistency.ict import (
    ICTParams,
    consistency_function,
    karras_levels,
    level_of,
    level_weights,
    levels_in,
    pseudo_huber,
)
from robustkd.defenses.diffusion.one_step.disback import DisBack, shares
from robustkd.defenses.diffusion.one_step.dmd2 import matching_direction
from robustkd.defenses.diffusion.one_step.drawing import ddim, in_one_step
from robustkd.defenses.diffusion.one_step.msd import MSDSettings, MSDTarget, subsets
from robustkd.defenses.diffusion.one_step.pso import preference_loss
from robustkd.defenses.diffusion.one_step.score_distillation import Captions, Models, Noised, distil, moved
from robustkd.defenses.diffusion.one_step.sfd import identity_loss
from robustkd.defenses.training.steps import StepParams, train_steps
from robustkd.defenses.training.turns import Player, train_by_turns
from robustkd.targets import load_target, save_target
from robustkd.targets.text_to_image import TextToImageTarget
from support.drawing_world import asked, base, context, fitted
from support.gaussian_drawing import Linear, gaussian

BY_SCORES = ("swiftbrush", "pg-sb", "dmd2", "disback")
ALL = (*BY_SCORES, "boot", "consistency-distillation", "scott", "hyper-sd", "ict")
QUICK = {"base": "base", "steps": 4, "batch_size": 3, "lr": 1e-3}


def same(first: TextToImageTarget, second: TextToImageTarget) -> bool:
    state = second.module.state_dict()
    return all(torch.equal(weight, state[name]) for name, weight in first.module.state_dict().items())


@pytest.mark.parametrize("kind", [*ALL, "sfd"])
def test_what_is_distilled_draws_in_one_step_and_only_its_unet_has_moved(kind: str) -> None:
    seen: list[Mapping[str, float]] = []
    before = copy.deepcopy(base().module.state_dict())
    spec = {"kind": kind, **QUICK} | ({"degradation_steps": 3} if kind == "disback" else {})
    made = fitted(spec, log=lambda step, metrics: seen.append(metrics), base=base())
    assert (made.steps, made.guidance) == (1, 1.0)
    assert all(math.isfinite(value) for metrics in seen for value in metrics.values())
    noise = torch.randn((1, *made.latent_shape), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        drawn = made.decode_latents(made.predict_x0(noise, torch.tensor([made.timesteps - 1]), asked(made, "8")))
    torch.testing.assert_close(made.respond([Request("8", seed=3)])[0], drawn[0], atol=1e-5, rtol=0)
    changed = {name for name, weight in made.module.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.startswith("unet") for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in base().module.state_dict().items())


@pytest.mark.parametrize(
    "kind", ["hyper-sd", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("swiftbrush", "disback"))]
)
def test_a_distillation_that_is_interrupted_ends_with_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"degradation_steps": 2, "waypoints": 1, "critic_steps": 1}
    spec = {"kind": kind, **QUICK} | (short if kind == "disback" else {})
    whole = fitted(spec, base=base())
    for module in (score_distillation, disback):
        for name, train in (("train_by_turns", train_by_turns), ("train_steps", train_steps)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, partial(train, checkpoint_seconds=0.0))
    told: list[int] = []

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        told.append(step)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(spec, tmp_path, stop, base=base())
    assert same(fitted(spec, tmp_path, base=base()), whole)


def test_players_by_turns_are_as_many_optimisers_each_on_fresh_draws() -> None:
    first, second = (torch.nn.Parameter(torch.tensor([value])) for value in (1.0, -2.0))
    drawn: list[tuple[str, float]] = []

    def loss(name: str, draws: torch.Generator) -> torch.Tensor:
        drawn.append((name, float(torch.rand((), generator=draws))))
        return (first * second - 3).square().sum() + (first if name == "one" else second).sum()

    seen: list[Mapping[str, float]] = []
    settings = StepParams(steps=6, lr=9.0, schedule="cosine")
    players = [
        Player("one", {"w": first}, partial(loss, "one"), 0.1, updates=3),
        Player("two", {"w": second}, partial(loss, "two"), 0.01),
    ]
    train_by_turns(context(log=lambda step, metrics: seen.append(metrics)), "play", players, settings, betas=(0.0, 0.999))
    assert [name for name, _ in drawn] == ["one", "one", "one", "two"] * 6
    assert len({number for _, number in drawn}) == 24
    a, b = (torch.nn.Parameter(torch.tensor([value])) for value in (1.0, -2.0))
    optimisers = {key: torch.optim.AdamW([key], lr=1, weight_decay=0.0, betas=(0.0, 0.999)) for key in (a, b)}
    losses: dict[str, list[float]] = {"one": [], "two": []}
    for step in range(6):
        rate = 0.5 * (1 + math.cos(math.pi * step / 6))
        for name, weight, lr, times in (("one", a, 0.1, 3), ("two", b, 0.01, 1)):
            for _ in range(times):
                value = (a * b - 3).square().sum() + weight.sum()
                losses[name].append(value.item())
                weight.grad = torch.autograd.grad(value, weight)[0]
                optimisers[weight].param_groups[0]["lr"] = lr * rate
                optimisers[weight].step()
    torch.testing.assert_close(first, a)
    torch.testing.assert_close(second, b)
    told = {name: np.mean([metrics[f"{name}_loss"] for metrics in seen]) for name in losses}
    assert told == {name: pytest.approx(np.mean(values)) for name, values in losses.items()}


def noised(models: Models, count: int = 3) -> Noised:
    draws = torch.Generator().manual_seed(5)
    told = Captions.alike(asked(models.teacher, *["8", "a pair", ""][:count]))
    found = score_distillation.pictures(models, told, (0.1, 0.9), draws)
    return Noised(told, found.drawn.detach().requires_grad_(), found.noise, found.t, found.z.detach())


@pytest.mark.parametrize("kind", ["swiftbrush", "pg-sb"])
def test_a_score_that_is_the_teacher_leaves_the_generator_alone(kind: str) -> None:
    method = plugins.make("defenses", {"kind": kind, "base": "base"})
    models = Models.begin(base())
    seen = noised(models)
    (gradient,) = torch.autograd.grad(method.generator_loss(models, seen, torch.Generator()).sum(), seen.drawn)
    assert gradient.abs().max() == 0


def test_dmd2s_direction_is_that_of_two_clean_pictures_each_by_its_own_scale() -> None:
    random = np.random.default_rng(0)
    drawn, real, fake = random.normal(size=(3, 2, 1, 3, 3))
    found = matching_direction(*(torch.from_numpy(array) for array in (drawn, real, fake))).numpy()
    for row in range(2):
        residuals = [drawn[row] - real[row], drawn[row] - fake[row]]
        np.testing.assert_allclose(found[row], (residuals[0] - residuals[1]) / np.abs(residuals[0]).mean())
    models = of_two_minds()
    method = plugins.make("defenses", {"kind": "dmd2", "base": "base", "guidance": 1.0})
    seen = noised(models)
    with torch.no_grad():
        clean = [each.predict_x0(seen.z, seen.t, seen.captions.asked) for each in (models.teacher, models.score)]
        torch.testing.assert_close(
            method.direction(models, seen, torch.Generator()), matching_direction(seen.drawn, clean[0], clean[1])
        )


def of_two_minds() -> Models:
    """A teacher, and a score network that says something else."""
    models = Models.begin(base())
    with torch.no_grad():
        for weight in models.score.unet.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return models


def test_the_gradient_of_a_picture_is_the_direction_over_the_number_of_its_numbers() -> None:
    """SwiftBrush's direction against the noises that diffusers' UNets say, one picture at a time."""
    models = of_two_minds()
    seen = noised(models)
    method = plugins.make("defenses", {"kind": "swiftbrush", "base": "base", "guidance": 2.0})
    (gradient,) = torch.autograd.grad(method.generator_loss(models, seen, torch.Generator()).sum(), seen.drawn)
    empty = asked(base(), "").tokens
    for row in range(3):
        kept = base().scheduler.alphas_cumprod[seen.t[row]]
        noises = []
        for model in (models.teacher, models.score):
            with torch.no_grad():
                said = [
                    model.unet(seen.z[row : row + 1], seen.t[row], tokens).sample[0]
                    for tokens in (seen.captions.asked.tokens[row : row + 1], empty)
                ]
            given, without = (kept.sqrt() * velocity + (1 - kept).sqrt() * seen.z[row] for velocity in said)
            noises.append(without + 2.0 * (given - without))
        expected = (1 - kept) * (noises[0] - noises[1]) / 64
        torch.testing.assert_close(gradient[row], expected, atol=1e-6, rtol=1e-3)
    drawn, direction = torch.randn(2, 4, 1, 8, 8)
    (found,) = torch.autograd.grad(moved(drawn.requires_grad_(), direction).mean(), drawn)
    torch.testing.assert_close(found, direction / (4 * 64))


@pytest.mark.parametrize("kind", BY_SCORES[:3])
@pytest.mark.slow
def test_a_linear_generator_learns_the_mean_and_the_spread_of_a_normal_distribution(kind: str) -> None:
    teacher, score = gaussian(0.6, 0.5), gaussian(0.6, 0.5)
    start = gaussian(-0.8, 1.3, Linear)
    generator = in_one_step(start)
    method = plugins.make(
        "defenses",
        {"kind": kind, "base": "base", **_rates()},
    )
    prompts = Prompts({"prompt": ("a word",)}, np.zeros(1, dtype=np.int64))
    told = context()
    told = type(told)(**{**vars(told), "train": prompts})
    models = Models(teacher, generator, score)
    captions = score_distillation.captions_of(told, teacher, 64)
    distil(told, "distil", models, captions, method, method.params)
    mean, scale = float(generator.unet.mean), float(generator.unet.log_scale.exp())
    assert (mean, scale) == (pytest.approx(0.6, abs=0.1), pytest.approx(0.5, abs=0.12))
    control = plugins.make("defenses", {"kind": "swiftbrush", "base": "base", "score": "noise", **_rates()})
    other = in_one_step(gaussian(-0.8, 1.3, Linear))
    distil(told, "distil", Models(teacher, other, gaussian(0.6, 0.5)), captions, control, control.params)
    assert float(other.unet.log_scale.exp()) < 0.35  # without the score of its pictures it draws the likeliest one alone


def _rates() -> dict[str, Any]:
    return {"steps": 150, "batch_size": 64, "lr": 0.05, "score_lr": 0.1, "schedule": "cosine"}


def test_a_guidance_is_drawn_for_each_picture_from_the_range() -> None:
    """At a range of one value PG-SB is SwiftBrush."""
    models = of_two_minds()
    seen = noised(models)
    plain = plugins.make("defenses", {"kind": "swiftbrush", "base": "base", "guidance": 2.5})
    fixed, wide = (
        plugins.make("defenses", {"kind": "pg-sb", "base": "base", "least_guidance": low, "most_guidance": high})
        for low, high in ((2.5, 2.5), (1.0, 9.0))
    )
    with torch.no_grad():
        expected = plain.direction(models, seen, torch.Generator())
        found = fixed.direction(models, seen, torch.Generator())
        torch.testing.assert_close(found, expected)
        one, other = (wide.direction(models, seen, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.allclose(one, other)
    with pytest.raises(Exception, match="least_guidance 3 is above most_guidance 2"):
        plugins.make("defenses", {"kind": "pg-sb", "base": "base", "least_guidance": 3, "most_guidance": 2})


def test_sfd_has_not_changed_as_a_member() -> None:
    """Its training as it was before there were other members, written out, ends with the same bits."""
    spec = {"kind": "sfd", "base": "base", "steps": 3, "batch_size": 2, "lr": 1e-3, "forget": 0.1}
    erasure = begin(context(base=base()), ErasingParams(base="base"))
    original, generator, score = erasure.original, in_one_step(erasure.target), copy.deepcopy(erasure.original)

    def loss(draws: torch.Generator) -> torch.Tensor:
        erased, kept = erasure.forget.draw(2, draws), erasure.retain.draw(2, draws)
        told = asked(original, *erased, *kept)
        meant = asked(original, *erasure.retain.draw(2, draws), *kept)
        noise, again = (torch.randn((4, *original.latent_shape), generator=draws) for _ in range(2))
        drawn = generator.predict_x0(noise, torch.full((4,), 39), told)
        t = torch.randint(round(0.038 * 40), round(0.712 * 40), (4,), generator=draws)
        fitted_to = score.predict_x0(original.add_noise(drawn.detach(), again, t), t, told)
        fitting = F.mse_loss(fitted_to, drawn.detach(), reduction="none").mean((1, 2, 3))
        z = original.add_noise(drawn, again, t)
        fake = copy.deepcopy(score).predict_x0(z, t, told)
        given, without = (original.predict_x0(z, t, hidden) for hidden in (meant, original.unconditional().expand(4)))
        real = without + 1.5 * (given - without)
        weights = torch.tensor([0.1, 0.1, 1.0, 1.0])
        total = weights * (fitting + identity_loss(drawn, real, fake, 1.2))
        return total.sum() / weights.sum()

    weights = {f"generator/{name}": weight for name, weight in generator.unet.named_parameters()}
    weights |= {f"score/{name}": weight for name, weight in score.unet.named_parameters()}
    train_steps(context(), "distil", weights, loss, plugins.make("defenses", spec).params)
    made = fitted(spec, base=base())
    assert same(made, generator)
    assert not same(fitted({**spec, "updates": "alternating"}, base=base()), generator)
    assert "updates" not in plugins.make("defenses", spec).params.model_dump()  # so that stored cells keep their identity


@pytest.mark.slow
def test_disback_walks_back_from_what_knows_the_generators_pictures_to_the_teacher() -> None:
    spec = {**QUICK, "steps": 6, "degradation_steps": 9, "degradation_lr": 3e-3}
    plain = fitted({"kind": "dmd2", **QUICK, "steps": 6}, base=base())
    assert same(fitted({"kind": "disback", **spec, "waypoints": 0}, base=base()), plain)
    visited: list[TextToImageTarget] = []

    class Noting(DisBack):
        def direction(self, models: Models, seen: Noised, draws: torch.Generator) -> torch.Tensor:
            visited.append(models.teacher)
            return super().direction(models, seen, draws)

    Noting(Noting.Params(**spec, waypoints=2)).fit(context(base=base()))
    assert [visited.index(each) for each in visited] == [0, 0, 2, 2, 4, 4]
    start = in_one_step(base())
    noise = torch.randn((16, *start.latent_shape), generator=torch.Generator().manual_seed(1))
    told = asked(start, *["8", "a pair"] * 8)
    with torch.no_grad():
        drawn = start.predict_x0(noise, torch.full((16,), 39), told)
        t = torch.arange(16) * 2 + 4
        again = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
        errors = [
            float((each.predict_x0(each.add_noise(drawn, again, t), t, told) - drawn).square().mean()) for each in visited[::2]
        ]
    assert errors == sorted(errors)
    assert same(visited[-1], base())
    assert shares(7, 3) == [2, 2, 3]


def test_a_step_of_boot_is_one_of_ddim_and_many_follow_its_equation() -> None:
    target = gaussian(0.0, 0.5)
    scheduler = DDIMScheduler.from_config(target.scheduler.config)
    scheduler.set_timesteps(10)
    noise, y = torch.randn(2, 5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t, s = torch.full((5,), 28), torch.full((5,), 24)
    x = target.add_noise(y, noise, t)
    told = asked(target, *["a word"] * 5)
    with torch.no_grad():
        x0 = target.predict_x0(x, t, told)
        theirs = scheduler.step(target.predict_noise(x, t, told), 28, x).prev_sample
    torch.testing.assert_close(target.add_noise(signal_step(target, y, x0, t, s), noise, s), theirs, atol=1e-5, rtol=1e-4)
    # dx/dt of N(0, s^2) has the solution x_t = x_T sqrt(a_t s^2 + 1 - a_t) / sqrt(a_T s^2 + 1 - a_T).
    fine = gaussian(0.0, 0.5)
    fine.scheduler = DDIMScheduler(num_train_timesteps=4000, beta_start=1e-5, beta_end=3e-3, clip_sample=False)
    fine.unet.alphas = alphas = fine.scheduler.alphas_cumprod
    spread = (alphas * 0.25 + 1 - alphas).sqrt()
    y = (noise * spread[3999] - (1 - alphas[3999]).sqrt() * noise) / alphas[3999].sqrt()
    with torch.no_grad():
        for level in range(3999, 0, -1):
            t = torch.full((5,), level)
            x = fine.add_noise(y, noise, t)
            y = signal_step(fine, y, fine.predict_x0(x, t, told), t, t - 1)
    torch.testing.assert_close(y, 0.5 * noise, atol=2e-2, rtol=0)


def test_boots_generator_begins_as_what_the_teacher_sees_in_noise() -> None:
    noise = torch.randn((2, *base().latent_shape))
    told = asked(base(), "8", "a pair")
    with torch.no_grad():
        torch.testing.assert_close(
            signal(in_one_step(base()), noise, torch.tensor([0, 0]), told),
            base().predict_x0(noise, torch.tensor([39, 39]), told),
        )


def test_a_move_between_levels_is_a_step_of_ddim() -> None:
    """Beside diffusers, with and without fresh noise, and to no noise at all."""
    target = gaussian(0.3, 0.5)
    scheduler = DDIMScheduler.from_config(target.scheduler.config)
    scheduler.set_timesteps(10)
    z, fresh = torch.randn(2, 5, 1, 2, 2)
    told = asked(target, *["a word"] * 5)
    for level, eta in ((28, 0.0), (28, 0.7), (0, 0.0), (0, 0.7)):
        t = torch.full((5,), level)
        with torch.no_grad():
            noise, x0 = target.predict_noise(z, t, told), target.predict_x0(z, t, told)
        theirs = scheduler.step(noise, level, z, eta=eta, variance_noise=fresh).prev_sample
        found = ddim(target, z, x0, t, t - 4 if level else torch.full((5,), -1), eta=eta, noise=fresh)
        torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)


def test_the_end_of_a_segment_is_a_fixed_point_and_one_segment_is_all_levels() -> None:
    z, told = torch.randn((3, *base().latent_shape)), asked(base(), "8", "a pair", "")
    with torch.no_grad():
        assert torch.equal(consistent(base(), z, (t := torch.tensor([20, 5, -1])), t, told), z)
        clean = consistent(base(), z, torch.tensor([20, 5, 39]), torch.full((3,), -1), told)
        torch.testing.assert_close(clean, base().predict_x0(z, torch.tensor([20, 5, 39]), told))
    assert segment_ends(torch.arange(8), 8, 1).tolist() == [8] * 8
    assert segment_ends(torch.arange(8), 8, 4).tolist() == [2, 2, 4, 4, 6, 6, 8, 8]
    assert segment_ends(torch.arange(8), 8, 8).tolist() == list(range(1, 9))


@pytest.mark.parametrize(("kind", "control"), [("scott", {"eta": 0.0, "substeps": 1}), ("hyper-sd", {"segments": [1]})])
@pytest.mark.slow
def test_with_its_idea_taken_out_it_is_consistency_distillation(kind: str, control: dict[str, Any]) -> None:
    plain = fitted({"kind": "consistency-distillation", **QUICK}, base=base())
    assert same(fitted({"kind": kind, **QUICK, **control}, base=base()), plain)
    assert not same(fitted({"kind": kind, **QUICK}, base=base()), plain)
    of_data = fitted({"kind": "consistency-distillation", **QUICK, "states": "data"}, base=base())
    assert not same(of_data, plain)


def test_hyper_sds_segments_grow_and_are_whole() -> None:
    method = plugins.make("defenses", {"kind": "hyper-sd", "base": "base", "steps": 10})
    assert [method.segments(step) for step in range(10)] == [8, 8, 8, 4, 4, 2, 2, 2, 1, 1]
    with pytest.raises(Exception, match="8 levels cannot be cut into 3 equal segments"):
        plugins.make("defenses", {"kind": "hyper-sd", "base": "base", "segments": [3]})


def test_consistency_training_has_the_published_levels_weights_and_loss() -> None:
    p = ICTParams(base="base", steps=80)
    assert [levels_in(step, p) for step in range(0, 80, 10)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert levels_in(79, p) == 1281
    sigmas = karras_levels(0.002, 80.0, 18)
    theirs = [(0.002 ** (1 / 7) + i / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose(sigmas.numpy(), theirs, rtol=1e-10)
    weights = level_weights(sigmas)
    assert float(weights.sum()) == pytest.approx(1)

    def below(sigma: float) -> float:
        return 0.5 * (1 + math.erf((math.log(sigma) + 1.1) / (2.0 * math.sqrt(2))))

    share = [below(theirs[i + 1]) - below(theirs[i]) for i in range(17)]
    np.testing.assert_allclose(weights.numpy(), np.array(share) / sum(share), rtol=1e-8)
    difference = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(pseudo_huber(difference, 0.0), difference.flatten(1).norm(dim=1))
    c = 0.1 * 8
    torch.testing.assert_close(pseudo_huber(difference, 0.1), (difference.flatten(1).norm(dim=1) ** 2 + c**2).sqrt() - c)


def test_a_consistency_function_is_the_picture_itself_at_the_least_noise() -> None:
    p = ICTParams(base="base")
    x, told = torch.randn((2, *base().latent_shape)), asked(base(), "8", "a pair")
    with torch.no_grad():
        assert torch.equal(consistency_function(base(), x, torch.full((2, 1, 1, 1), p.sigma_min), told, p), x)
        noise = torch.randn(x.shape)
        most = consistency_function(base(), p.sigma_max * noise, torch.full((2, 1, 1, 1), p.sigma_max), told, p)
        drawn = in_one_step(base()).predict_x0(noise, torch.tensor([39, 39]), told)
    torch.testing.assert_close(most, drawn, atol=0.02 * float(noise.abs().max()), rtol=0)
    alphas = base().scheduler.alphas_cumprod
    own = ((1 - alphas) / alphas).sqrt()
    inside = own < 80
    torch.testing.assert_close(level_of(base(), own[inside], 80.0), torch.arange(40.0)[inside], atol=1e-3, rtol=0)
    assert float(level_of(base(), torch.tensor([80.0]), 80.0)) == pytest.approx(39)


def test_an_equal_pair_costs_log_2_and_a_better_picture_is_gone_after() -> None:
    drawn, better, worse = torch.randn(3, 4, 1, 8, 8)
    reference = drawn + 0.1 * torch.randn_like(drawn)
    equal = preference_loss(drawn, reference, better=better, worse=better, beta=50.0, sigma=1.0)
    torch.testing.assert_close(equal, torch.full((4,), math.log(2)))
    leaf = drawn.clone().requires_grad_()
    losses = preference_loss(leaf, reference, better=better, worse=worse, beta=2.0, sigma=0.7)
    ratio = [
        [
            float(-(picture[row] - mean[row]).square().mean() / (2 * 0.49))
            for mean in (drawn, reference)
            for picture in (better, worse)
        ]
        for row in range(4)
    ]
    margins = [
        (own_better - theirs_better) - (own_worse - theirs_worse)
        for own_better, own_worse, theirs_better, theirs_worse in ratio
    ]
    expected = [math.log(1 + math.exp(-2.0 * margin)) for margin in margins]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    assert ((gradient * (better - worse)).sum((1, 2, 3)) < 0).all()  # downhill is towards the better one


@pytest.mark.slow
def test_a_preference_erases_from_a_generator_of_one_step_alone() -> None:
    generator = fitted({"kind": "dmd2", **QUICK, "critic_steps": 1}, base=base())
    spec = {"kind": "pso", "base": "base", "steps": 12, "lr": 3e-3, "wording": "captions"}
    erased, control = fitted(spec, base=generator), fitted({**spec, "beta": 0.0}, base=generator)
    with pytest.raises(UsageError, match="draws in 3 steps, and pso tunes generators of one"):
        fitted(spec, base=base())
    moved_by = [
        float((one.respond([Request("7", seed=1)])[0] - generator.respond([Request("7", seed=1)])[0]).abs().mean())
        for one in (erased, control)
    ]
    assert moved_by[0] > 3 * moved_by[1]


def test_each_student_of_msd_learns_from_its_own_captions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}

    def noting(given: Any, name: str, models: Models, draw: Any, method: Any, params: Any) -> None:
        told = [draw(torch.Generator().manual_seed(number)).asked.tokens for number in range(6)]
        every = {text: asked(base(), text).tokens[0] for text in given.train["prompt"]}
        seen[name] = {text for text, one in every.items() if any(bool((part == one).all((1, 2)).any()) for part in told)}

    monkeypatch.setattr("robustkd.defenses.diffusion.one_step.msd.distil", noting)
    made = fitted({"kind": "msd", **QUICK}, base=base())
    train = context().train
    concepts = dict(zip(train["prompt"], train["role"], strict=True))
    assert [{concepts[text] for text in seen[f"student-{number}"]} for number in range(2)] == [{"benign"}, {"forbidden"}]
    assert len(made.students) == 2
    dropped = fitted({"kind": "msd", **QUICK, "drop": True}, base=base())
    assert len(dropped.students) == 1
    assert set(dropped.settings.student_of) == {0, -1}


def test_the_router_sends_a_prompt_to_the_concept_that_it_is_nearest_to(tmp_path: Path) -> None:
    made = fitted({"kind": "msd", **QUICK, "steps": 1}, base=base())
    told = asked(made, "8", "a photo of 1", "three", "nil")
    away = [[float((one - mean).square().sum()) for mean in made.router.means] for one in told.tokens[:, 1:].mean(1)]
    nearest = [distances.index(min(distances)) for distances in away]
    assert made.route(told).tolist() == [made.settings.student_of[place] for place in nearest]
    train = context().train
    names = [name for part in subsets(train, None) for name in part]
    own = asked(made, *train.where("concept", names[2])["prompt"]).tokens[:, 1:].mean((0, 1))
    torch.testing.assert_close(made.router.means[2], own, atol=1e-5, rtol=1e-4)
    save_target(made, tmp_path)
    again = load_target(tmp_path)
    requests = [Request("8", seed=1), Request("1", seed=2)]
    assert all(torch.equal(one, other) for one, other in zip(again.respond(requests), made.respond(requests), strict=True))


def test_a_prompt_is_drawn_by_its_student_and_as_nothing_where_that_is_left_out() -> None:
    first, second = copy.deepcopy(base()), copy.deepcopy(base())
    with torch.no_grad():
        for weight in second.unet.parameters():
            weight.mul_(0.5)
    told, z, t = asked(base(), "8", "1"), torch.randn(2, *base().latent_shape), torch.tensor([3, 20])
    means = told.tokens[:, 1:].mean(1)
    both = MSDTarget(first, MSDSettings(student_of=(0, 1)), [second], means)
    left = MSDTarget(first, MSDSettings(student_of=(0, -1)), [], means)
    with torch.no_grad():
        alone = [
            one.unet_output(z[row : row + 1], t[row : row + 1], told[row : row + 1]) for row, one in ((0, first), (1, second))
        ]
        torch.testing.assert_close(both.unet_output(z, t, told), torch.cat(alone), atol=1e-6, rtol=1e-5)
        empty = first.unet_output(z[1:], t[1:], first.unconditional())
        torch.testing.assert_close(left.unet_output(z, t, told)[1:], empty, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(left.unet_output(z, t, told)[:1], alone[0], atol=1e-6, rtol=1e-5)
    assert all(
        one.unet is other.unet
        for one, other in zip(both.drawing_by(both.scheduler, guidance=1.0, steps=1).students, (first, second), strict=True)
    )


def test_students_that_are_no_partition_are_refused() -> None:
    for students, said in (
        ([["0", "1"]], "'2' has no student|'two' has no student|has no student"),
        ([[str(n) for n in range(10)], ["1"]], "has two students or is no concept"),
    ):
        with pytest.raises(DataError, match=said):
            fitted({"kind": "msd", **QUICK, "students": students}, base=base())
    known = list(dict.fromkeys(context().train["concept"]))
    with pytest.raises(DataError, match="none is left"):
        fitted({"kind": "msd", **QUICK, "students": [known], "drop": True}, base=base())
