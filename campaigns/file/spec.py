"""campaign.yaml -> Campaign: every key known, every plug-in found, every parameter typed, before anything runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from robustkd import plugins
from robustkd.campaigns.file import presets
from robustkd.campaigns.file.change_words import ChangeWords, change_problem
from robustkd.campaigns.file.problems import Problem, close_to, complaint, problems_of, validated
from robustkd.campaigns.file.yaml_source import KeyPath, parse, read
from robustkd.contracts import (
    Analysis,
    BaseAttack,
    Check,
    Code,
    Defense,
    Judge,
    Modality,
    PluginError,
    ThreatModel,
    UsageError,
    named_plugins,
    target_references,
)
from robustkd.contracts.check import Level
from robustkd.contracts.params import CampaignPath, Settings
from robustkd.contracts.region import Region, region_of
from robustkd.contracts.threat import Goal, Norm, norm_named
from robustkd.data import SplitParams
from robustkd.evaluation.checks import check_names, make_check
from robustkd.evaluation.modality import evaluation_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _plain_name(value: Any) -> Any:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("names have up to 64 letters, digits, '-', '_' and '.', and begin with a letter or digit")
    return value


Name = Annotated[str, BeforeValidator(_plain_name)]


class _Use(BaseModel):
    """A plug-in and its parameters, which are validated by its own ``Params``; a bare word is its kind."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class WhereSpec(Settings):
    """The ``where`` of a threat: one of ``patch`` (with ``place``), ``channels`` and ``mask``."""

    patch: int | float | tuple[int, int] | None = Field(
        None, description="a rectangle: its side in pixels, [height, width], or below 1 the share of the image"
    )
    place: Literal["worst", "random"] | tuple[int, int] | None = Field(
        None,
        description="of the patch: worst (the attacker chooses; the default), random (drawn for each sample), or [top, left]",
    )
    channels: tuple[int, ...] | None = Field(None, description="the channels that may change, counted from 0")
    mask: CampaignPath | None = Field(None, description="a .png, .npy or .npz file; pixels that are not 0 may change")

    @cached_property
    def region(self) -> Region:
        """The region it describes."""
        return region_of({key: value for key, value in self if value is not None})

    @model_validator(mode="after")
    def _one(self) -> WhereSpec:
        try:
            _ = self.region
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self


class ThreatSpec(Settings, ChangeWords):
    """The ``threat`` block: a budget in pixels or of another change of an image, or, of a model that is asked, in attempts."""

    norm: Annotated[Norm, BeforeValidator(norm_named)] = "linf"
    eps: float | None = Field(None, ge=0, description="of images: budget in pixel units of [0, 1]")
    goal: Goal = "untargeted"
    curve: tuple[Annotated[float, Field(ge=0)], ...] = Field((), description="more eps, for the accuracy curve")
    attempts: int | None = Field(None, ge=1, description="of prompts: how many answers to each request may be judged")
    where: WhereSpec | None = Field(None, description="of images: the only pixels that may change")

    @model_validator(mode="after")
    def _free_in_a_patch(self) -> ThreatSpec:
        """The pixels of a patch are free unless eps says otherwise."""
        if self.where is not None and self.where.patch is not None and self.eps is None and self.norm == "linf":
            return self.model_copy(update={"eps": 1.0})
        return self

    def model(self) -> ThreatModel:
        """The threat model it describes."""
        if self.attempts is not None:
            return ThreatModel.by_prompt(self.attempts)
        if (change := self.change()) is not None:
            return ThreatModel(budget=change, goal=self.goal)
        region = None if self.where is None else self.where.region
        return ThreatModel(norm=self.norm, eps=self.eps or 0.0, goal=self.goal, where=region)

    def divided(self, scale: float) -> ThreatSpec:
        """The budget where all inputs are divided by ``scale``; a number of features, l0, stays."""
        if self.eps is None or self.norm == "l0":
            return self
        return self.model_copy(update={"eps": self.eps / scale, "curve": tuple(point / scale for point in self.curve)})

    def larger(self) -> ThreatModel:
        """A threat model of a larger budget: an attack that is judged under the same one with it has no budget to set."""
        if self.attempts is not None:
            return ThreatModel.by_prompt(self.attempts + 1)
        threat = self.model()
        return threat.with_eps(threat.eps + 1)

    def problem(self, modality: Modality) -> tuple[str, str] | None:
        """What is wrong with it for such data, and the fix."""
        given = {key for key in self.model_fields_set if getattr(self, key) is not None}
        if modality == "images" and given & set(ChangeWords.model_fields):
            return change_problem(given)
        return evaluation_of(modality).threat_problem(given)


