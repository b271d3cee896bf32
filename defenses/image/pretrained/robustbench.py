"""A model of RobustBench's zoo.

Source: Croce et al.: RobustBench: a standardized adversarial robustness benchmark (NeurIPS 2021 Datasets and Benchmarks).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from robustkd.contracts import CampaignPath, Defense, FitContext, Params, Target, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.image.pretrained.external import validated
from robustkd.integrations.robustbench import checkpoints, load
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


class RobustBenchParams(Params):
    model_id: str = Field(description="the model's name in the zoo, such as Wong2020Fast", examples=["Wong2020Fast"])
    dataset: Literal["cifar10", "cifar100", "imagenet"] = Field("cifar10", description="what it was trained on")
    threat_model: Literal["Linf", "L2", "corruptions"] = Field("Linf", description="what it was trained against")
    # Left out of the identity: where a checkpoint lies changes nothing. What is in it does, and files() tells.
    model_dir: CampaignPath | None = Field(
        None,
        exclude=True,
        description="a folder with <dataset>/<threat_model>/<model_id>.pt; without it, the zoo's weights are downloaded",
    )


class RobustBench(Defense):
    """A model of the zoo, through RobustBench's own loading code."""

    Params = RobustBenchParams
    uses_data = False
    source = "Croce et al. 2021, arXiv:2010.09670"

    def files(self) -> list[Path]:
        """Local checkpoints. A zoo entry's download needs none: its name stands for its content."""
        p = self.params
        return checkpoints(p.model_id, p.dataset, p.threat_model, p.model_dir) if p.model_dir else []

    def fit(self, context: FitContext) -> Target:
        """Load the model and try it.

        Raises:
            UsageError: the zoo has no such model.
            TargetError: its weights cannot be had, or it was made for other data.
        """
        p = self.params
        classes = _CLASSES[p.dataset]
        if context.num_classes != classes:
            raise TargetError(
                f"{p.model_id} tells the {classes} classes of {p.dataset} apart, the data have {context.num_classes}",
                fix=f"attack it on {p.dataset}"
                + (", or on a folder of its classes with classes: imagenet" if p.dataset == "imagenet" else ""),
            )
        entry = {"model_id": p.model_id, "dataset": p.dataset, "threat_model": p.threat_model}
        network = load(**entry, model_dir=p.model_dir or Path(torch.hub.get_dir()) / "robustbench")
        origin: JsonObject = {"code": "robustkd.robustbench_bridge:build", "kwargs": entry}
        return validated(
            ClassifierTarget(network, num_classes=classes, input_shape=context.input_shape, origin=origin), context
        )
