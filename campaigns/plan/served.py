"""How often a plan asks served models, which costs: an upper bound, known before anything is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan, training_order
from robustkd.contracts import PromptAttack


@dataclass(frozen=True)
class ServedRequests:
    """An upper bound on the requests that the attacks of a plan send to one served model, without those of checks and analyses.

    Attributes:
        requests: each request that is new to it.
        tokens: that it writes.
    """

    defense: str
    requests: int
    tokens: int

    @property
    def sentence(self) -> str:
        """One sentence about the requests that a served model will get."""
        return f"{self.defense} is asked at most {self.requests:,} times by attacks and judges, and writes at most {self.tokens:,} tokens"


def served_requests(plan: Plan, finished: Collection[str] = ()) -> list[ServedRequests]:
    """A bound for each served model of a plan, over its attack cells that are not ``finished``.

    A request is counted as often as the cells make it, though one that was answered is not asked again.
    """
    campaign, count = plan.campaign, Counter[str]()
    most = {name: use.plugin.served_tokens for name, use in campaign.defenses.items()}
    if not any(most.values()):
        return []
    n, benign = len(plan.data.test), len(plan.data.benign or ())
    prepared: set[tuple[str, int]] = set()
    for cell in plan.of("attack"):
        if cell.id not in finished:
            prepared.add((cell.defense, cell.seed))
            attempts, asked = (n * most for most in _most(plan, cell))
            count[cell.defense] += attempts
            count.update(dict.fromkeys(cell.others, asked))
            # The first judges each attempt, and behind guards what the model alone makes of it as well; the others the last one.
            judged = attempts * (2 if campaign.defenses[cell.defense].plugin.asks() else 1) + n
            for place, judge in enumerate(campaign.judges.values()):
                count.update(dict.fromkeys(judge.references, n if place else judged))
    begun = sum(bool(text) for text in plan.data.test.get("prefill"))
    for defense, _ in prepared:
        unattacked = n + begun + benign
        count[defense] += unattacked
        judged = unattacked + (benign if campaign.defenses[defense].plugin.asks() else 0)
        count.update(dict.fromkeys(next(iter(campaign.judges.values())).references if campaign.judges else (), judged))
    for name in reversed(training_order(campaign)):
        for part, times in campaign.defenses[name].plugin.asks().items():
            count[part] += times * count[name]
    return [ServedRequests(name, count[name], count[name] * tokens) for name, tokens in most.items() if tokens is not None]


def _most(plan: Plan, cell: AttackCell) -> tuple[int, int]:
    """The most attempts on a request, and how often each other model is asked for it."""
    use = plan.campaign.attacks[cell.attack]
    assert isinstance(use.plugin, PromptAttack)  # nothing else attacks a served model
    allowed = use.threat.attempts
    return use.plugin.most_attempts(allowed), use.plugin.most_asked_of_others(allowed)
