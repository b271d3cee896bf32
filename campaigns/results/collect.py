"""Store -> Results: the numbers of a campaign, recomputed from per-sample evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.curve import worst_case_of
from robustkd.campaigns.results.data_summary import data_summary, environment
from robustkd.campaigns.results.defense_result import defense_result
from robustkd.campaigns.results.failure import Failure
from robustkd.campaigns.results.served import served
from robustkd.campaigns.results.trained import Trained, each_trained
from robustkd.campaigns.store.identity import plugin_identity
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import Store
from robustkd.scoring.paired import Attacked, compared
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.summaries import AttackSummary, GateSummary, JudgeSummary, ThreatSummary


def collect(
    plan: Plan,
    store: Store,
    failures: Mapping[str, Failure],
    seen: Callable[[AttackCell, AttackRecord], None] | None = None,
    *,
    rejudge: bool = False,
) -> Results:
    """The results of every planned cell; those without one carry the reason. ``seen`` is shown each finished attack's record.

    One trained defense after the other: the samples of all cells together would not fit into memory.

    Args:
        plan: the cells.
        store: what is known of them.
        failures: of cells that this run could not do.
        seen: called with each finished attack.
        rejudge: judge stored findings by the present rules, also those of checks that ran under former ones.
    """
    campaign = plan.campaign
    norm, eps, where = campaign.threat.stored_values
    cells: list[CellResult] = []
    defenses: dict[tuple[str, int], DefenseResult] = {}
    standing: list[tuple[str, int, np.ndarray]] = []
    attacked: dict[tuple[str, int], Attacked] = {}
    behind = _headline_attacks(plan)
    finished: list[str] = []
    shown: set[str] = set()
    for trained in each_trained(plan, store, failures, rejudge):
        name, seed = trained.train.defense, trained.train.seed
        finished += trained.finished()
        if seen:
            trained.show(seen)
        cells += trained.attack_results()
        defenses[name, seed] = defense_result(trained)
        if trained.has_result:
            shown.add(name)
        if trained.is_complete:
            standing.append((name, seed, worst_case_of(list(trained.headline_records().values()))))
            attacked[name, seed] = _attacked(trained, behind)
    return Results(
        campaign=campaign.name,
        threat=ThreatSummary(norm, eps, campaign.threat.goal, where),
        data=data_summary(plan),
        cells=cells,
        defenses=[defenses[name, seed] for name in campaign.defenses if name in shown for seed in campaign.seeds],
        skipped=list(plan.skipped),
        comparisons=compared(standing, attacked),
        attacks={
            name: AttackSummary(**vars(plugin_identity(use.kind, use.plugin, use.threat)))
            for name, use in campaign.attacks.items()
        },
        environment=environment(max(finished, default=None)),
        served=served(store.answers),
        gates=[GateSummary(gate.defense, gate.metric, gate.at_least) for gate in campaign.gates],
        undefended=[name for name in campaign.undefended if name in shown],
        judges={name: JudgeSummary(**vars(plugin_identity(use.kind, use.plugin))) for name, use in campaign.judges.items()},
    )


def _headline_attacks(plan: Plan) -> dict[str, tuple[str, ...]]:
    """By defense the attacks under the campaign's threat model: fewer, where the matrix or what a target lacks leaves some out."""
    attacks, found = plan.campaign.attacks, dict[str, dict[str, None]]()
    for cell in plan.of("attack"):
        if attacks[cell.attack].threat == plan.campaign.threat:
            found.setdefault(cell.defense, {})[cell.attack] = None
    return {name: tuple(own) for name, own in found.items()}


def _attacked(trained: Trained, behind: Mapping[str, tuple[str, ...]]) -> Attacked:
    """What is left of a defense by those of its attacks that another one has too, for each such choice of them."""
    own, records = behind[trained.train.defense], trained.headline_records()
    shared = {frozenset(own).intersection(others) for others in set(behind.values()) if set(others) != set(own)}
    return Attacked(own, {some: worst_case_of([records[name] for name in some]) for some in shared if some})
