"""What distilled generators share: drawing in one step, guided predictions, and moves between noise levels.

A noise level is a number t in [0, timesteps); -1 stands for no noise at all, where a_t = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from robustkd.contracts import Prompts
from robustkd.lazy import torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget, scheduler_class

if TYPE_CHECKING:
    from torch import Tensor


def in_one_step(target: TextToImageTarget) -> TextToImageTarget:
    """The same networks, which draw in one step from the last noise level."""
    return in_steps(target, 1, guidance=1.0)


def in_steps(target: TextToImageTarget, steps: int, *, guidance: float) -> TextToImageTarget:
    """The same networks, which draw by DDIM in ``steps`` steps, the first one from the last noise level."""
    scheduler = scheduler_class("DDIMScheduler").from_config(
        target.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    return target.drawing_by(scheduler, guidance=guidance, steps=steps)


def guided(
    target: TextToImageTarget,
    z: Tensor,
    t: Tensor,
    hidden: Conditioning,
    guidance: float | Tensor,
    *,
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor] | None = None,
) -> Tensor:
    """(B, C', H', W') what the target predicts under guidance: the clean latents, or what ``predict`` gives.

    Args:
        guidance: one for all, or (B, 1, 1, 1).
        predict: a method of the target; by default ``predict_x0``.
    """
    ask = predict or target.predict_x0
    given = ask(z, t, hidden)
    if not isinstance(guidance, torch.Tensor) and guidance == 1:
        return given
    with torch.no_grad():
        empty = target.unconditional().expand(len(hidden))
    without = ask(z, t, empty)
    return without + guidance * (given - without)


def one_step_pictures(generator: TextToImageTarget, noise: Tensor, hidden: Conditioning) -> Tensor:
    """(B, C', H', W') the latents that a generator draws from (B, C', H', W') noise; differentiable in its weights."""
    last = torch.full((len(noise),), generator.timesteps - 1, device=generator.device)
    return generator.predict_x0(noise, last, hidden)


def kept(target: TextToImageTarget, t: Tensor) -> Tensor:
    """(B, 1, 1, 1) a_t of (B,) noise levels, 1 where t is -1."""
    alphas = target.scheduler.alphas_cumprod.to(target.device)
    found: Tensor = torch.where(t < 0, torch.ones_like(alphas[:1]), alphas[t.clamp_min(0)])
    return found.reshape(-1, 1, 1, 1)


def ddim(
    target: TextToImageTarget,
    z: Tensor,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """(B, C', H', W') noised latents at the levels s <= t, by the clean ones that are seen in z_t (Song et al. 2021, equation 12).

        z_s = sqrt(a_s) x_0 + sqrt(1 - a_s - v) eps + sqrt(v) noise,    eps = (z_t - sqrt(a_t) x_0) / sqrt(1 - a_t),
        v = eta^2 (1 - a_s) / (1 - a_t) (1 - a_t / a_s)

    Where s is t it is ``z`` itself, and where s is -1 it is ``x0``.

    Args:
        t, s: (B,) noise levels.
        eta: share of fresh ``noise``; 0 is the deterministic step.
    """
    a_t, a_s = kept(target, t), kept(target, s)
    eps = (z - a_t.sqrt() * x0) / (1 - a_t).sqrt()
    if not eta:
        return a_s.sqrt() * x0 + (1 - a_s).sqrt() * eps
    assert noise is not None
    variance = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    return a_s.sqrt() * x0 + (1 - a_s - variance).clamp_min(0).sqrt() * eps + variance.sqrt() * noise


def normal(target: TextToImageTarget, count: int, draws: torch.Generator) -> Tensor:
    """(count, C', H', W') normal noise in the target's type, drawn on the CPU so that it is the same on every device."""
    return torch.randn((count, *target.latent_shape), generator=draws).to(target.device, target.dtype)


def levels(target: TextToImageTarget, count: int, share: tuple[float, float], draws: torch.Generator) -> Tensor:
    """(count,) noise levels, drawn evenly from ``share`` = (lowest, highest) of all levels."""
    low, high = round(share[0] * target.timesteps), max(1, round(share[1] * target.timesteps))
    return torch.randint(low, high, (count,), generator=draws).to(target.device)


def caption_draws(train: Prompts) -> Callable[[int, torch.Generator], list[str]]:
    """A function that draws captions of the training data evenly, with their concepts as they come."""
    captions = train["prompt"]

    def draw(count: int, draws: torch.Generator) -> list[str]:
        rows: list[int] = torch.randint(len(captions), (count,), generator=draws).tolist()
        return [captions[row] for row in rows]

    return draw