class _DefenseBlock(Settings):
    """What may be said about every defense, beside the parameters of its plug-in."""

    replica: int = Field(0, ge=0, description="another number: the same recipe trained with other random draws")


class _AnalysisBlock(Settings):
    """What must be said about every analysis, beside the parameters of its plug-in."""

    defenses: tuple[str, ...] = Field(min_length=1, description="the defenses that it is made of")


class Exclusion(Settings):
    """A pair that is not run; a missing side means all."""

    defense: str | None = None
    attack: str | None = None


class Matrix(Settings):
    """The ``matrix`` block."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    exclude: tuple[Exclusion, ...] = ()


class GateSpec(Settings):
    """One of the ``gates``: a bound on a metric of a defense, that its interval must clear."""

    defense: str
    metric: Literal["robust_accuracy", "clean_accuracy"] = "robust_accuracy"
    at_least: float = Field(ge=0, le=1)


class ChecksSpec(Settings):
    """The ``checks`` block; a bare word is its level."""

    level: Level | Literal["none"] = "standard"
    samples: int | None = Field(None, ge=2, description="samples that each check looks at, at most")


def _level_alone(value: Any) -> Any:
    return {"level": value} if isinstance(value, str) else value


class _Document(Settings):
    version: Literal[1]
    name: Name
    description: str = ""
    data: dict[str, Any]
    threat: ThreatSpec
    defenses: dict[Name, _Use] = Field(min_length=1)
    attacks: dict[Name, _Use] = Field(min_length=1)
    analyses: dict[Name, _Use] = Field({})
    judges: dict[Name, _Use] = Field({})
    matrix: Matrix = Matrix()
    checks: Annotated[ChecksSpec, BeforeValidator(_level_alone)] = ChecksSpec()
    gates: tuple[GateSpec, ...] = ()
    batch_size: int | None = Field(
        None,
        ge=1,
        description="the most samples that a model is attacked on at once; only what a random model draws depends on it",
    )


@dataclass(frozen=True)
class DefenseUse:
    """A defense of the campaign: its plug-in with validated parameters.

    Attributes:
        replica: which training of the same recipe; another number means other random draws (the members of an ensemble).
    """

    name: str
    kind: str
    plugin: Defense
    replica: int = 0

    @property
    def references(self) -> list[str]:
        """The defenses that must be trained first."""
        return target_references(self.plugin.params)

    def training_seed(self, seed: int) -> int:
        """What seeds the training, in the campaign's cell of ``seed``."""
        if not self.replica:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed}/replica/{self.replica}".encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class AttackUse:
    """An attack of the campaign, and the threat model it is judged under."""

    name: str
    kind: str
    plugin: BaseAttack
    threat: ThreatModel
    curve: tuple[float, ...]

    @property
    def references(self) -> list[str]:
        """The defenses whose targets the attack or its budget uses beside the one that it attacks."""
        return list(dict.fromkeys([*target_references(self.plugin.params), *self.threat.budget.references]))


@dataclass(frozen=True)
class AnalysisUse:
    """An analysis of the campaign, and the defenses that it is made of."""

    name: str
    kind: str
    plugin: Analysis[Any, Any]
    defenses: tuple[str, ...]

    @property
    def references(self) -> list[str]:
        """The defenses whose targets it uses beside the one that it is about."""
        return target_references(self.plugin.params)


@dataclass(frozen=True)
class JudgeUse:
    """A judge of the campaign; the first one's verdict counts."""

    name: str
    kind: str
    plugin: Judge

    @property
    def references(self) -> list[str]:
        """The defenses whose targets it judges with."""
        return target_references(self.plugin.params)


@dataclass(frozen=True)
class DataUse:
    """The data block: a dataset plug-in's name and parameters, how it is split, and what kind of data it is."""

    name: str
    params: dict[str, Any]
    split: SplitParams
    modality: Modality = "images"


