"""STEREO: search prompts that bring the concept back until there are enough, then erase them all at once (Srivatsan et al. 2025).

    1. ``rounds`` times    a copy is erased from, as ESD does, of the concept and of the prompts found so far;
                           vectors v_c are trained against it by textual inversion, on the original's own pictures of c: one more prompt
    2. once, from the original, for p each of {c, v_c of round 1, .., v_c of the last}:

        eps_theta(z_t | p)  ->  eps_0(z_t) + anchor (eps_0(z_t | a) - eps_0(z_t)) - eta mean_i (eps_0(z_t | p_i) - eps_0(z_t))

a is a kept text, p_i are all of the prompts of c. ``rounds: 0`` leaves the search out, and with ``anchor: 0`` as well it is ``esd``:
these are its controls.

Of the paper the abstract and the README of its repository were read: the two stages, textual inversion, and that the target is composed of
an anchor and of all prompts that were found. Ours are the mean over these (so that the target does not grow with the rounds), the term for
what is kept, and all numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.erasing import Erasure, begin, partially_denoised, tuned
from robustkd.defenses.diffusion.esd import ESDParams, retaining
from robustkd.defenses.diffusion.noise import noised
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.steps import StepParams, train_steps
from robustkd.lazy import F, nn, torch
from robustkd.targets.frozen import without_gradients
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

_PICTURES = 8


class StereoParams(ESDParams):
    rounds: int = Field(2, ge=0, description="prompts that are searched for, one after the other; 0: the control")
    search_steps: int = Field(100, ge=1, description="updates of the erased copy in each round")
    vectors: int = Field(1, ge=1, description="of a prompt that is searched for, in the place of its words")
    inversion_steps: int = Field(100, ge=1, description="updates of these vectors")
    inversion_lr: float = Field(0.01, gt=0, description="their learning rate")
    anchor: float = Field(1.0, ge=0, description="weight of a kept text that is drawn in the concept's place")


@dataclass(frozen=True, eq=False)
class FoundPrompts:
    """Prompts of vectors: for each of several rounds (C, k, E) vectors of the C concepts."""

    concepts: tuple[str, ...]
    rounds: tuple[Tensor, ...] = ()

    def told(self, target: TextToImageTarget, number: int, places: Tensor) -> Conditioning:
        """What the UNet is told of the prompts of (B,) concepts that round ``number`` has found."""
        return target.encode(embeddings=laid(target, self.rounds[number][places]))


class Stereo(TextToImageDefense):
    """Erase a concept together with the prompts that an attack has found for it."""

    Params = StereoParams
    source = (
        "Srivatsan et al., STEREO: a two-stage framework for adversarially robust concept erasing, CVPR 2025, arXiv:2408.16807"
    )

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Both stages.

        Raises:
            UsageError, DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        found = FoundPrompts(erasure.forget.concepts)
        searched = copy.deepcopy(erasure.target) if p.rounds else erasure.target
        drawn = _pictures(erasure, p) if p.rounds else None
        for number in range(p.rounds):
            assert drawn is not None
            short = p.model_copy(update={"steps": p.search_steps, "anchor": 0.0})
            _erase(
                context, f"search-{number}", Erasure(searched, erasure.original, erasure.forget, erasure.retain), found, short
            )
            vectors = _invert(context, f"invert-{number}", searched, drawn, p)
            found = FoundPrompts(found.concepts, (*found.rounds, vectors))
        _erase(context, "erase", erasure, found, p)
        return erasure.target


def _erase(context: FitContext[Prompts], name: str, erasure: Erasure, found: FoundPrompts, p: StereoParams) -> None:
    """Tune ``erasure.target`` away from the concepts' texts and from all that was found for them."""
    target, original = erasure.target, erasure.original
    place = {text: number for number, texts in enumerate(erasure.forget.texts) for text in texts}

    def loss(draws: torch.Generator) -> Tensor:
        texts = erasure.forget.draw(p.batch_size, draws)
        ids = target.tokenize(texts)
        hidden = target.encode(ids)
        z, t = partially_denoised(target, hidden, p.start_guidance, draws)
        places = torch.tensor([place[text] for text in texts], device=target.device)
        rounds = range(len(found.rounds))
        if len(rounds) and (which := int(torch.randint(len(rounds) + 1, (), generator=draws))):
            hidden = found.told(target, which - 1, places)
        anchor = original.tokenize(erasure.retain.draw(p.batch_size, draws)) if p.anchor else None
        with torch.no_grad():
            negatives = [original.encode(ids), *(found.told(original, number, places) for number in rounds)]
            wanted = composed_target(
                original, z, t, negatives, p.eta, None if anchor is None else original.encode(anchor), p.anchor
            )
        forgetting = F.mse_loss(target.unet_output(z, t, hidden).float(), wanted)
        return forgetting + (p.retain * retaining(erasure, p, draws) if p.retain else 0)

    train_steps(context, name, tuned(target, p.layers), loss, p)


