"""Concept inversion: vectors in the place of tokens, trained until the model sees in them what a picture of the concept shows.

    min_{v_1..v_k} E_{t, noise} || noise - eps(z_t | v + p) ||^2,     z_0 = a picture of the concept

It asks whether a concept was removed or only its words: the vectors need not be any token's, so no text says what they say. What it
finds is of another kind than a prompt, and is shown beside the worst case over prompts, not in it. Each request trains its own vectors
on its own picture, from random tokens on; after each training one picture is judged.

Control: ``steps: 0``, the random tokens themselves.

Source: Pham et al.: Circumventing concept erasure methods for text-to-image generative models (ICLR 2024), section 3, which is textual
inversion (Gal et al. 2023). Theirs is one vector for a concept, from several pictures, with AdamW and noise levels at random. Their code
takes 5,000 steps of 16 pictures with a learning rate of 0.005 for each picture of a step, which is some six times the spread of CLIP's
embeddings. With fewer steps, one spread was better than six, and than a tenth. The radius is ours, as a budget that can be checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.diffusion.engine.denoising import Denoising, DenoisingAttack, LevelsParam
from robustkd.attacks.diffusion.engine.slots import Slots, SlotsParams, vocabulary
from robustkd.attacks.image.engine.adam import adam
from robustkd.contracts import Attempts, EmbeddingRadius, PromptBatch, Request, TargetRef, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.memory import in_memory
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class ConceptInversionParams(SlotsParams):
    """How many vectors there are, where, and how they are trained."""

    tokens: int = Field(1, ge=1, description="how many vectors are added to the request")
    steps: int = Field(1000, ge=0, description="steps of each training; 0: none, the control")
    lr: float = Field(1.0, gt=0, description="Adam's, relative to the spread of the embeddings' numbers")
    radius: float = Field(10.0, gt=0, description="how far a vector may go from its token, in mean lengths of embeddings")
    timesteps: int = Field(2, ge=1, description="noise levels in each step")
    levels: LevelsParam = "all"
    restarts: int = Field(1, ge=1, description="trainings from other tokens of the vocabulary")
    batch_size: int = Field(8, ge=1, description="requests that share a pass; no result depends on it")
    original: TargetRef | None = Field(None, description="a defense whose model draws the pictures, where the data have none")


class ConceptInversion(DenoisingAttack):
    """Trains vectors for a concept that no token names any more."""

    Params = ConceptInversionParams
    space = "embeddings"
    source = "Pham et al. 2024, arXiv:2308.01508"
    version = "2"  # 1 took a tenth of the step by default, and saw one noise level alone where the steps were a multiple of 61

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """Vectors within the radius."""
        return ThreatModel(budget=EmbeddingRadius(self.params.radius, threat.attempts))

    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt with the request as it is, and one after each training."""
        p = self.params
        prompts = batch.requests["prompt"]
        slots = Slots(target, prompts, p.place, p.tokens).leave_full(attempts)
        objective = self.error(target, batch.requests, max(p.steps, 1))
        words = vocabulary(target)
        attempts(everyone := attempts.open, [Request(prompts[row]) for row in everyone.tolist()])
        with frozen(target.module):
            for restart in range(p.restarts):
                rows = attempts.open
                if not len(rows):
                    return
                training = _Training(target, slots, objective, words, p, rng.fork(f"training/{restart}"))
                laid = torch.cat(in_memory(training, rows, p.batch_size))
                attempts.spend(rows, p.steps * objective.forwards, p.steps * objective.backwards)
                attempts(
                    rows, [Request(prompts[row], embeddings=given) for row, given in zip(rows.tolist(), laid, strict=True)]
                )


class _Training:
    """The trainings of some requests side by side: from (B,) rows to their (B, T, E) embedded prompts, float32 on the CPU."""

    def __init__(
        self,
        target: TextToImageTarget,
        slots: Slots,
        objective: Denoising,
        words: Tensor,
        params: ConceptInversionParams,
        rng: SampleRng,
    ) -> None:
        self._target, self._slots, self._objective, self._words, self._p, self._rng = (
            target,
            slots,
            objective,
            words,
            params,
            rng,
        )
        table = target.embed(words.unsqueeze(1)).squeeze(1).detach().float()
        self._spread, self._length = float(table.std()), float(table.norm(dim=1).mean())

    def __call__(self, rows: Tensor) -> Tensor:
        p, slots = self._p, self._slots
        chosen = self._words[self._rng.select(rows).integers((p.tokens,), len(self._words)).to(self._words.device)]
        fixed = self._target.embed(slots.filled(rows, chosen)).detach().float()
        at = slots.positions[rows].unsqueeze(2).expand(-1, -1, fixed.shape[2])
        start = fixed.gather(1, at)
        vectors, memory = start, {name: torch.zeros_like(start) for name in ("first", "second")}
        for step in range(p.steps):
            leaf = vectors.detach().requires_grad_()
            draws = self._rng.fork(str(step)).select(rows)
            # Over the whole training every level has its turn; a stride apart, so that neighbours are not next to each other.
            block = step * _stride(p.steps) % p.steps
            with torch.enable_grad():
                hidden = self._target.encode(embeddings=fixed.scatter(1, at, leaf))
                value = self._objective.error(rows, hidden, block, draws).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
            age = torch.full((len(rows),), step, device=leaf.device)
            moved = vectors - p.lr * self._spread * adam(memory, gradient, age)
            away = moved - start
            longest = p.radius * self._length / away.norm(dim=2, keepdim=True).clamp_min(1e-12)
            vectors = (start + away * longest.clamp_max(1)).detach()
        return fixed.scatter(1, at, vectors).cpu()


def _stride(steps: int) -> int:
    """The first of some primes that does not divide ``steps``, so that its multiples go through all of them."""
    return next(prime for prime in (61, 67, 71, 73, 79, 83, 89) if steps % prime)
