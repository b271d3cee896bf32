"""Random small networks of every layer that bounds are known of, and what attacks do to them."""

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = (nn.ReLU, lambda: nn.LeakyReLU(0.1), nn.Sigmoid, nn.Tanh, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Softplus)
POOLS = (
    lambda: nn.MaxPool2d(2),
    lambda: nn.MaxPool2d(3, 2, padding=1),
    lambda: nn.AvgPool2d(2),
    lambda: nn.AvgPool2d(3, 2, padding=1),
    lambda: nn.AdaptiveAvgPool2d(2),
)


class Block(nn.Module):
    """A convolution, its normalisation and activation, and where it is a branch the sum, difference or join with its input."""

    def __init__(self, channels, activation, join):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=2 if join == "cat" else 1)
        self.norm, self.activation, self.join = nn.BatchNorm2d(channels), activation(), join
        self.fuse = nn.Conv2d(2 * channels, channels, 1) if join == "cat" else None

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.activation(self.norm(self.conv(x)))
        if self.join == "add":
            y = 0.7 * y
            y += x  # in place, of a value that no backward pass needs
        elif self.join == "sub":
            y = y - 0.5 * x
        elif self.fuse is not None:
            y = self.fuse(torch.cat([x, y], 1))
        return y


class RandomNetwork(nn.Module):
    """Images (B, 1, 6, 6) to 3 logits, by a few blocks that a seed draws."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        draw = torch.Generator().manual_seed(seed)

        def one_of(options):
            return options[int(torch.randint(len(options), (1,), generator=draw))]

        self.first = nn.Conv2d(1, 4, 3, padding=1)
        activation = ACTIVATIONS[seed % len(ACTIVATIONS)]
        self.blocks = nn.ModuleList(
            [
                Block(4, activation, one_of(("none", "add", "sub", "cat"))),
                Block(4, one_of(ACTIVATIONS), one_of(("none", "add"))),
            ]
        )
        self.pool, self.functional, self.dropout = (
            POOLS[seed % len(POOLS)](),
            one_of((F.relu, torch.tanh, F.silu)),
            nn.Dropout(),
        )
        size = self.pool(torch.zeros(1, 4, 6, 6)).numel()
        self.hidden, self.last = nn.Linear(size, 8), nn.Linear(8, 3)
        for norm in [part for part in self.modules() if isinstance(part, nn.BatchNorm2d)]:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.3, 2)
            norm.weight.data.normal_(0, 1)
        self.eval()

    def forward(self, x):
        """(B, 1, 6, 6) -> (B, 3)."""
        x = self.first((x - 0.3) / 0.4)
        for block in self.blocks:
            x = block(x)
        x = self.pool(self.dropout(x))
        x = self.functional(self.hidden(x.view(x.size(0), -1)))
        return self.last(x)
