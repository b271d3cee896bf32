"""Campaign -> Plan: which cells there are, in an order in which they can run, and which pairs are left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.plan.cells import AnalysisCell, AttackCell, Cell, CellKind, ChecksCell, TrainCell
from robustkd.campaigns.plan.refusals import (
    require_inputs_taken,
    require_one_class_trained,
    require_plausible_budgets,
    require_regions_fit,
    require_trainable,
    require_training_data,
    require_usable_references,
)
from robustkd.campaigns.store.identity import digest, identified, plugin_identity, resolve_references
from robustkd.contracts import Attack, Capabilities, ThreatModel
from robustkd.contracts.json_value import JsonValue
from robustkd.data import Splits, load_splits
from robustkd.scoring.results import Skipped


@dataclass(frozen=True)
class Plan:
    """Everything a run will do.

    Attributes:
        cells: in an order in which each comes after what it needs.
        skipped: pairs that are not run.
        data: what the cells are trained and attacked on.
    """

    campaign: Campaign
    cells: tuple[Cell, ...]
    skipped: tuple[Skipped, ...]
    data: Splits[Any]

    @property
    def id(self) -> str:
        """A hash over the cells: two plans of the same numbers have the same one."""
        return digest([cell.id for cell in self.cells])

    @overload
    def of(self, kind: Literal["train"]) -> list[TrainCell]: ...

    @overload
    def of(self, kind: Literal["attack"]) -> list[AttackCell]: ...

    @overload
    def of(self, kind: Literal["checks"]) -> list[ChecksCell]: ...

    @overload
    def of(self, kind: Literal["analysis"]) -> list[AnalysisCell]: ...

    def of(self, kind: CellKind) -> Sequence[Cell]:
        """The cells of one kind, in order."""
        return [cell for cell in self.cells if cell.kind == kind]


def build(campaign: Campaign) -> Plan:
    """Lay out the cells of a campaign. Loads its data, for their hash.

    Raises:
        DataError: the data are missing or invalid, or lack what the defenses train on.
        UsageError: a budget is larger than the distance between any two images, a defense cannot be trained under the threat model,
            or an attack, a judge or an analysis uses another defense's model for what that cannot do.
    """
    data = load_splits(campaign.data.name, campaign.data.params, campaign.data.split)
    require_inputs_taken(campaign, data)
    require_one_class_trained(campaign, data)
    require_training_data(campaign, data)
    require_plausible_budgets(campaign, data)
    require_regions_fit(campaign, data)
    require_trainable(campaign)
    campaign.class_groups(data.classes)  # says so where a group names a class that there is not
    capabilities: dict[str, Capabilities] = {}
    order = training_order(campaign)
    for name in order:
        capabilities[name] = campaign.defenses[name].plugin.target_capabilities(capabilities)
    require_usable_references(campaign, capabilities)
    skipped = _skipped(campaign, capabilities, data)
    left_out = {(item.defense, item.attack) for item in skipped}
    maker = CellMaker(campaign, data)
    cells: list[Cell] = []
    for seed in campaign.seeds:
        trained: dict[str, str] = {}
        for name in order:
            train = maker.train(name, seed, trained)
            trained[name] = train.id
            cells.append(train)
        for name in campaign.defenses:
            analyses = [
                maker.analysis(name, analysis, seed, trained)
                for analysis, use in campaign.analyses.items()
                if name in use.defenses
            ]
            # Those that certify come first: the attacks need them.
            cells += (certifying := [cell for cell in analyses if campaign.analyses[cell.analysis].plugin.spares_attacks])
            attacks = [
                maker.attack(name, attack, seed, trained) for attack in campaign.attacks if (name, attack) not in left_out
            ]
            cells += attacks
            if campaign.checks and attacks:
                cells.append(maker.checks(name, seed, trained, {cell.attack: cell.id for cell in attacks}))
            cells += [cell for cell in analyses if cell not in certifying]
    return Plan(campaign, tuple(cells), tuple(skipped), data)


def _skipped(campaign: Campaign, capabilities: Mapping[str, Capabilities], data: Splits[Any]) -> list[Skipped]:
    found, one_range = [], data.unit is None or data.unit.uniform
    for defense in campaign.defenses:
        for attack, use in campaign.attacks.items():
            if campaign.excluded(defense, attack):
                found.append(Skipped(defense, attack, "excluded by the campaign's matrix"))
            elif (reason := use.plugin.refusal(use.threat)) or (
                isinstance(use.plugin, Attack) and (reason := use.plugin.unfit(data.input_shape, one_range=one_range))
            ):
                found.append(Skipped(defense, attack, reason))
            elif missing := use.plugin.missing(capabilities[defense]):
                needs = f"needs {' and '.join(missing)}, which targets of '{defense}' do not have"
                found.append(Skipped(defense, attack, f"{needs}: use an attack that does without"))
    return found


def training_order(campaign: Campaign) -> list[str]:
    """The defenses, each behind those that it refers to."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in order:
            for reference in campaign.defenses[name].references:
                visit(reference)
            order[name] = None

    for name in campaign.defenses:
        visit(name)
    return list(order)


