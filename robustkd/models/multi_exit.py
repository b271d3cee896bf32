"""A network with several exits: what is easy is answered early.

    h_e = block_e(h_{e-1}),   z_e = head_e(h_e),   e = 1 .. E
    answer(x) = z_e(x) of the first exit e whose largest probability reaches the threshold, else of the last

Each block is a residual pair of 3x3 convolutions of the same width, so that each costs the same.

Sources: Teerapittayanon, McDanel, Kung: BranchyNet (ICPR 2016), for the exits and the rule, which goes by entropy there; Kaya, Hong,
Dumitras: Shallow-deep networks (ICML 2019), for the largest probability. The architecture is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.contracts import Params
from robustkd.lazy import F, nn, torch
from robustkd.models.image import ImageModel, ImageNetwork, ImageParams, conv3x3
from robustkd.models.sub_networks import AdaptiveNetwork, log_odds

if TYPE_CHECKING:
    from torch import Tensor


class MultiExitCNNParams(ImageParams):
    width: int = Field(16, ge=1, description="channels of every block")
    exits: int = Field(4, ge=2, description="blocks, each with an exit behind it")
    threshold: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="the largest probability at which an exit answers; the defense multi-exit chooses it by validation",
    )


class ExitBlock(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))), all of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3x3(width, width), conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


class ExitHead(nn.Module):
    """ReLU, mean over windows of 2x2, one linear layer."""

    def __init__(self, width: int, places: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.linear = nn.Linear(width * places, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, K) logits."""
        logits: Tensor = self.linear(self.pool(F.relu(x)).flatten(1))
        return logits


class MultiExitCNNNetwork(AdaptiveNetwork):
    """A 3x3 stem of stride 2, blocks, and an exit behind each.

    In training it answers by the mean of the exits' log-probabilities, so that any defense trains all of them.

    Attributes:
        threshold: the log-odds of the largest probability at which an exit answers; it is saved with the weights.
    """

    has_exits: ClassVar[bool] = True
    threshold: Tensor

    def __init__(self, channels: int, height: int, width: int, num_classes: int, params: MultiExitCNNParams) -> None:
        super().__init__()
        wide, exits = params.width, params.exits
        high, broad = -(-height // 2), -(-width // 2)
        places = -(-high // 2) * -(-broad // 2)
        self.stem = conv3x3(channels, wide, stride=2)
        self.blocks = nn.ModuleList(ExitBlock(wide) for _ in range(exits))
        self.heads = nn.ModuleList(ExitHead(wide, places, num_classes) for _ in range(exits))
        self.register_buffer("threshold", torch.tensor(math.log(params.threshold / (1 - params.threshold))))
        stem, block, head = (
            9 * channels * wide * high * broad,
            2 * 9 * wide * wide * high * broad,
            wide * places * num_classes,
        )
        self.names = tuple(f"exit-{number}" for number in range(1, exits + 1))
        self.multiply_adds = tuple(stem + number * block + head for number in range(1, exits + 1))
        self._budgets = tuple(stem + number * (block + head) for number in range(1, exits + 1))

    @property
    def budgets(self) -> tuple[int, ...]:
        """What it takes to answer at each exit, with the heads of the exits before it."""
        return self._budgets

    def answers(self, images: Tensor) -> Tensor:
        """(E, B, K) logits of all exits, in one pass."""
        return self._every(self.normalise(images))

    def spent(self, images: Tensor) -> Tensor:
        """(B,) int64 multiply-adds of the blocks and heads up to the exit that answers."""
        return torch.tensor(self._budgets, device=images.device)[self._exit(self.answers(images))]

    def beyond(self, images: Tensor, budget: float) -> Tensor:
        """(B,) by how much the log-odds of every exit within the budget stay below the threshold."""
        within = sum(cost <= budget for cost in self._budgets)
        answers = self.answers(images)
        if within == 0:
            return 0 * answers[0].sum(1) + 1
        if within == len(self._budgets):
            return 0 * answers[0].sum(1) - 1
        return self.threshold.to(answers) - log_odds(answers[:within]).amax(0)

    def _answer(self, number: int, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks[: number + 1]:
            h = block(h)
        logits: Tensor = self.heads[number](h)
        return logits

    def _every(self, x: Tensor) -> Tensor:
        """(E, B, K) logits of all exits for normalised images, in one pass."""
        h, found = self.stem(x), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            h = block(h)
            found.append(head(h))
        return torch.stack(found)

    def _exit(self, answers: Tensor) -> Tensor:
        """(B,) int64, the number of the exit that answers, from (E, B, K) logits."""
        # The same numbers are compared as in ``beyond``, so that both agree to the last bit.
        sure = self.threshold.to(answers) - log_odds(answers[:-1]) <= 0
        last = torch.ones_like(sure[:1])
        return torch.cat([sure, last]).to(torch.uint8).argmax(0)

    def _logits(self, x: Tensor) -> Tensor:
        answers = self._every(x)
        if self.training:
            return answers.log_softmax(2).mean(0)
        return answers[self._exit(answers.detach()), torch.arange(len(x), device=x.device)]


class MultiExitCNN(ImageModel):
    """A residual CNN with an exit behind each block: 3.6 M multiply-adds for 28x28x1 images, 0.9 M where the first exit answers."""

    Params: ClassVar[type[Params]] = MultiExitCNNParams
    source: ClassVar[str] = "Teerapittayanon et al., BranchyNet, ICPR 2016; Kaya et al., Shallow-deep networks, ICML 2019"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return MultiExitCNNNetwork(channels, height, width, num_classes, self.params)
