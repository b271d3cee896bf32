"""The blocks of a campaign file -> its plug-ins, found and built, with typed parameters and threat models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from robustkd import plugins
from robustkd.campaigns.file.campaign import AnalysisUse, AttackUse, DataUse, DefenseUse, JudgeUse
from robustkd.campaigns.file.document.block import PluginBlock
from robustkd.campaigns.file.document.document import AnalysisBlock, ChecksSpec, DefenseBlock
from robustkd.campaigns.file.document.threat import ThreatSpec
from robustkd.campaigns.file.problems import Problem, close_to, validated
from robustkd.campaigns.file.yaml_source import KeyPath
from robustkd.contracts import Check, Modality, PluginError, named_plugins
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.data import SplitParams
from robustkd.evaluation.checks import check_names, make_check
from robustkd.evaluation.modality import evaluation_of

Common = TypeVar("Common", DefenseBlock, AnalysisBlock)
Model = TypeVar("Model", bound=BaseModel)

_BUDGET_KEYS = ("eps", "epsilon", "norm", "goal", "curve")


class Resolver:
    """Resolves one block after the other. A block that cannot be resolved is None, and ``problems`` says why.

    Attributes:
        folder: what relative paths are relative to.
        problems: what was wrong so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []

    def data(self, block: Mapping[str, Any]) -> DataUse | None:
        """The dataset with its parameters, and how it is split."""
        name = block.get("name")
        if not isinstance(name, str):
            self._add(("data",), "the data block has no name", "add 'name: digits'")
            return None
        shared = {key: value for key, value in block.items() if key in SplitParams.model_fields}
        own = {key: value for key, value in block.items() if key != "name" and key not in shared}
        split = self._validated(SplitParams, shared, ("data",))
        try:
            dataset = plugins.load("datasets", name)
        except PluginError as error:
            self._add(("data", "name"), error.message, error.fix)
            return None
        params = self._validated(dataset.Params, own, ("data",), also=(*SplitParams.model_fields, "name"))
        if split is None or params is None:
            return None
        return DataUse(name, params.model_dump(mode="json"), split, dataset.modality)

    def defense(self, name: str, use: PluginBlock) -> DefenseUse | None:
        """A defense, and which training of its recipe it is."""
        block, plugin = self._with_common(DefenseBlock, "defenses", use, ("defenses", name))
        return None if plugin is None or block is None else DefenseUse(name, use.kind, plugin, block.replica)

    def attack(self, name: str, use: PluginBlock, default: ThreatSpec, modality: Modality, scale: float) -> AttackUse | None:
        """An attack, and the threat model that it is judged under.

        Args:
            default: the threat of the campaign, in units of [0, 1].
            scale: what the eps of a threat of its own is divided by.
        """
        path: KeyPath = ("attacks", name)
        params = use.params
        threat = self._threat(params.pop("threat"), path, modality, scale) if "threat" in params else default
        plugin = self._plugin("attacks", use.kind, self._without_budget(use.kind, params, path, default), path)
        if plugin is None or threat is None:
            return None
        if threat.problem(modality) or modality not in plugin.modalities:  # it is complained of elsewhere
            return AttackUse(name, use.kind, plugin, threat.model(), ())
        judged = plugin.threat_for(threat.model())
        if judged != plugin.threat_for(threat.larger()):
            return AttackUse(name, use.kind, plugin, judged, judged.budget.points or threat.curve)
        if "threat" in use.params:
            self._add((*path, "threat"), f"'{use.kind}' has no budget to set", "leave the threat out")
        return AttackUse(name, use.kind, plugin, judged, ())

    def analysis(self, name: str, use: PluginBlock, defenses: Mapping[str, PluginBlock]) -> AnalysisUse | None:
        """An analysis, and the ``defenses`` of the file that it is made of."""
        path: KeyPath = ("analyses", name)
        block, plugin = self._with_common(AnalysisBlock, "analyses", use, path)
        if plugin is None or block is None:
            return None
        for position, named in enumerate(block.defenses):
            if named not in defenses:
                self._add((*path, "defenses", position), f"there is no defense '{named}'", close_to(named, defenses))
        return AnalysisUse(name, use.kind, plugin, tuple(dict.fromkeys(block.defenses)))

    def judges(self, block: Mapping[str, PluginBlock], data: DataUse | None) -> dict[str, JudgeUse]:
        """The judges that the file names, else those that the dataset comes with; prompts need one."""
        uses = dict(block)
        if data is not None and evaluation_of(data.modality).needs_judges and not uses:
            uses = {name: PluginBlock.model_validate(use) for name, use in plugins.load("datasets", data.name).judges.items()}
            if not uses:
                self._add(
                    ("judges",), f"'{data.name}' comes without judges", "name one, such as refusal: {kind: refusal-match}"
                )
        return {
            name: JudgeUse(name, use.kind, plugin)
            for name, use in uses.items()
            if (plugin := self._plugin("judges", use.kind, use.params, ("judges", name))) is not None
        }

    def _threat(self, written: object, path: KeyPath, modality: Modality, scale: float) -> ThreatSpec | None:
        """The threat of an attack's own, in units of [0, 1]."""
        threat = self._validated(ThreatSpec, written, (*path, "threat"))
        if threat is None:
            return None
        if wrong := threat.problem(modality):
            self._add((*path, "threat"), *wrong)
        return threat.divided(scale)

    def _without_budget(
        self, kind: str, params: dict[str, JsonValue], path: KeyPath, default: ThreatSpec
    ) -> dict[str, JsonValue]:
        """``params`` without the keys that belong into the threat, each of which is a problem unless the attack has such a parameter."""
        misplaced = [key for key in _BUDGET_KEYS if key in params and not _has_parameter("attacks", kind, key)]
        for key in misplaced:
            written = f"threat: {{norm: {default.norm}, {key}: {params[key]}}}"
            fix = f"write it into the threat, the campaign's or this attack's: {written}"
            self._add((*path, key), f"'{kind}' has no such parameter", fix)
        return {key: value for key, value in params.items() if key not in misplaced}

    def _with_common(
        self, model: type[Common], group: plugins.Group, use: PluginBlock, path: KeyPath
    ) -> tuple[Common | None, Any]:
        """The keys that every plug-in of the group may have, and the plug-in with the others as its parameters."""
        common = {key: value for key, value in use.params.items() if key in model.model_fields}
        own = {key: value for key, value in use.params.items() if key not in common}
        block = self._validated(model, common, path)
        return block, self._plugin(group, use.kind, own, path, also=tuple(model.model_fields))

    def _plugin(self, group: plugins.Group, kind: str, written: JsonObject, path: KeyPath, also: tuple[str, ...] = ()) -> Any:
        """The plug-in with the parameters that are ``written`` at ``path``; None if there is none or they are wrong."""
        try:
            plugin = plugins.load(group, kind)
        except PluginError as error:
            self._add((*path, "kind"), error.message, error.fix)
            return None
        params = self._validated(plugin.Params, written, path, also=("kind", *also))
        if params is None:
            return None
        for key, other, name in named_plugins(params):
            if name not in (known := plugins.names(other)):  # type: ignore[arg-type]
                self._add((*path, key), f"there is no {plugins.one_of(other)} '{name}'", close_to(name, known))
        return plugins.build(group, kind, params)

    def _validated(self, model: type[Model], written: object, path: KeyPath, also: tuple[str, ...] = ()) -> Model | None:
        return validated(model, written, path, self.folder, self.problems, also=also)

    def _add(self, path: KeyPath, message: str, fix: str | None) -> None:
        self.problems.append(Problem(path, message, fix))


def checks(block: ChecksSpec, modality: Modality) -> tuple[Check, ...]:
    """The checks of the level that the file asks for."""
    if block.level == "none":
        return ()
    return tuple(make_check(name, block.samples) for name in check_names(block.level, modality))


def _has_parameter(group: plugins.Group, kind: str, key: str) -> bool:
    """Whether a plug-in has a parameter of this name; True of one that cannot be loaded, which is told elsewhere."""
    try:
        return key in plugins.load(group, kind).Params.model_fields
    except PluginError:
        return True