@dataclass(frozen=True)
class Campaign:
    """A validated campaign.

    Attributes:
        text: the file as it was written.
        origin: where it was read from, for messages.
        folder: what relative paths in it are relative to.
        batch_size: the most samples that a model is attacked on at once; None for the default.
    """

    name: str
    text: str
    origin: str
    folder: Path
    data: DataUse
    threat: ThreatModel
    defenses: dict[str, DefenseUse]
    attacks: dict[str, AttackUse]
    analyses: dict[str, AnalysisUse]
    seeds: tuple[int, ...]
    exclude: tuple[Exclusion, ...]
    checks: tuple[Check, ...]
    gates: tuple[GateSpec, ...] = ()
    description: str = field(default="", compare=False)
    judges: dict[str, JudgeUse] = field(default_factory=dict)
    batch_size: int | None = None

    @property
    def default_folder(self) -> Path:
        """Where its results are, unless somebody names another folder; relative to the working directory."""
        return Path("runs") / self.name

    @property
    def code(self) -> list[Code]:
        """The code that it names, which its targets' cards may call."""
        return [code for use in self.defenses.values() for code in use.plugin.code()]

    def excluded(self, defense: str, attack: str) -> bool:
        """Whether the matrix leaves this pair out."""
        return any(item.defense in (None, defense) and item.attack in (None, attack) for item in self.exclude)


def load(reference: str | Path) -> Campaign:
    """Read a campaign file, or a packaged preset by its name.

    Raises:
        UsageError: with every problem of the file, each with file, line, key and fix.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return from_text(read(path), str(path), path.resolve().parent)
    return from_text(presets.read(str(reference)), f"preset {reference}", Path.cwd())


def from_text(text: str, origin: str, folder: Path) -> Campaign:
    """Validate the text of a campaign file; ``load`` says how it fails."""
    source = parse(text, origin)
    if not isinstance(source.data, dict):
        raise UsageError(f"{origin}: a campaign is a mapping of keys", fix="begin with 'version: 1' and 'name: my-campaign'")
    try:
        document = _Document.model_validate(source.data, context={"folder": folder})
    except ValidationError as error:
        raise complaint(source, problems_of(error, _Document, ())) from None
    problems: list[Problem] = []
    data = _data(document.data, folder, problems)
    modality: Modality = data.modality if data else "images"
    if data and (wrong := document.threat.problem(modality)):
        problems.append(Problem(("threat",), *wrong))
    scale = data.split.scale if data else 1.0
    default = document.threat.divided(scale)
    defenses = {
        name: defense
        for name, use in document.defenses.items()
        if (defense := _defense(name, use, folder, problems)) is not None
    }
    attacks = {
        name: attack
        for name, use in document.attacks.items()
        if (attack := _attack(name, use, default, folder, problems, modality, scale)) is not None
    }
    judges = _judges(document.judges, data, folder, problems)
    analyses = {
        name: analysis
        for name, use in document.analyses.items()
        if (analysis := _analysis(name, use, document.defenses, folder, problems)) is not None
    }
    problems += _unknown_names(document, defenses, attacks, judges, analyses) + _nowhere_to_show(document, analyses)
    if data:
        problems += _misplaced(modality, {"defenses": defenses, "attacks": attacks, "analyses": analyses, "judges": judges})
    if not problems:
        problems += _cycles(defenses)
    if problems or data is None:
        raise complaint(source, problems)
    return Campaign(
        name=document.name,
        text=text,
        origin=origin,
        folder=folder,
        data=data,
        threat=default.model(),
        defenses=defenses,
        attacks=attacks,
        analyses=analyses,
        seeds=tuple(dict.fromkeys(document.matrix.seeds)),
        exclude=document.matrix.exclude,
        checks=_checks(document.checks, modality),
        gates=document.gates,
        description=document.description,
        judges=judges,
        batch_size=document.batch_size,
    )


def _checks(block: ChecksSpec, modality: Modality) -> tuple[Check, ...]:
    if block.level == "none":
        return ()
    return tuple(make_check(name, block.samples) for name in check_names(block.level, modality))


def _judges(block: Mapping[str, _Use], data: DataUse | None, folder: Path, problems: list[Problem]) -> dict[str, JudgeUse]:
    """The judges that the file names, else those that the dataset comes with; prompts need one."""
    uses = dict(block)
    if data is not None and evaluation_of(data.modality).needs_judges and not uses:
        uses = {name: _Use(**use) for name, use in plugins.load("datasets", data.name).judges.items()}
        if not uses:
            problems.append(
                Problem(("judges",), f"'{data.name}' comes without judges", "name one, such as refusal: {kind: refusal-match}")
            )
    return {
        name: JudgeUse(name, use.kind, plugin)
        for name, use in uses.items()
        if (plugin := _plugin("judges", use, ("judges", name), folder, problems)) is not None
    }


def _misplaced(modality: Modality, blocks: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """Plug-ins that are for another kind of data than the campaign's."""
    return [
        Problem(
            (block, use.name, "kind"),
            f"'{use.kind}' is for {' and '.join(use.plugin.modalities)}, the data are {modality}",
            f"`robustkd list {block} --modality {modality}` names those that fit",
        )
        for block, uses in blocks.items()
        for use in uses.values()
        if modality not in use.plugin.modalities
    ]


