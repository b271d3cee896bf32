"""Trainings by turns: several players, each with a loss, weights and a rate of its own, on draws of its own.

    each round:   for each player:   ``updates`` times   theta_player <- AdamW( grad loss_player(fresh draws) )

Its first user is the generator and the score of its pictures (``defenses.diffusion.one_step``). AdamW keeps its state for each weight and
passes by weights without a gradient: so one optimiser over all weights, in which only the player has gradients whose turn it is, is an
optimiser for each player.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.contracts import FitContext, Samples
from robustkd.defenses.training.loop import CHECKPOINT_SECONDS
from robustkd.defenses.training.steps import StepLoss, StepParams, StepTraining, put_gradients, run_steps
from robustkd.lazy import torch
from robustkd.targets.training import adamw

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Player:
    """One of the networks that are trained by turns.

    Attributes:
        name: in the log its loss is ``<name>_loss``.
        weights: what it moves, by name.
        loss: see ``StepLoss``; it sees the others as they are at its turn.
        lr: its learning rate; it falls as the settings say.
        updates: in each round.
    """

    name: str
    weights: Mapping[str, nn.Parameter]
    loss: StepLoss
    lr: float
    updates: int = 1


def train_by_turns(
    context: FitContext[Samples],
    name: str,
    players: Sequence[Player],
    settings: StepParams,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """``settings.steps`` rounds, in each of which the players take their updates in this order.

    Args:
        context: data, seed, device, checkpoints and log.
        name: of this training among those of one defense.
        players: at least one; each update draws from a generator of its own.
        settings: as for ``train_steps``, but for the rates, which are the players'.
        betas: AdamW's.
        checkpoint_seconds: time between checkpoints.

    Raises:
        TargetError: a loss is not finite any more.
    """
    run_steps(context, _Turns(name, players, settings, betas), checkpoint_seconds)


class _Turns(StepTraining):
    """A step of the loop is one player's update; a report is about whole rounds."""

    def __init__(self, name: str, players: Sequence[Player], settings: StepParams, betas: tuple[float, float]) -> None:
        weights = {f"{player.name}/{key}": weight for player in players for key, weight in player.weights.items()}
        super().__init__(name, weights, players[0].loss, settings, dict, None)
        self.players = players
        self.order = [player for player in players for _ in range(player.updates)]
        self.optimiser = adamw(weights.values(), settings.lr, settings.weight_decay, betas)
        self.reports = [len(self.order) * number for number in self.reports]

    def lr(self, step: int) -> float:
        number, place = divmod(step, len(self.order))
        return self.order[place].lr * self.settings.rate(number)

    def position(self, step: int) -> str:
        number, place = divmod(step, len(self.order))
        return f"{self.name} broke down in round {number}, at the turn of the {self.order[place].name}"

    def backward(self, step: int, seed: int) -> tuple[dict[str, float], int]:
        player = self.order[step % len(self.order)]
        for weight in self.parameters.values():
            weight.grad = None
        loss = player.loss(torch.Generator().manual_seed(seed))
        put_gradients(loss, list(player.weights.values()), self.settings.clip)
        self.loss_name = f"{player.name}_loss"
        return {self.loss_name: loss.item()}, 1

    def measure(self, means: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        # A mean over all updates counts those of the other players as zeros.
        return {f"{each.name}_loss": means[f"{each.name}_loss"] * len(self.order) / each.updates for each in self.players}
