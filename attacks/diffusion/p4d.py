"""P4D: tokens under which the unlearned model predicts what the original one predicts for the request.

    min_{p'} E_{t, noise} || eps_original(z_t | p) - eps(z_t | p' + p) ||^2

The tokens are relaxed as in ``pez``. It needs the original model beside the unlearned one; its pictures are the data's, else what
the original draws.

Source: Chin et al.: Prompting4Debugging (ICML 2024), section 3, as UnlearnDiffAtk's code has it: a few tokens before the request, noise
levels in order. The authors' code draws the noise level at random, takes 3,000 steps, and calls a request broken when one of two
searches breaks it: P4D-N (16 free tokens in the request's place: here ``place: replace, tokens: 16``) or P4D-K (one after every three
words: ``place: every-three-words``). ``p4d-union`` is both, with half of the attempts each.
"""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.diffusion.engine.denoising import Denoising, DenoisingAttack, levels_of, pictures
from robustkd.attacks.diffusion.engine.share import Share
from robustkd.attacks.diffusion.engine.slots import Place
from robustkd.attacks.diffusion.engine.token_search import TokenSearch
from robustkd.attacks.diffusion.pez import DenoisingParams, Nearest
from robustkd.contracts import Attempts, PromptBatch, TargetError, TargetRef, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.text_to_image import TextToImageTarget


class P4DParams(DenoisingParams):
    """The original model, and the settings of the search for tokens by its noise predictions."""

    original: TargetRef = Field(description="the defense whose model still draws the concept", examples=["original"])


class P4D(DenoisingAttack):
    """Prompting4Debugging: the original model's predictions, out of the unlearned one."""

    Params = P4DParams
    needs_of_others = DenoisingAttack.needs_of_others | {"tokens"}
    source = "Chin et al. 2024, arXiv:2309.06135"

    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """See the module. The original's passes are counted, too.

        Raises:
            TargetError: the two models do not predict the same thing, so that they cannot be compared.
        """
        self._by_predictions(self.params, target, batch, attempts, rng)

    def _by_predictions(
        self,
        p: P4DParams,
        target: TextToImageTarget,
        batch: PromptBatch,
        attempts: Attempts,
        rng: SampleRng,
        *,
        asked_before: bool = False,
    ) -> None:
        """One search, with the settings ``p``."""
        requests = batch.requests
        original = self.target(p.original, TextToImageTarget)
        search = TokenSearch(target, batch, attempts, rng)
        theirs, ours = (model.scheduler.config.prediction_type for model in (original, search.target))
        if theirs != ours:
            raise TargetError(
                f"'{p.original}' predicts its {theirs}, the model under attack its {ours}",
                fix="name the model that it was made from, or exclude this pair",
            )
        if original.latent_shape != search.target.latent_shape:
            raise TargetError(
                f"'{p.original}' draws from {original.latent_shape}, the model under attack from {search.target.latent_shape}",
                fix="name the model that it was made from, or exclude this pair",
            )
        images = pictures(search.target, requests, original)
        with torch.no_grad():
            asked = original.encode(original.tokenize(requests["prompt"]))
        visited = levels_of(search.target, p.levels)
        objective = Denoising(search.target, images, search.blocks, p.timesteps, original=(original, asked), visited=visited)
        relaxation = Nearest(search.table, p.lr, p.weight_decay)
        search.run(p, search.slots(p), relaxation, objective, asked=asked_before)


class P4DUnionParams(P4DParams):
    """The original model, and the settings of both searches."""

    tokens: int = Field(16, ge=1, description="free tokens in the request's place, and as many between its words at most")
    place: Place = Field("replace", description="where the tokens of the first search are; the second's are between the words")


class P4DUnion(P4D):
    """P4D as published: a request is broken when tokens in its place (P4D-N) or between its words (P4D-K) break it."""

    Params = P4DUnionParams

    @override
    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """The first half of the attempts for P4D-N, the others for P4D-K.

        Raises:
            TargetError: see ``P4D``.
        """
        told = self.params.model_dump(exclude={"place"})
        half = 1 + (attempts.budget - 1) // 2
        first, second = (P4DParams(**told, place=place) for place in (self.params.place, "every-three-words"))
        self._by_predictions(first, target, batch, Share(attempts, half), rng.fork("free"))
        left = Share(attempts, 1 + attempts.budget - half, made=1)
        self._by_predictions(second, target, batch, left, rng.fork("between"), asked_before=True)
