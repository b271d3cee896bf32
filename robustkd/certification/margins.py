"""By how much the true class stays ahead of the others, at least, anywhere in a ball.

    m_j(x) = z_y(x) - z_j(x) >= m_j,    x in the ball;   a sample is certified where m_j > 0 for every wrong class j

The functions m_j are followed back through the last layer before they are bounded, so that what its two logits share cancels
(Gowal et al. 2018, section 3, "elision of the last layer").
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustkd.certification.ball import Ball
from robustkd.certification.network import BoundedNetwork, Intervals

Method = Literal["interval", "crown-ibp", "crown"]
"""Intervals alone; linear bounds whose lines stand on intervals; linear bounds whose lines stand on linear bounds."""


def differences(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(K, B, K): for each class j the coefficients of ``z_y - z_j``; all 0 where j is the label."""
    one = torch.eye(classes, dtype=dtype, device=labels.device)
    return one[labels].unsqueeze(0) - one.unsqueeze(1)


def interval_margins(network: BoundedNetwork, found: Intervals, labels: Tensor) -> Tensor:
    """(B, K) lower bounds of ``z_y - z_j`` by intervals; 0 where j is the label."""
    output = found.of[network.output].low
    return network.linear(found, differences(labels, output.shape[1], output.dtype), layers=1).T


def linear_margins(network: BoundedNetwork, found: Intervals, labels: Tensor) -> Tensor:
    """(B, K) the same by linear bounds."""
    output = found.of[network.output].low
    return network.linear(found, differences(labels, output.shape[1], output.dtype)).T


def margins(network: BoundedNetwork, ball: Ball, labels: Tensor, method: Method) -> Tensor:
    """(B, K) lower bounds of ``z_y - z_j`` over a ball; 0 where j is the label. Linear ones are never below those of intervals."""
    found = network.intervals(ball, refine=method == "crown")
    by_intervals = interval_margins(network, found, labels)
    return by_intervals if method == "interval" else by_intervals.maximum(linear_margins(network, found, labels))
