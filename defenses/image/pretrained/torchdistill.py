"""A student by a recipe of torchdistill: its losses on the inputs and outputs of named layers, in the loop of every other training.

    for each stage of the recipe:   min_S  criterion( io(S, x), io(T, x), y )

io are the inputs and outputs of the submodules that the recipe hooks, and the logits of the whole network as ``.``. The recipe is the
part ``train`` of a file of torchdistill (``file``), or the same written in the campaign (``train``). Read are the criterion, the epochs
(unless the campaign gives some), the hooks and the student's frozen modules. Teacher, student, data, optimiser and schedule are the
campaign's, the epoch is chosen on validation data, and a training that is killed goes on in its stage. Losses that learn parameters of
their own (VID, CCKD) train them along. Losses that want more than images and labels of a minibatch (CRD, SSKD) are refused when they are
first asked.

Good to attack what a large zoo of distillers without robustness makes. Control: ``kd`` from the same teacher. The names of submodules are
those of robustkd's architectures, such as ``conv2`` of tiny-cnn.

Source: Matsubara: torchdistill: a modular, configuration-driven framework for knowledge distillation (RRPR 2021), arXiv:2011.12913, and
its code of 2026 (losses/registry.py, mid_level.py, high_level.py); nothing of it is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, model_validator

from robustkd.contracts import CampaignPath, Defense, FitContext, Target, UsageError
from robustkd.contracts.errors import raised_by
from robustkd.defenses.training import Minibatch, Recipe, StudentParams, Teacher, fresh_network, frozen_teacher
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.integrations.torchdistill import ROOT, RecipeStage, criterion_of, read_recipe, require_torchdistill, stages_of
from robustkd.lazy import nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import OutputHook, output_hooks, submodules

if TYPE_CHECKING:
    from torch import Tensor

_EXAMPLE: Any = {
    "student": "tiny-cnn",
    "teacher": "teacher",
    "train": {
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {
                                "student_module_path": ".",
                                "student_module_io": "output",
                                "teacher_module_path": ".",
                                "teacher_module_io": "output",
                                "temperature": 4.0,
                                "alpha": 0.1,
                            },
                        },
                        "weight": 1.0,
                    }
                }
            },
        }
    },
}


class TorchdistillParams(StudentParams):
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    # Left out of the identity: where it lies changes nothing. What is in it does, and files() tells.
    file: CampaignPath | None = Field(
        None, exclude=True, description="a recipe of torchdistill: a YAML file with a part 'train'"
    )
    train: dict[str, Any] | None = Field(None, description="instead of file: such a part 'train', written here")

    @model_validator(mode="after")
    def _one_recipe(self) -> TorchdistillParams:
        if (self.file is None) == (self.train is None):
            raise ValueError("give the recipe's file, or its part 'train': one of the two")
        return self


class TorchdistillRecipe(Recipe[ClassifierTarget]):
    """The criterion of a stage.

    Args:
        teacher: T, frozen.
        student: the network inside the trained module.
        criterion: torchdistill's.
        stage: says which layers it looks at.
        who: what an error calls it.
    """

    supports_data_parallel = False  # a criterion may be of a whole minibatch

    def __init__(self, teacher: Teacher, student: ClassifierTarget, criterion: nn.Module, stage: RecipeStage, who: str) -> None:
        self.teacher, self.student, self.criterion, self.stage, self.who = teacher, student, criterion, stage, who

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """criterion(io(S), io(T), y)."""
        with torch.no_grad():
            theirs = seen(self.teacher.target, batch.x, self.stage.teacher)
        known = {"student": seen(self.student, batch.x, self.stage.student), "teacher": theirs}
        with raised_by(
            self.who, UsageError, fix="hook the layers that it names; losses that want more than a minibatch cannot be used"
        ):
            loss: Tensor = self.criterion(known, {}, batch.y)
            if not isinstance(loss, torch.Tensor) or loss.dim():
                raise TypeError("it gives no single number")
        return loss, {}


def seen(target: Target, images: Tensor, layers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The input and the output of each layer by its name, and the logits as the output of the whole network.

    Raises:
        TargetError: the network has no layer of that name.
    """
    found: dict[str, dict[str, Any]] = {}

    def keep(layer: str) -> OutputHook:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            found[layer] = {"input": arguments[0] if len(arguments) == 1 else arguments, "output": output}

        return hook

    with output_hooks(submodules(target.module, layers), [keep(layer) for layer in layers]):
        found[ROOT] = {"input": images, "output": target(images)}
    return found


class Torchdistill(Defense):
    """A student by a recipe of torchdistill."""

    Params = TorchdistillParams
    source = "Matsubara 2021, arXiv:2011.12913"

    def files(self) -> list[Path]:
        """The recipe, where it is a file."""
        return [] if self.params.file is None else [self.params.file]

    def fit(self, context: FitContext) -> Target:
        """Train the stages; each deploys the epoch of the best validation accuracy, or as ``selection`` says.

        Raises:
            PluginError: torchdistill is not installed.
            UsageError: the recipe is none, or asks for what a minibatch does not have.
            TargetError: a network has no layer of a name that is hooked.
        """
        p = self.params
        require_torchdistill()
        who = "the recipe" if p.file is None else str(p.file)
        train: Mapping[str, Any] = p.train if p.file is None else read_recipe(p.file)
        stages = stages_of(train, who)
        student = fresh_network(context, p.student, p.student_params)
        with frozen_teacher(context, p.teacher, p) as teacher:
            run_stages(context, self._stages(context, student, teacher, stages, who))
        return student

    def _stages(
        self, context: FitContext, student: ClassifierTarget, teacher: Teacher, stages: Sequence[RecipeStage], who: str
    ) -> Iterator[Stage]:
        p = self.params
        for stage in stages:
            with seeded_init(context, f"torchdistill/{stage.name}"):
                criterion = criterion_of(stage, who)
            criterion.to(context.device)
            own = terms(criterion)
            own.to(context.device)
            trained = with_auxiliary(student, criterion=own) if own.state_dict() else student
            recipe = TorchdistillRecipe(teacher, student, criterion, stage, f"{who}: {stage.name}: the criterion")
            epochs = p.epochs if stage.epochs is None or "epochs" in p.model_fields_set else stage.epochs
            settings = p if epochs == p.epochs else p.model_copy(update={"epochs": epochs, "milestones": None})
            parts = partial(_unfrozen, student, trained, stage.frozen) if stage.frozen else None
            yield Stage(stage.name, trained, recipe, settings, parts)


def terms(criterion: nn.Module) -> nn.ModuleList:
    """The losses that a criterion is made of: torchdistill keeps them in a dictionary, where their parameters are not found."""
    held = [term for term, _ in getattr(criterion, "term_dict", {}).values() if isinstance(term, nn.Module)]
    return nn.ModuleList([criterion, *held])


def _unfrozen(student: ClassifierTarget, trained: ClassifierTarget, frozen: Sequence[str]) -> list[nn.Module]:
    still = {id(weight) for part in submodules(student.module, frozen) for weight in part.parameters()}
    return [nn.ParameterList(weight for weight in trained.module.parameters() if id(weight) not in still)]