def _data(block: Mapping[str, Any], folder: Path, problems: list[Problem]) -> DataUse | None:
    block = dict(block)
    name = block.pop("name", None)
    if not isinstance(name, str):
        problems.append(Problem(("data",), "the data block has no name", "add 'name: digits'"))
        return None
    shared = {key: block.pop(key) for key in list(block) if key in SplitParams.model_fields}
    split = validated(SplitParams, shared, ("data",), folder, problems, also=())
    try:
        plugin = plugins.load("datasets", name)
        model = plugin.Params
    except PluginError as error:
        problems.append(Problem(("data", "name"), error.message, error.fix))
        return None
    params = validated(model, block, ("data",), folder, problems, also=(*SplitParams.model_fields, "name"))
    if split is None or params is None:
        return None
    return DataUse(name, params.model_dump(mode="json"), split, plugin.modality)


def _plugin(
    group: plugins.Group, use: _Use, path: KeyPath, folder: Path, problems: list[Problem], also: tuple[str, ...] = ()
) -> Any:
    try:
        plugin = plugins.load(group, use.kind)
    except PluginError as error:
        problems.append(Problem((*path, "kind"), error.message, error.fix))
        return None
    params = validated(plugin.Params, dict(use.model_extra or {}), path, folder, problems, also=("kind", *also))
    if params is None:
        return None
    for key, other, name in named_plugins(params):
        if name not in (known := plugins.names(other)):  # type: ignore[arg-type]
            problems.append(Problem((*path, key), f"there is no {plugins.one_of(other)} '{name}'", close_to(name, known)))
    return plugins.build(group, use.kind, params)


def _defense(name: str, use: _Use, folder: Path, problems: list[Problem]) -> DefenseUse | None:
    extra = dict(use.model_extra or {})
    common = {key: extra.pop(key) for key in list(extra) if key in _DefenseBlock.model_fields}
    path: KeyPath = ("defenses", name)
    block = validated(_DefenseBlock, common, path, folder, problems, also=())
    plugin = _plugin("defenses", _Use(kind=use.kind, **extra), path, folder, problems, also=tuple(_DefenseBlock.model_fields))
    if plugin is None or block is None:
        return None
    return DefenseUse(name, use.kind, plugin, block.replica)


def _has_parameter(group: plugins.Group, kind: str, key: str) -> bool:
    """Whether a plug-in has a parameter of this name; True of one that cannot be loaded, which is told elsewhere."""
    try:
        return key in plugins.load(group, kind).Params.model_fields
    except PluginError:
        return True


_BUDGET = {"eps", "epsilon", "norm", "goal", "curve"}


