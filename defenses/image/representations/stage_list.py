"""A list of stages: one network, trained by one recipe after the other, each on the whole network, on its body or on its head.

    S_0 fresh (``model``) or another defense's (``start``);    for each stage:  S <- recipe(S)  over the part that it trains

A recipe is any defense that is one loss on one network (``standard``, ``pgd-at``, ``trades``, ``kd``, ``rslad``, ..), with its own
parameters: how long, how fast, by which teacher, and which epoch is deployed. The head is the last linear layer; where it alone is
trained the network is in evaluation mode, so that a stage ``{recipe: standard, train: head}`` at the end is a linear probe. A stage that
is killed goes on in its own epoch.

Good to ask what survives of a training when another one follows: adversarial training and then fine-tuning, distillation and then a
probe. Control: the list without one of its stages.

Source: this package; each recipe names its own. That a probe should come before fine-tuning: Kumar et al.: Fine-tuning can distort
pretrained features and underperform out-of-distribution (ICLR 2022), arXiv:2202.10054.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SerializationInfo, model_serializer, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import Defense, FitContext, ModelName, Params, Target, TargetRef, ThreatModel
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import OneNetwork, fresh_network, teacher
from robustkd.defenses.training.members import trained_copy
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.lazy import nn
from robustkd.plugins.nested import PluginSpec
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear

GIVEN = "tiny-cnn"
"""Stands for the architecture in the parameters of a recipe, which is given its network: any that is installed will do."""


class StageRecipe(PluginSpec):
    """A defense that is one loss on one network, by its kind, with its parameters but the architecture."""

    group: ClassVar[plugins.Group] = "defenses"

    @model_validator(mode="before")
    @classmethod
    def _with_the_network(cls, value: Any) -> Any:
        """Before it is read: what stands for the architecture is put into its place."""
        if isinstance(value, PluginSpec):
            return value
        given = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
        kind = given.get("kind")
        if not isinstance(kind, str):
            raise ValueError("write the kind of a defense, or a mapping of its kind and its parameters")
        plugin = plugins.load("defenses", kind) if kind in plugins.names("defenses") else None
        if plugin is not None:
            if not (issubclass(plugin, OneNetwork) and plugin.fit is OneNetwork.fit):
                raise ValueError(f"'{kind}' is no single loss on one network: name one that is, such as standard, pgd-at or kd")
            if named := [key for key in (plugin.network, f"{plugin.network}_params") if key in given]:
                raise ValueError(f"'{kind}': {named[0]}: the list names the network, leave it out")
            given[plugin.network] = GIVEN
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """As it is written: any kind, since what each takes is here less than in the schema of a defense."""
        return {"type": ["string", "object"]}

    @model_serializer
    def _write(self, info: SerializationInfo) -> dict[str, JsonValue]:
        network = plugins.load("defenses", self.kind).network
        params = self.params.model_dump(mode="json", by_alias=info.by_alias)
        return {"kind": self.kind, **{key: value for key, value in params.items() if key not in (network, f"{network}_params")}}

    @override
    def make(self) -> OneNetwork:
        defense: OneNetwork = super().make()
        return defense

    def of(self, model: str | None) -> OneNetwork:
        """The recipe for a network of this architecture; None where it is that of another defense."""
        defense = self.make()
        if model is None:
            return defense
        made: OneNetwork = plugins.build("defenses", self.kind, self.params.model_copy(update={defense.network: model}))
        return made


class StageParams(Params):
    """One stage."""

    recipe: StageRecipe = Field(
        description="a defense that is one loss on one network, with its parameters but the architecture",
        examples=[{"kind": "standard", "epochs": 2}],
    )
    train: Literal["all", "body", "head"] = Field(
        "all", description="what is trained: everything, all but the last linear layer, or that alone"
    )
    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the stage; default stage-1, stage-2, ..")


class StageListParams(Params):
    """One network, and the stages of its training in order."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "tiny-cnn"}]})

    model: ModelName | None = Field(None, description="the architecture: a model plug-in, whose network starts afresh")
    model_params: ModelParams = Field(default_factory=dict)
    start: TargetRef | None = Field(None, description="instead of model: another defense, whose network is trained on")
    stages: tuple[StageParams, ...] = Field(min_length=1, description="the trainings, one after the other")

    @model_validator(mode="after")
    def _one_network(self) -> StageListParams:
        if (self.model is None) == (self.start is None):
            raise ValueError("name the network's model, or the defense that it starts from: one of the two")
        if self.model is None and self.model_params:
            raise ValueError("model_params belong to model, and none is named")
        names = [name for name, _ in self.named()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two stages are called '{twice[0]}'")
        return self

    def named(self) -> list[tuple[str, StageParams]]:
        """The stages with their names."""
        return [(stage.name or f"stage-{number}", stage) for number, stage in enumerate(self.stages, 1)]


class StageList(Defense):
    """One network, trained in several stages."""

    Params = StageListParams
    source = "this package; each recipe names its own"
    uses_threat = True  # where a recipe does, which each object knows

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self._recipes = [stage.recipe.of(self.params.model) for stage in self.params.stages]
        self.uses_threat = any(recipe.uses_threat for recipe in self._recipes)

    @override
    def refusal(self, threat: ThreatModel) -> str | None:
        """That of the first recipe which has one."""
        return next((reason for recipe in self._recipes if (reason := recipe.refusal(threat))), None)

    def fit(self, context: FitContext) -> Target:
        """Train the stages in order; each deploys its own epoch, as its recipe's ``selection`` says."""
        p = self.params
        student = trained_copy(teacher(context, p.start)) if p.start else fresh_network(context, p.model, p.model_params)
        run_stages(context, self._stages(context, student))
        student.module.eval()
        return student

    def _stages(self, context: FitContext, student: ClassifierTarget) -> Iterator[Stage]:
        for (name, stage), defense in zip(self.params.named(), self._recipes, strict=True):
            with defense.training(context, student) as (recipe, trained):
                parts = None if stage.train == "all" else partial(parts_of, student, trained, stage.train)
                yield Stage(name, trained, recipe, defense.params, parts, still=stage.train == "head")


def parts_of(student: ClassifierTarget, trained: ClassifierTarget, what: str) -> Sequence[nn.Module]:
    """The head or the body of the student, with what is trained beside it."""
    head = last_linear(student.module)
    own = {id(weight) for weight in head.parameters()}
    body = nn.ParameterList(weight for weight in student.module.parameters() if id(weight) not in own)
    inside = {id(weight) for weight in student.module.parameters()}
    beside = nn.ParameterList(weight for weight in trained.module.parameters() if id(weight) not in inside)
    return [head if what == "head" else body, beside]
