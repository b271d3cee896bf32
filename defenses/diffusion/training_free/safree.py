"""SAFREE: what the tokens of a prompt have in common with a concept is projected away (Yoon et al. 2025, section 4).

    C = the text encoder's states at the end of K texts of the concept (D, K),       P_C = C (C^T C)^+ C^T
    I = the same of the prompt with each of its n tokens left out (D, n),            P_I likewise
    token i is a trigger where  ||(1 - P_C) I_i||  >=  (1 + alpha) mean over the others:    without it the prompt is far from the concept
    triggers e_i become (1 - P_C) P_I e_i;  all other tokens stay

Everything else of the prompt and the model's weights stay as they are. A search sees the projected prompt and takes its gradient through
the projection; which tokens are triggers, and P_I, are held constant in it.

Control: ``projected: false``, with which no token is a trigger. As read in the authors' code: the two subspaces, the rule, alpha 0.01, and
token 0 of the vocabulary in the place of what is left out. Left out, as reduced: the rule that ends the projection after some of 50
steps (here it holds in all), and the re-weighting of frequencies in the UNet.

Source: Yoon et al.: SAFREE: training-free and adaptive guard for safe text-to-image and video generation (ICLR 2025), arXiv:2410.12761.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, TargetError
from robustkd.defenses.diffusion.training_free.alteration import Alteration, AlterationParams
from robustkd.lazy import torch
from robustkd.targets.altered_drawing import AlteredDrawing
from robustkd.targets.text_encoders import Conditioning

if TYPE_CHECKING:
    from torch import Tensor

_LEFT_OUT = 0


class SAFREESettings(Params):
    """What is projected away."""

    concepts: tuple[str, ...] = Field(
        min_length=1, description="texts that name or describe what is not to be in the picture", examples=[["nudity", "naked"]]
    )
    alpha: float = Field(
        0.01, description="how much farther from the concept than without the others a prompt is without a trigger"
    )
    projected: bool = Field(True, description="whether triggers are projected; false: the control")


class SAFREETarget(AlteredDrawing[SAFREESettings]):
    """A model that reads prompts without what they have in common with a concept."""

    kind = "safree"
    Settings = SAFREESettings

    @override
    def encode(self, ids: Tensor | None = None, embeddings: Tensor | None = None) -> Conditioning:
        told = super().encode(ids, embeddings)
        if not self.settings.projected:
            return told
        if ids is not None:
            embeddings = self.embed(ids.to(self.device))
        assert embeddings is not None
        with torch.no_grad():
            ends = self._ends(embeddings)
            concept = self._at_end(self.tokenize(list(self.settings.concepts)))
            changes = [self._change(row, int(end), concept) for row, end in zip(embeddings.detach(), ends, strict=True)]
        tokens = [
            row if change is None else torch.where(change[1][:, None], (row.float() @ change[0].T).to(row), row)
            for row, change in zip(told.tokens, changes, strict=True)
        ]
        return Conditioning(torch.stack(tokens), told.pooled)

    def _at_end(self, ids: Tensor) -> Tensor:
        """(N, D) float32 states at the end of (N, T) prompts."""
        tokens = super().encode(ids).tokens
        return tokens[torch.arange(len(ids)), (ids == self.eos).int().argmax(1)].float()

    def _ends(self, embeddings: Tensor) -> Tensor:
        """(B,) the positions of the prompts' ends.

        Raises:
            TargetError: the embeddings of a prompt have no end.
        """
        eos = self.embed(torch.tensor([[self.eos]], device=self.device))[0, 0]
        found = (embeddings == eos).all(-1)
        if not bool(found.any(1).all()):
            raise TargetError("the embeddings of a prompt have no end", fix="leave the embedding of its eos as it is")
        return found.int().argmax(1)

    def _change(self, embedded: Tensor, end: int, concept: Tensor) -> tuple[Tensor, Tensor] | None:
        """The (D, D) projection of triggers, and (T,) bool which positions are triggers; None of an empty prompt."""
        count = end - 1
        if count < 1:
            return None
        masked = embedded.repeat(count, 1, 1)
        places = torch.arange(count, device=embedded.device)
        masked[places, places + 1] = self.embed(torch.tensor([[_LEFT_OUT]], device=self.device))[0, 0].to(masked)
        without = super().encode(embeddings=masked).tokens[:, end].float()
        triggers = torch.zeros(len(embedded), dtype=torch.bool, device=embedded.device)
        triggers[1:end] = far_without(without, concept, self.settings.alpha)
        away = torch.eye(concept.shape[1], device=concept.device) - projection(concept)
        return away @ projection(without), triggers


def projection(rows: Tensor) -> Tensor:
    """(D, D) the orthogonal projection onto the span of (N, D) rows."""
    basis = torch.linalg.svd(rows.cpu().double(), full_matrices=False)
    kept = basis.Vh[1e-6 * basis.S[0] < basis.S]
    return (kept.T @ kept).to(rows)


def far_without(without: Tensor, concept: Tensor, alpha: float) -> Tensor:
    """(n,) bool, the tokens without which a prompt is farther from the concept than (1 + alpha) times the mean of the others.

    The only token of a prompt is one, as there are no others (in the authors' code because of a mean over nothing).

    Args:
        without: (n, D) states of the prompt with each token left out.
        concept: (K, D) states of the concept's texts.
    """
    if len(without) == 1:
        return torch.ones(1, dtype=torch.bool, device=without.device)
    distance = (without - without @ projection(concept)).norm(dim=1)
    others = (distance.sum() - distance) / (len(distance) - 1)
    return distance >= (1 + alpha) * others


class SAFREEParams(SAFREESettings, AlterationParams):
    """The model, and what is projected away."""


class SAFREE(Alteration):
    """Projects a concept out of the tokens that ask for it."""

    Params = SAFREEParams
    target = SAFREETarget
    source = "Yoon et al., SAFREE, ICLR 2025, arXiv:2410.12761"

    def texts(self) -> list[str]:
        """The concept's texts."""
        return list(self.params.concepts)
