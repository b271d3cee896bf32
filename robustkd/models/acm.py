"""A small vision transformer whose multi-layer perceptrons are adaptive computation modules: each token is given as much as its gate says.

    y(x) = sum_{j <= k(x)} learner_j(x)           k(x) = argmax gate(x)  in 0 .. N,  for each token x of each block

The N learners of a block are perceptrons of one hidden layer, together as wide as the perceptron that they stand for. ``learners-k`` is the
network in which every token gets the first k of them.

Source: Wojcik et al.: Adaptive computation modules: granular conditional computation for efficient inference (AAAI 2025), arXiv:2312.10193,
and the authors' code (architectures/acm.py). From the authors: progressive learners, a gate for each token, of one linear layer, that may
choose none. Their attention layers are made of such modules as well, here they are not. The sizes are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.contracts import Params
from robustkd.lazy import F, nn, torch
from robustkd.models.image import ImageModel, ImageNetwork
from robustkd.models.sub_networks import AdaptiveNetwork
from robustkd.models.vit import Attention, TinyViTParams, patch_grid

if TYPE_CHECKING:
    from torch import Tensor


class ACMViTParams(TinyViTParams):
    learners: int = Field(4, ge=1, description="N, learners of each block")


def hidden_units(width: int, learners: int) -> int:
    """Of each of so many learners, together as many as the perceptron of ``tiny-vit`` has (or a few more, to be equal)."""
    return -(-4 * width // learners)


class AdaptiveMLP(nn.Module):
    """N learners and their gate.

    Args:
        width: length of a token.
        learners: N.
    """

    def __init__(self, width: int, learners: int) -> None:
        super().__init__()
        hidden = hidden_units(width, learners)
        self.learners = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(learners)
        )
        self.gate = nn.Linear(width, learners + 1)

    def each(self, x: Tensor) -> Tensor:
        """(N, B, T, width) what each learner makes of (B, T, width)."""
        return torch.stack([learner(x) for learner in self.learners])

    def choice(self, x: Tensor) -> Tensor:
        """(B, T, N + 1) one-hot: how many learners each token gets. In training it is drawn, with a straight-through gradient (Gumbel)."""
        logits = self.gate(x).float()
        if self.training:
            return F.gumbel_softmax(logits, hard=True).to(x.dtype)
        return F.one_hot(logits.argmax(2), logits.shape[2]).to(x.dtype)

    def mixed(self, x: Tensor, choice: Tensor) -> Tensor:
        """(B, T, width) the sum of the first learners of each token."""
        at_least = choice.flip(2).cumsum(2).flip(2)[:, :, 1:]  # whether learner j is among them
        mixed: Tensor = (at_least.permute(2, 0, 1).unsqueeze(3) * self.each(x)).sum(0)
        return mixed


class ACMBlock(nn.Module):
    """norm, attention; norm, an adaptive computation module; each around a shortcut."""

    def __init__(self, width: int, heads: int, learners: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.adaptive = nn.LayerNorm(width), AdaptiveMLP(width, learners)

    def forward(self, tokens: Tensor, number: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens (B, T, width), how many learners each got (B, T, N + 1), and the gate's probabilities of that.

        Args:
            tokens: (B, T, width).
            number: of learners for every token; by default the gate chooses.
        """
        tokens = tokens + self.attention(self.norm1(tokens))
        x = self.norm2(tokens)
        if number is None:
            choice = self.adaptive.choice(x)
        else:
            choice = F.one_hot(torch.full(x.shape[:2], number, device=x.device), len(self.adaptive.learners) + 1).to(x.dtype)
        return tokens + self.adaptive.mixed(x, choice), choice, self.adaptive.gate(x).softmax(2)