@without_gradients()
def composed_target(
    original: TextToImageTarget,
    z: Tensor,
    t: Tensor,
    negatives: list[Conditioning],
    eta: float,
    anchor: Conditioning | None,
    weight: float,
) -> Tensor:
    """(B, C', H', W') float32, what predictions are led to: away from the mean of the ``negatives``, towards the anchor."""
    without = original.unet_output(z, t, original.unconditional().expand(len(z))).float()
    away = [original.unet_output(z, t, told).float() - without for told in negatives]
    wanted = without - eta * torch.stack(away).mean(0)
    return wanted if anchor is None else wanted + weight * (original.unet_output(z, t, anchor).float() - without)


def _pictures(erasure: Erasure, p: StereoParams) -> Tensor:
    """(C, n, C', H', W') the original's drawings of each concept."""
    original = erasure.original
    empty = original.unconditional() if p.start_guidance != 1 else None
    found = []
    with torch.no_grad():
        for number, texts in enumerate(erasure.forget.texts):
            asked = original.encode(original.tokenize([texts[row % len(texts)] for row in range(_PICTURES)]))
            draws = [torch.Generator().manual_seed(_PICTURES * number + row) for row in range(_PICTURES)]
            found.append(original.denoise(draws, asked, empty, p.start_guidance).to(original.dtype))
    return torch.stack(found)


def _invert(context: FitContext[Prompts], name: str, target: TextToImageTarget, drawn: Tensor, p: StereoParams) -> Tensor:
    """(C, k, E) vectors in which the erased model sees what its original has drawn of each concept."""
    table = target.embedding.weight
    with seeded_init(context, name):
        chosen = torch.randint(table.shape[0], (len(drawn), p.vectors))
    vectors = nn.Parameter(target.embed(chosen).detach().clone().float())

    def loss(draws: torch.Generator) -> Tensor:
        places = torch.randint(len(drawn), (p.batch_size,), generator=draws).to(target.device)
        rows = torch.randint(_PICTURES, (p.batch_size,), generator=draws).to(target.device)
        z0 = drawn[places, rows]
        z, noise, t = noised(target, z0, draws)
        told = target.encode(embeddings=laid(target, vectors[places]))
        return F.mse_loss(target.unet_output(z, t, told), target.training_target(z0, noise, t))

    settings = StepParams(steps=p.inversion_steps, batch_size=p.batch_size, lr=p.inversion_lr, schedule="constant")
    train_steps(context, name, {"vectors": vectors}, loss, settings)
    return vectors.detach()


def laid(target: TextToImageTarget, vectors: Tensor) -> Tensor:
    """(B, T, E) embedded prompts with (B, k, E) vectors in the place of their words."""
    ids = torch.full((len(vectors), target.max_tokens), target.pad, device=target.device)
    ids[:, 0], ids[:, 1 + vectors.shape[1]] = target.bos, target.eos
    embedded = target.embed(ids).detach()
    return torch.cat([embedded[:, :1], vectors.to(embedded), embedded[:, 1 + vectors.shape[1] :]], 1)
