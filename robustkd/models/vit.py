"""A small vision transformer: attention instead of convolutions, at a size that trains on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from robustkd.contracts import Params
from robustkd.lazy import F, nn, torch
from robustkd.models.image import ImageModel, ImageNetwork, ImageParams

if TYPE_CHECKING:
    from torch import Tensor


class TinyViTParams(ImageParams):
    patch: int = Field(4, ge=1, description="side of a patch in pixels; an image is filled up with zeros to whole patches")
    width: int = Field(64, ge=1, description="length of a token")
    depth: int = Field(4, ge=1, description="number of blocks")
    heads: int = Field(4, ge=1, description="attention heads in each block")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TinyViTParams:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads; give a multiple")
        return self


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        batch, count, width = tokens.shape
        parts = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        out: Tensor = self.proj(mixed)
        return out


class Block(nn.Module):
    """norm, attention; norm, two linear layers with GELU; each around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.linear1, self.gelu, self.linear2 = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.linear2(self.gelu(self.linear1(self.norm2(tokens))))
        return out


def patch_grid(height: int, width: int, patch: int) -> tuple[int, tuple[int, int, int, int]]:
    """How many patches cover an image, and the zeros that are put right of it and below it for that (as ``F.pad`` takes them)."""
    rows, columns = -(-height // patch), -(-width // patch)
    return rows * columns, (0, columns * patch - width, 0, rows * patch - height)


class TinyViTNetwork(ImageNetwork):
    """Linear patch embedding, learned positions, pre-norm blocks, norm, mean over tokens, one linear layer."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int, params: TinyViTParams) -> None:
        super().__init__()
        count, self.padding = patch_grid(height, width, params.patch)
        self.embed = nn.Conv2d(channels, params.width, params.patch, stride=params.patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, count, params.width))
        self.blocks = nn.Sequential(*(Block(params.width, params.heads) for _ in range(params.depth)))
        self.norm, self.linear = nn.LayerNorm(params.width), nn.Linear(params.width, num_classes)

    @property
    def layers(self) -> list[Block]:
        """The blocks, in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def tokens(self, x: Tensor) -> Tensor:
        """(B, N, width) what the blocks are given: embedded patches and positions of normalised images."""
        embedded: Tensor = self.embed(F.pad(x, self.padding)).flatten(2).transpose(1, 2)
        return embedded + self.positions

    def patches(self, x: Tensor) -> Tensor:
        """(B, N, C * patch * patch) the pixels of each patch of normalised images, in the order of the tokens."""
        side = self.embed.kernel_size
        return F.unfold(F.pad(x, self.padding), side, stride=side).transpose(1, 2)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(self.blocks(self.tokens(x))).mean(1))
        return logits


class TinyViT(ImageModel):
    """A vision transformer of 0.2 M parameters, without class token: the mean over tokens is classified."""

    Params: ClassVar[type[Params]] = TinyViTParams
    source: ClassVar[str] = "Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return TinyViTNetwork(channels, height, width, num_classes, self.params)
