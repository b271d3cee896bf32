"""MTT: matching training trajectories. A few steps on the synthetic images lead where epochs on the real ones lead.

    L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2         robustkd/condensers/engine/unrolled.py

From the authors: the loss, random starts, the learnt step size, SGD on pixels from real images, augmentation. From us: pixels are kept in
[0, 1] without whitening (ZCA); the learnt step size is not handed to who trains on the set, whose recipe has its own.

Control: ``random-subset``, which is where the pixels start.

Source: Cazenavette et al.: Dataset distillation by matching training trajectories (CVPR 2022), arXiv:2203.11932, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from robustkd.condensers.engine.unrolled import TrajectoryMatching, TrajectoryParams
from robustkd.contracts import Params


class MTTParams(TrajectoryParams):
    """Parameters of ``mtt``."""


class MTT(TrajectoryMatching):
    """Images on which a network is trained to where an expert comes on the real ones."""

    Params: ClassVar[type[Params]] = MTTParams
    source = "Cazenavette et al. 2022, arXiv:2203.11932"