class ACMViTNetwork(AdaptiveNetwork):
    """``tiny-vit`` with adaptive computation modules; it answers by its gates.

    Attributes:
        learner_cost: multiply-adds of one learner for one token.
    """

    def __init__(self, channels: int, height: int, width: int, num_classes: int, params: ACMViTParams) -> None:
        super().__init__()
        wide, patch, count = params.width, params.patch, params.learners
        tokens, self.padding = patch_grid(height, width, patch)
        self.embed = nn.Conv2d(channels, wide, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, wide))
        self.blocks = nn.ModuleList(ACMBlock(wide, params.heads, count) for _ in range(params.depth))
        self.norm, self.linear = nn.LayerNorm(wide), nn.Linear(wide, num_classes)
        places = tokens * params.depth
        self.learner_cost, gates = 2 * wide * hidden_units(wide, count), places * wide * (count + 1)
        fixed = tokens * channels * patch**2 * wide + places * 4 * wide * wide + wide * num_classes
        self.names = tuple(f"learners-{number}" for number in range(1, count + 1))
        self.multiply_adds = tuple(fixed + places * number * self.learner_cost for number in range(1, count + 1))
        self._budgets = tuple(fixed + gates + number * self.learner_cost for number in range(places * count + 1))

    @property
    def adaptive(self) -> list[AdaptiveMLP]:
        """The adaptive computation modules of the blocks, in order."""
        return [block.adaptive for block in self.blocks if isinstance(block, ACMBlock)]

    @property
    def budgets(self) -> tuple[int, ...]:
        """What it takes without any learner, with one for one token, and so on up to all for all."""
        return self._budgets

    def gated(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K) logits of (B, C, H, W) in [0, 1] by the gates; (L, B, T, N + 1) the choices of the L blocks, and their probabilities."""
        return self._passed(self.normalise(images), None)

    def spent(self, images: Tensor) -> Tensor:
        """(B,) int64 multiply-adds of the learners that the gates choose, and of all that is always computed."""
        return self._budgets[0] + self.learner_cost * self._learners(self.gated(images)[1]).round().long()

    def beyond(self, images: Tensor, budget: float) -> Tensor:
        """(B,) how many learners more than within the budget are chosen, less a half, with the gradient of their expected number."""
        _, choice, likely = self.gated(images)
        expected = self._learners(likely)
        allowed = (budget - self._budgets[0]) // self.learner_cost
        return self._learners(choice).detach().round() - allowed - 0.5 + (expected - expected.detach())

    def embedded(self, x: Tensor) -> Tensor:
        """(B, T, width) what the blocks are given, of normalised images."""
        embedded: Tensor = self.embed(F.pad(x, self.padding)).flatten(2).transpose(1, 2)
        return embedded + self.positions

    def _learners(self, choice: Tensor) -> Tensor:
        """(B,) the sum over blocks and tokens of the (expected) number of learners, of (L, B, T, N + 1)."""
        choice = choice.float()
        return (choice * torch.arange(choice.shape[3], device=choice.device)).sum((0, 2, 3))

    def _passed(self, x: Tensor, number: int | None) -> tuple[Tensor, Tensor, Tensor]:
        tokens, choices, likely = self.embedded(x), [], []
        for block in self.blocks:
            tokens, choice, probability = block(tokens, number)
            choices.append(choice)
            likely.append(probability)
        logits: Tensor = self.linear(self.norm(tokens).mean(1))
        return logits, torch.stack(choices), torch.stack(likely)

    def _answer(self, number: int, x: Tensor) -> Tensor:
        return self._passed(x, number + 1)[0]

    def _logits(self, x: Tensor) -> Tensor:
        return self._passed(x, None)[0]


class ACMViT(ImageModel):
    """``tiny-vit`` whose tokens are given 0 to N learners in each block: it spends more where its gates say so."""

    Params: ClassVar[type[Params]] = ACMViTParams
    source: ClassVar[str] = "Wojcik et al., Adaptive computation modules, AAAI 2025, arXiv:2312.10193"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return ACMViTNetwork(channels, height, width, num_classes, self.params)
