"""Attacks in a row, each on the samples that all earlier ones left standing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ascent import Search, SearchResult
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.contracts import Attack, AttackResult, Batch, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample, within

if TYPE_CHECKING:
    from torch import Tensor


def cascade(
    stages: Sequence[tuple[str, Attack]], target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng
) -> AttackResult:
    """Attacks in a row, each on the samples that all earlier ones left standing.

    What is returned for a sample that withstood all of them is the first one's best try. There is no common loss: those of
    different attacks cannot be compared.
    """
    with frozen(target.module):
        search = Search.begin(target, batch, threat)
        batch = replace(batch, logits=search.answers)
        for name, attack in stages:
            rows = search.standing
            if not len(rows):
                break
            part = batch if len(rows) == len(batch) else batch.select(rows)
            result = attack.run(target, part, threat, rng.select(rows).fork(name))
            search.oracle.forwards[rows] += result.forwards
            search.oracle.backwards[rows] += result.backwards
            inside = usable(attack, result, part, threat)
            x = torch.where(per_sample(inside, part.inputs), result.adversarial, part.inputs)
            search.record(rows, SearchResult(x, torch.zeros_like(search.value[rows]), result.success & inside))
        return replace(search.result(), loss=None)


def usable(attack: Attack, result: AttackResult, batch: Batch, threat: ThreatModel) -> Tensor:
    """(B,) bool: what ``attack`` returned for a sample is inside the threat model's budget.

    A minimum-norm attack may come back from further away than the budget reaches. What an attack of a fixed budget returns is
    kept, wherever it is: where the platform measures it, nothing is dropped in silence.
    """
    if attack.traits.kind == "fixed-budget":
        return torch.ones_like(result.success)
    spent = distance(result.adversarial - batch.inputs, threat.norm)
    close = within(spent, batch.budget(threat), threat.norm, batch.inputs.shape[1:])
    return close & batch.untouched(result.adversarial, threat)
