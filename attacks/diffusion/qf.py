"""QF-Attack: the text encoder alone, without a question to the model that draws.

    max_{p'} cos( enc(p' + p), enc_original(p) )     with ``original``: back to what the request meant before unlearning
    min_{p'} cos( enc(p' + p), enc(p) )              without it, as in the paper: away from what the request means now

with ``enc`` the text encoder's states at all positions of the prompt, which is what the UNet attends to. Where unlearning changed the
UNet alone, the two encoders are one, and there is nothing to be found: an attack for models whose text encoder was changed, and a
measure of what the UNet adds to the others. The tokens are relaxed as in ``pez``. The prompts that are judged are those of the whole
search that moved the states most.

Source: Zhuang et al.: A pilot study of query-free adversarial attack against stable diffusion (CVPR workshops 2023), section 3,
its PGD variant. As read in the authors' code: the cosine over all positions, and that the best of all prompts that the encoder was asked
about is kept. Theirs adds characters behind the request, found by 100 draws a step; this adds tokens, before it by default, like the
attacks that it is compared with. ``original`` is not theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.diffusion.engine.encoder_states import TextEncoderAttack, encoded
from robustkd.attacks.diffusion.engine.token_search import TokenSearch
from robustkd.attacks.diffusion.pez import Nearest, NearestParams
from robustkd.contracts import Attempts, PromptBatch, TargetRef, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import F, torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class QFParams(NearestParams):
    """The settings of the search by the text encoder, and the defense whose encoder is the reference."""

    original: TargetRef | None = Field(None, description="the defense whose text encoder still knows the concept")


@dataclass(frozen=True, eq=False)
class TextEncoderSimilarity:
    """The cosine between the text encoder's states of the attacked requests and (N, T, D) ``reference`` ones, over all positions.

    ``sign`` is -1 to raise it, 1 to lower it.
    """

    target: TextToImageTarget
    reference: Tensor
    sign: int
    forwards: int = 1
    backwards: int = 1

    def __call__(self, rows: Tensor, embedded: Tensor, block: int, rng: SampleRng) -> Tensor:
        """(B,) cosines of the requests' states with the reference, times ``sign``."""
        states = self.target.encode(embeddings=embedded).tokens.float()
        return self.sign * F.cosine_similarity(states.flatten(1), self.reference[rows].flatten(1), dim=1)


class QF(TextEncoderAttack):
    """Query-free attack on the text encoder; passes are the text encoder's."""

    Params = QFParams
    gradients = True
    source = "Zhuang et al. 2023, arXiv:2303.16378"
    version = "2"  # 1 compared the state at the end alone, and had the last prompts of the search judged, not its best

    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """Search tokens that move the text encoder's states of the request; the UNet is never asked."""
        p = self.params
        search = TokenSearch(target, batch, attempts, rng)
        model = self.asked_model(search.target)
        with torch.no_grad():
            reference = encoded(model, batch.requests["prompt"]).to(search.target.device)
        objective = TextEncoderSimilarity(search.target, reference, sign=-1 if p.original else 1)
        search.run(p, search.slots(p), Nearest(search.table, p.lr, p.weight_decay), objective, ranked=True)