def _attack(
    name: str, use: _Use, default: ThreatSpec, folder: Path, problems: list[Problem], modality: Modality, scale: float
) -> AttackUse | None:
    extra = dict(use.model_extra or {})
    path: KeyPath = ("attacks", name)
    threat: ThreatSpec | None = default
    if "threat" in extra:
        threat = validated(ThreatSpec, extra.pop("threat"), (*path, "threat"), folder, problems, also=())
        if threat is not None and (wrong := threat.problem(modality)):
            problems.append(Problem((*path, "threat"), *wrong))
        threat = None if threat is None else threat.divided(scale)
    for key in _BUDGET & set(extra):
        if not _has_parameter("attacks", use.kind, key):
            value = extra.pop(key)
            told = (
                f"write it into the threat, the campaign's or this attack's: threat: {{norm: {default.norm}, {key}: {value}}}"
            )
            problems.append(Problem((*path, key), f"'{use.kind}' has no such parameter", told))
    plugin = _plugin("attacks", _Use(kind=use.kind, **extra), path, folder, problems)
    if plugin is None or threat is None:
        return None
    if threat.problem(modality) or modality not in plugin.modalities:  # it is complained of elsewhere
        return AttackUse(name, use.kind, plugin, threat.model(), ())
    judged = plugin.threat_for(threat.model())
    if judged != plugin.threat_for(threat.larger()):
        return AttackUse(name, use.kind, plugin, judged, judged.budget.points or threat.curve)
    if "threat" in (use.model_extra or {}):
        problems.append(Problem((*path, "threat"), f"'{use.kind}' has no budget to set", "leave the threat out"))
    return AttackUse(name, use.kind, plugin, judged, ())


def _analysis(name: str, use: _Use, defenses: Mapping[str, _Use], folder: Path, problems: list[Problem]) -> AnalysisUse | None:
    extra = dict(use.model_extra or {})
    path: KeyPath = ("analyses", name)
    common = {key: extra.pop(key) for key in list(extra) if key in _AnalysisBlock.model_fields}
    block = validated(_AnalysisBlock, common, path, folder, problems, also=())
    plugin = _plugin("analyses", _Use(kind=use.kind, **extra), path, folder, problems, also=tuple(_AnalysisBlock.model_fields))
    if plugin is None or block is None:
        return None
    problems += [
        Problem((*path, "defenses", position), f"there is no defense '{named}'", close_to(named, defenses))
        for position, named in enumerate(block.defenses)
        if named not in defenses
    ]
    return AnalysisUse(name, use.kind, plugin, tuple(dict.fromkeys(block.defenses)))


def _unknown_names(
    document: _Document,
    defenses: Mapping[str, DefenseUse],
    attacks: Mapping[str, AttackUse],
    judges: Mapping[str, JudgeUse],
    analyses: Mapping[str, AnalysisUse],
) -> list[Problem]:
    uses: list[tuple[str, DefenseUse | AttackUse | JudgeUse | AnalysisUse]] = [("defenses", use) for use in defenses.values()]
    uses += [("attacks", use) for use in attacks.values()] + [("judges", use) for use in judges.values()]
    uses += [("analyses", use) for use in analyses.values()]
    problems = [
        Problem(
            (block, use.name),
            f"refers to the defense '{reference}', which is not in this file",
            close_to(reference, document.defenses),
        )
        for block, use in uses
        for reference in use.references
        if reference not in document.defenses
    ]
    for position, item in enumerate(document.matrix.exclude):
        for side, known in (("defense", document.defenses), ("attack", document.attacks)):
            named = getattr(item, side)
            if named is not None and named not in known:
                problems.append(
                    Problem(("matrix", "exclude", position, side), f"there is no {side} '{named}'", close_to(named, known))
                )
    for position, gate in enumerate(document.gates):
        if gate.defense not in document.defenses:
            path = ("gates", position, "defense")
            problems.append(Problem(path, f"there is no defense '{gate.defense}'", close_to(gate.defense, document.defenses)))
    return problems


def _nowhere_to_show(document: _Document, analyses: Mapping[str, AnalysisUse]) -> list[Problem]:
    """Analyses of defenses that the matrix keeps out of every attack: such a defense has no result of its own."""
    kept_out = {item.defense for item in document.matrix.exclude if item.attack is None}
    return [
        Problem(
            ("analyses", use.name), f"the matrix keeps '{name}' out of every attack", "let one attack it, or leave it out here"
        )
        for use in analyses.values()
        for name in use.defenses
        if name in kept_out
    ]


def _cycles(defenses: Mapping[str, DefenseUse]) -> list[Problem]:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[Problem]:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            return [Problem(("defenses", name), f"defenses refer to each other in a circle: {circle}", "break the circle")]
        if name in done:
            return []
        found = [problem for reference in defenses[name].references for problem in visit(reference, (*trail, name))]
        done.add(name)
        return found

    for name in defenses:
        if found := visit(name, ()):
            return found[:1]
    return []