def _measuring(threat: ThreatModel, trained: Mapping[str, str]) -> dict[str, str]:
    """The ids of the train cells of what a budget is measured by, by the defenses' names."""
    return {name: trained[name] for name in threat.budget.references}


def _where(threat: ThreatModel) -> list[dict[str, JsonValue]]:
    """What the identity of a cell has of the region: nothing where there is none."""
    return [] if threat.where is None else [threat.where.stored]


class CellMaker:
    """Makes cells with their identities, as this process sees the plug-ins, the files and the data.

    The description of a plug-in, which reads files, is made once and shared by many cells.
    """

    def __init__(self, campaign: Campaign, data: Splits[Any]) -> None:
        self._campaign, self._data = campaign, data
        self._known: dict[tuple[int, ThreatModel | None], dict[str, JsonValue]] = {}
        self._test: JsonValue = data.test_digests[0] if data.benign is None else data.test_digests
        self._threat: list[JsonValue] = [*campaign.threat.budget.identity[:2], *_where(campaign.threat)]

    @cached_property
    def _training(self) -> list[str]:
        """The hashes of the training data; not taken where no cell learns from them, since it decodes them all."""
        return [part.digest() for part in (self._data.train, self._data.validation) if part is not None]

    def forget(self) -> None:
        """Describe plug-ins anew from now on: files may have changed."""
        self._known.clear()

    def again(self, cell: Cell) -> Cell:
        """Make a cell of the campaign once more; it has another id where this process sees something else than who planned it."""
        match cell:
            case TrainCell():
                return self.train(cell.defense, cell.seed, cell.others)
            case AttackCell():
                return self.attack(cell.defense, cell.attack, cell.seed, cell.trained)
            case ChecksCell():
                return self.checks(cell.defense, cell.seed, cell.trained, cell.attacks)
            case AnalysisCell():
                return self.analysis(cell.defense, cell.analysis, cell.seed, cell.trained)
        raise TypeError(f"no cell of a campaign: {cell!r}")

    def target(self, name: str, seed: int) -> TrainCell:
        """The train cell of a defense, made from those of the defenses that it refers to."""
        references = self._campaign.defenses[name].references
        return self.train(name, seed, {reference: self.target(reference, seed).id for reference in references})

    def train(self, name: str, seed: int, trained: Mapping[str, str]) -> TrainCell:
        """The cell that trains a defense; ``trained`` has the ids of the train cells that it stands on, by defense."""
        use, data = self._campaign.defenses[name], self._data
        teachers = {reference: trained[reference] for reference in use.references}
        threat = self._campaign.threat if use.plugin.uses_threat else None
        parts: dict[str, JsonValue] = {
            "plugin": _with_references(self._plugin_identity(use.kind, use.plugin, threat), teachers),
            "threat": self._threat if threat else None,
            "training data": self._training if use.plugin.uses_data else None,
            # A defense that is loaded, not trained, is the same for every seed; the cells of its attacks still differ by theirs.
            "seed": use.training_seed(seed) if use.plugin.uses_data else None,
            "input shape": list(data.input_shape),
            "classes": data.num_classes,
        }
        if data.unit is not None:
            parts["bounds"] = data.unit.written
        if data.label is not None:
            parts["label"] = data.label
        if use.plugin.reads_class_names:
            parts["class names"] = list(data.classes)
        identifier = identified("train", parts)
        return TrainCell(id=identifier, defense=name, seed=seed, target=identifier, others=teachers, identity=parts)

    def attack(self, defense: str, attack: str, seed: int, trained: Mapping[str, str]) -> AttackCell:
        """The cell of an attack on a defense."""
        use, target = self._campaign.attacks[attack], trained[defense]
        others, judged = {name: trained[name] for name in use.references}, self._judge_targets(trained)
        norm, eps, space, attempts = use.threat.budget.identity
        allowed: list[JsonValue] = [norm, eps, use.threat.goal, sorted(set(use.curve)), *_where(use.threat)]
        parts: dict[str, JsonValue] = {
            "plugin": _with_references(self._plugin_identity(use.kind, use.plugin, use.threat), others),
            "threat": allowed,
            "test data": self._test,
            "target": target,
            "seed": seed,
        }
        if measuring := _measuring(use.threat, trained):
            parts["measured by"] = measuring
        certificates = self._certificates(defense, attack, seed, trained)
        if certificates:
            parts["certificates"] = certificates
        if use.plugin.traits.learns:
            parts["training data"] = self._training
        if self._campaign.judges:  # of images there are none, and their cells keep their identities
            allowed += [space, attempts]
            parts["judges"] = self._judges(judged)
        identifier = identified("attack", parts)
        return AttackCell(
            id=identifier,
            defense=defense,
            seed=seed,
            target=target,
            others=others,
            judges=judged,
            identity=parts,
            attack=attack,
            certificates=certificates,
        )

    def _certificates(self, defense: str, attack: str, seed: int, trained: Mapping[str, str]) -> dict[str, str]:
        """The ids of the analyses whose certificates spare a fixed-budget attack samples: they speak of its threat model."""
        use, campaign = self._campaign.attacks[attack], self._campaign
        if use.threat.budget != campaign.threat.budget or use.plugin.traits.kind != "fixed-budget":
            return {}
        return {
            name: self.analysis(defense, name, seed, trained).id
            for name, analysis in campaign.analyses.items()
            if defense in analysis.defenses and analysis.plugin.spares_attacks
        }

    def checks(self, defense: str, seed: int, trained: Mapping[str, str], attacks: Mapping[str, str]) -> ChecksCell:
        """The cell of the checks on a defense; ``attacks`` has the ids of its attack cells, by attack."""
        target = trained[defense]
        checks: list[JsonValue] = [self._plugin_identity(check.name, check) for check in self._campaign.checks]
        # The evidence names the attacks as the campaign does, so these names belong to the identity.
        basis = [[name, id_] for name, id_ in attacks.items()]
        parts: dict[str, JsonValue] = {"checks": checks, "threat": self._threat, "attacks": basis, "seed": seed}
        if measuring := _measuring(self._campaign.threat, trained):
            parts["measured by"] = measuring
        return ChecksCell(
            id=identified("checks", parts),
            defense=defense,
            seed=seed,
            target=target,
            others=measuring,
            judges=self._judge_targets(trained),
            identity=parts,
            attacks=dict(attacks),
        )

    def analysis(self, defense: str, analysis: str, seed: int, trained: Mapping[str, str]) -> AnalysisCell:
        """The cell of an analysis of a defense."""
        use, target = self._campaign.analyses[analysis], trained[defense]
        others, judged = {name: trained[name] for name in use.references}, self._judge_targets(trained)
        plugin = _with_references(self._plugin_identity(use.kind, use.plugin, self._campaign.threat), others)
        parts: dict[str, JsonValue] = {"plugin": plugin, "threat": self._threat}
        if measuring := _measuring(self._campaign.threat, trained):
            parts["measured by"] = measuring
        parts |= {"test data": self._test, "target": target, "seed": seed}
        if self._campaign.judges:
            parts["judges"] = self._judges(judged)
        return AnalysisCell(
            id=identified("analysis", parts),
            defense=defense,
            seed=seed,
            target=target,
            others=others | measuring,
            judges=judged,
            identity=parts,
            analysis=analysis,
        )

    def _plugin_identity(self, kind: str, plugin: Any, threat: ThreatModel | None = None) -> dict[str, JsonValue]:
        if (key := (id(plugin), threat)) not in self._known:
            self._known[key] = plugin_identity(kind, plugin, threat).to_json()
        return self._known[key]

    def _judges(self, judged: dict[str, str]) -> list[dict[str, JsonValue]]:
        return [_with_references(self._plugin_identity(use.kind, use.plugin), judged) for use in self._campaign.judges.values()]

    def _judge_targets(self, trained: Mapping[str, str]) -> dict[str, str]:
        return {name: trained[name] for judge in self._campaign.judges.values() for name in judge.references}


def _with_references(plugin: dict[str, JsonValue], targets: dict[str, str]) -> dict[str, JsonValue]:
    """A plug-in's description, with the cells of the defenses that it refers to in the place of their names."""
    return plugin | {"params": resolve_references(plugin["params"], targets)} if targets else plugin
