"""AdvUnlearn: ESD against adversarial prompts, in the text encoder (Zhang et al. 2024, equation 5 and algorithm 1).

    min_theta  E ||eps_theta(z_t | d* + c) - [eps_0(z_t) - eta (eps_0(z_t | c) - eps_0(z_t))]||^2
               + retain E ||eps_theta(z_t | c') - eps_0(z_t | c')||^2
    d* = argmin_d  ||eps_theta(z_t | d + c) - eps_0(z_t | c)||^2

d are embeddings of tokens before the prompt: those that bring the concept back. ``prefix: random`` leaves the search out and takes
the embeddings of tokens drawn at random: the control that tells what the search adds to seeing prefixes at all.

The authors' code trains 200 steps before it attacks, goes on from the prefix of the step before, and keeps five COCO captions at weight 1;
here each step begins with random tokens, from the first one on, and ``retain`` is 0.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import FitContext, Prompts, UsageError
from robustkd.defenses.diffusion.erasing import Erasure, Layers, begin, partially_denoised, tuned
from robustkd.defenses.diffusion.esd import ESDParams, negative_guidance_target, retaining
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import F, torch
from robustkd.targets import frozen
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class AdvUnlearnParams(ESDParams):
    layers: Layers = Field("text-encoder", description="what is tuned")
    retain: float = Field(0.3, ge=0, description="weight of staying with the original on other captions")
    prefix: Literal["attacked", "random"] = Field("attacked", description="what comes before the prompts, see above")
    tokens: int = Field(1, ge=1, description="of the prefix")
    attack_steps: int = Field(30, ge=1, description="of the search for the prefix")
    attack_lr: float = Field(1e-3, gt=0, description="how far each of them moves each number of the embeddings, by its sign")


class AdvUnlearn(TextToImageDefense):
    """Erase the concept from prompts that are under attack."""

    Params = AdvUnlearnParams
    source = "Zhang et al., Defensive unlearning with adversarial training for robust concept erasure, NeurIPS 2024, arXiv:2405.15234"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Tune a copy of the base.

        Raises:
            UsageError: the prompts and the prefix are longer than what the model reads; see also ``erasing.begin``.
            DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        target = erasure.target
        _refuse_long(erasure, p.tokens)

        def loss(generator: torch.Generator) -> Tensor:
            ids = target.tokenize(erasure.forget.draw(p.batch_size, generator))
            with torch.no_grad():
                z, t = partially_denoised(target, target.encode(ids), p.start_guidance, generator)
            prefix = random_prefix(target, len(ids), p.tokens, generator)
            if p.prefix == "attacked":
                prefix = attacked_prefix(erasure, z, t, ids, prefix, p.attack_steps, p.attack_lr)
            hidden = target.encode(embeddings=prefixed(target, ids, prefix))
            wanted = negative_guidance_target(erasure.original, z, t, ids, p.eta)
            forgetting = F.mse_loss(target.unet_output(z, t, hidden).float(), wanted)
            return forgetting + (p.retain * retaining(erasure, p, generator) if p.retain else 0)

        train_steps(context, "erase", tuned(target, p.layers), loss, p)
        return target


def attacked_prefix(erasure: Erasure, z: Tensor, t: Tensor, ids: Tensor, prefix: Tensor, steps: int, lr: float) -> Tensor:
    """(B, k, E), the prefix after ``steps`` sign steps towards what the original sees in z_t for the (B, T) prompts."""
    with torch.no_grad():
        seen = erasure.original.unet_output(z, t, erasure.original.encode(ids)).float()
    with frozen(erasure.target.module):
        for _ in range(steps):
            prefix = prefix.detach().requires_grad_()
            hidden = erasure.target.encode(embeddings=prefixed(erasure.target, ids, prefix))
            # A sum: each prompt's gradient is its own.
            distance = (erasure.target.unet_output(z, t, hidden).float() - seen).square().sum()
            prefix = prefix - lr * torch.autograd.grad(distance, prefix)[0].sign()
    return prefix.detach()


def random_prefix(target: TextToImageTarget, count: int, tokens: int, generator: torch.Generator) -> Tensor:
    """(count, tokens, E), embeddings of tokens of the vocabulary."""
    return target.embed(torch.randint(target.embedding.num_embeddings, (count, tokens), generator=generator)).detach()


def prefixed(target: TextToImageTarget, ids: Tensor, prefix: Tensor) -> Tensor:
    """(B, T, E), the prompts' embeddings with the prefix after the beginning, and less padding."""
    embedded = target.embed(ids)
    return torch.cat([embedded[:, :1], prefix, embedded[:, 1 : embedded.shape[1] - prefix.shape[1]]], dim=1)


def _refuse_long(erasure: Erasure, tokens: int) -> None:
    ids = erasure.target.tokenize(erasure.forget.every())
    longest = int((ids == erasure.target.eos).to(torch.int8).argmax(1).max()) + 1
    if longest + tokens > erasure.target.max_tokens:
        raise UsageError(
            f"a prompt of {longest} tokens and {tokens} before it are more than the {erasure.target.max_tokens} that the model reads",
            fix="lower tokens",
        )
