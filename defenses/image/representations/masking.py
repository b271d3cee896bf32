"""Masked images: what an encoder makes of the visible patches, and a decoder of the masked ones.

    L_rec = mean over the masked patches of || d(e(visible)) - (patch - mean) / deviation ||^2

The encoder e is a transformer that is given the visible patches alone, so nothing of a masked one reaches it. The decoder d has one block
and is not deployed.

Source: He et al.: Masked autoencoders are scalable vision learners (CVPR 2022), arXiv:2111.06377, section 3, with normalised pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustkd.contracts import FitContext, Target, UsageError
from robustkd.defenses.training import Minibatch, Recipe
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.models.vit import Block, TinyViTNetwork
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


def transformer(target: Target, who: str) -> TinyViTNetwork:
    """The network of a target that is made of patches.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(target.module, TinyViTNetwork):
        raise UsageError(f"{who} masks patches, and this network has none", fix="name tiny-vit")
    return target.module


def split(batch: Minibatch, count: int, share: float) -> tuple[Tensor, Tensor]:
    """(B, V) visible and (B, M) masked of ``count`` patches, each sample's own, drawn anew in each epoch; at least one of each."""
    masked = min(count - 1, max(1, round(share * count)))
    order = batch.rng("mask").uniform((count,)).argsort(1)
    return order[:, masked:].sort(1).values, order[:, :masked].sort(1).values


def taken(tokens: Tensor, places: Tensor) -> Tensor:
    """(B, V, D) the rows of (B, N, D) at (B, V) places."""
    return tokens.gather(1, places.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def encoded(network: TinyViTNetwork, images: Tensor, places: Tensor) -> list[Tensor]:
    """(B, V, width) of each block, from the patches at (B, V) places of (B, C, H, W) in [0, 1] alone."""
    tokens, found = taken(network.tokens(network.normalise(images)), places), []
    for block in network.layers:
        tokens = block(tokens)
        found.append(tokens)
    return found


class Decoder(nn.Module):
    """One block over the visible tokens and a learnt one in the place of each masked patch, and a linear layer to pixels."""

    def __init__(self, network: TinyViTNetwork) -> None:
        super().__init__()
        _, count, width = network.positions.shape
        self.embed, self.absent = nn.Linear(width, width), nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.block, self.norm = Block(width, network.layers[0].attention.heads), nn.LayerNorm(width)
        self.pixels = nn.Linear(width, network.embed.weight[0].numel())

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(B, V, width) tokens of the patches at (B, V) places -> (B, N, pixels of a patch)."""
        batch, count = len(tokens), self.positions.shape[1]
        visible = self.embed(tokens)  # in bfloat16 under autocast
        whole = self.absent.to(visible).expand(batch, count, -1)
        whole = whole.scatter(1, places.unsqueeze(2).expand(-1, -1, tokens.shape[2]), visible)
        pixels: Tensor = self.pixels(self.norm(self.block(whole + self.positions)))
        return pixels


def reconstruction(
    network: TinyViTNetwork, decoder: nn.Module, images: Tensor, last: Tensor, places: Tensor, masked: Tensor
) -> Tensor:
    """L_rec of what the last block made of the visible patches."""
    wanted = taken(network.patches(network.normalise(images)), masked)
    wanted = (wanted - wanted.mean(2, keepdim=True)) / (wanted.var(2, keepdim=True) + 1e-6).sqrt()
    return F.mse_loss(taken(decoder(network.norm(last), places), masked), wanted)


class MaskedRecipe(Recipe[ClassifierTarget]):
    """The reconstruction of masked patches; a subclass adds to it by ``beside``.

    Args:
        student: the network inside the trained module.
        share: of the patches that are masked.
    """

    def __init__(self, student: ClassifierTarget, share: float) -> None:
        self.student, self.share = student, share

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L_rec, and what a subclass adds."""
        network, parts = transformer(self.student, "a masked student"), target.module.parts
        visible, masked = split(batch, network.positions.shape[1], self.share)
        blocks = encoded(network, batch.x, visible)
        loss = reconstruction(network, parts["decoder"], batch.x, blocks[-1], visible, masked)
        more, measured = self.beside(parts, batch, blocks, visible)
        return loss + more, {"loss_reconstruction": loss, **measured}

    def beside(self, parts: Any, batch: Minibatch, blocks: list[Tensor], visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised beside the reconstruction: nothing here.

        Args:
            parts: the auxiliary modules.
            batch: the images.
            blocks: (B, V, width) of each block of the student.
            visible: (B, V) the places of these.
        """
        return blocks[-1].new_zeros(()), {}


def with_decoder(context: FitContext, student: ClassifierTarget, role: str, **parts: nn.Module) -> ClassifierTarget:
    """A target that holds the student, a fresh decoder and ``parts``."""
    with seeded_init(context, role):
        decoder = Decoder(transformer(student, role))
    return with_auxiliary(student, decoder=decoder, **parts)
