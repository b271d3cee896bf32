"""Stages: trainings of one network, one after the other, each with its own loss, length and part of the network.

A method yields its stages; what comes later may look at what the stages before have made of the network. Each has a checkpoint of its own,
so a training that is killed in its third stage goes on in its third stage. ``finishing`` is the last one of every student that learns
features: a linear probe on what it has learnt (``probe``), or fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.epochs import train
from robustkd.defenses.training.params import TrainParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear

if TYPE_CHECKING:
    from torch import Tensor, nn


class StagedParams(TrainParams):
    """Parameters of a student that learns features first, in ``epochs``, and labels afterwards."""

    finish: Literal["probe", "finetune"] = Field(
        "finetune", description="how labels are learnt at the end: by the last linear layer alone, or by all weights"
    )
    finish_epochs: int = Field(10, ge=1, description="passes over the training data in which they are")
    finish_lr: float | None = Field(None, gt=0, description="learning rate there; default lr")

    def with_last_epoch(self) -> StagedParams:
        """The same, deploying the last epoch: a network that has seen no label has no accuracy to be chosen by."""
        return self.model_copy(update={"selection": "last"})

    def finishing(self) -> StagedParams:
        """The same for the last stage."""
        return self.model_copy(
            update={
                "epochs": self.finish_epochs,
                "lr": self.lr if self.finish_lr is None else self.finish_lr,
                "milestones": None,
            }
        )


@dataclass(frozen=True)
class Stage:
    """One training of a network.

    Attributes:
        name: of its checkpoint, unlike those of the other stages.
        trained: the network, or a target that holds it.
        recipe: the loss.
        settings: how long and how fast.
        parts: says what is trained, when the network is on its device: on some devices the move makes other weights. None trains
            everything.
        data: what is changed of the context, such as its training images.
        still: whether the network is in evaluation mode meanwhile, since only its last layer learns.
    """

    name: str
    trained: ClassifierTarget
    recipe: Recipe[ClassifierTarget]
    settings: TrainParams
    parts: Callable[[], Sequence[nn.Module]] | None = None
    data: Mapping[str, Any] | None = None
    still: bool = False


def run_stages(context: FitContext, stages: Iterable[Stage]) -> None:
    """Train the stages in order; the next one is asked for when the one before is done. Epochs are counted through in the log."""
    done = 0
    for stage in stages:
        before = done

        def log(epoch: int, metrics: Mapping[str, float], before: int = before) -> None:
            context.log(before + epoch, metrics)

        own = replace(context, checkpoints=context.checkpoints / stage.name, log=log, **(stage.data or {}))
        module = stage.trained.to(context.device).module
        with only(module, stage.parts() if stage.parts else None), still(module) if stage.still else nullcontext():
            train(own, stage.trained, stage.recipe, stage.settings)
        done += stage.settings.epochs


@contextmanager
def only(module: nn.Module, parts: Sequence[nn.Module] | None) -> Iterator[None]:
    """Until the end of the block the weights of ``parts`` alone want a gradient; None leaves everything as it is."""
    if parts is None:
        yield
        return
    wanted = {weight for part in parts for weight in part.parameters()}
    before = {name: weight.requires_grad for name, weight in module.named_parameters()}
    for weight in module.parameters():
        weight.requires_grad_(weight in wanted)
    try:
        yield
    finally:
        for name, weight in module.named_parameters():  # by name: they may be others by now, which a move to a device has made
            weight.requires_grad_(before[name])


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Until the end of the block the network stays in evaluation mode, whatever it is told: BatchNorm keeps its statistics."""
    module.eval()
    vars(module)["train"] = lambda mode=True: module
    try:
        yield
    finally:
        del vars(module)["train"]


class LabelRecipe(Recipe[ClassifierTarget]):
    """The cross entropy on clean images."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(f(x), y)."""
        return F.cross_entropy(target(batch.x), batch.y), {}


def finishing(student: ClassifierTarget, settings: StagedParams, data: Mapping[str, Any] | None = None) -> Stage:
    """The stage in which the student learns the labels; its epoch is chosen by validation accuracy."""
    if settings.finish == "probe":
        return probe(student, settings.finishing(), data)
    return Stage(settings.finish, student, LabelRecipe(), settings.finishing(), data=data)


def probe(student: ClassifierTarget, settings: TrainParams, data: Mapping[str, Any] | None = None) -> Stage:
    """The stage in which the last linear layer alone learns the labels, on features that stay as they are."""
    return Stage("probe", student, LabelRecipe(), settings, lambda: [last_linear(student.module)], data, still=True)
