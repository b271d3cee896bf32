"""What can be said in a campaign about how a network is trained: the same flat keys for every trained defense."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from robustkd.contracts import ModelName, Params
from robustkd.contracts.params import AddedLater, ModelParams
from robustkd.defenses.training.infinite import InfiniteParams

Augmentation = Literal["none", "crop-flip"]

# Parameter types: what a defense gives a default of its own is described once.
EpochsParam: TypeAlias = Annotated[int, Field(ge=1, description="passes over the training data")]
BatchSizeParam: TypeAlias = Annotated[int, Field(ge=1, description="samples in each step")]
OptimiserParam: TypeAlias = Annotated[Literal["sgd", "adam", "adamw"], Field(description="the update rule")]
LRParam: TypeAlias = Annotated[float | None, Field(gt=0, description="learning rate at the start")]
WeightDecayParam: TypeAlias = Annotated[float, Field(ge=0, description="L2 penalty (decoupled for adamw)")]
ScheduleParam: TypeAlias = Annotated[
    Literal["constant", "cosine", "steps"], Field(description="how the learning rate falls over the epochs")
]


class TrainParams(Params):
    """Training parameters. A defense overrides the defaults that its paper gives.

    ``precision`` is about the device, not about the result that is asked for: under ``auto`` the same campaign trains in
    bf16 where a CUDA device gains from it and in float32 elsewhere, and the two differ as two devices differ.

    Attributes:
        milestone_fractions: where ``steps`` lowers the rate when no milestones are given, as fractions of ``epochs``: a
            shorter training keeps the paper's shape.
    """

    milestone_fractions: ClassVar[tuple[float, ...]] = (1 / 2, 3 / 4)

    epochs: EpochsParam = 200
    batch_size: BatchSizeParam = 128
    optimiser: OptimiserParam = "sgd"
    lr: float | None = Field(None, gt=0, description="learning rate at the start; default 0.1 for sgd, 0.001 for adam(w)")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: WeightDecayParam = 5e-4
    schedule: ScheduleParam = "steps"
    infinite: Annotated[InfiniteParams | None, AddedLater()] = Field(
        None, description="in place of `schedule`: one that any number of trainings can go on from"
    )
    milestones: tuple[int, ...] | None = Field(
        None,
        description="for steps: after how many epochs the rate is multiplied by gamma; default the paper's shares",
    )
    gamma: float = Field(0.1, gt=0, le=1, description="for steps: the factor at each milestone")
    augment: Augmentation = Field("none", description="crop-flip: random crop after padding by 4, and horizontal flip")
    ema: float | None = Field(
        None, gt=0, lt=1, description="deploy an exponential moving average of the weights with this decay"
    )
    swa: Annotated[float | None, AddedLater()] = Field(
        None,
        ge=0,
        lt=1,
        description="deploy the mean of the weights after each epoch (stochastic weight averaging), from this share of the epochs on",
    )
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 autocast on CUDA, else float32")
    selection: Literal["best", "weighted", "last"] = Field(
        "best",
        description="which epoch is deployed, by the validation data: best, the most robust one; weighted, the one with the best mean of "
        "clean and robust accuracy (W-Robust, what MTARD's journal form and CIARD report); last",
    )
    validation_cap: int = Field(1000, ge=1, description="at most so many validation samples are measured after each epoch")

    @model_validator(mode="after")
    def _milestones_fit(self) -> TrainParams:
        given = self.milestones
        if given is None:
            return self
        if self.schedule != "steps":
            raise ValueError(f"milestones belong to schedule: steps, the schedule is {self.schedule}")
        if list(given) != sorted(set(given)) or (given and given[0] < 1):
            raise ValueError(f"milestones {list(given)} must be positive and rising")
        if given and given[-1] >= self.epochs:
            raise ValueError(
                f"milestone {given[-1]} is never reached in {self.epochs} epochs; left out, they keep the paper's shape"
            )
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> TrainParams:
        if self.infinite is not None and self.milestones is not None:
            raise ValueError("milestones belong to schedule: steps, and infinite takes the place of any schedule")
        return self

    @model_validator(mode="after")
    def _averages_in_one_way(self) -> TrainParams:
        if self.ema is not None and self.swa is not None:
            raise ValueError("ema and swa are two ways of averaging the weights: leave one out")
        return self


class NetworkParams(TrainParams):
    """Training parameters of a defense that trains one network of its own choice."""

    model: ModelName = Field(description="the architecture: a model plug-in")
    model_params: ModelParams = Field(default_factory=dict)
