"""DDK's sampler: what a student lags behind its teacher in, it sees more often.

    r_i = exp(CE_student,i - CE_teacher,i)   on held-out answers of domain i
    P_i = u / n + (1 - u) r_i / sum_j r_j    of the n domains, measured anew every D updates

Where the gaps are equal, all domains are drawn alike.

Source: Liu et al.: DDK: distilling domain knowledge for efficient large language models (NeurIPS 2024), as its
abstract and others describe it; no code of the authors was found. The share u of the uniform part, that the ratio is
not smoothed over time, and that a domain is a role of the data are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from robustkd.contracts import DataError, FitContext, Params, Prompts
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.text.training import Conversations, mean_cross_entropy
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens

if TYPE_CHECKING:
    from torch import Tensor


class DomainParams(Params):
    """How often each role's requests are drawn."""

    every: int = Field(100, ge=1, description="D, updates after which the gaps are measured anew")
    uniform: float = Field(0.2, ge=0, le=1, description="u, the share that is drawn evenly; 1: the control")


class Domains:
    """Conversations by role, drawn by how far the student lags behind its teacher in each.

    Args:
        rows: what is trained on; the answers are in the column ``reference``.
        context: has the held-out requests.
        teacher: who is lagged behind.
        params: how often is measured, and how much of it counts.

    Raises:
        DataError: there are no validation requests of any of these roles.
    """

    def __init__(self, rows: Prompts, context: FitContext[Prompts], teacher: CausalLMTarget, params: DomainParams) -> None:
        self._params, self._updates = params, 0
        roles = sorted(set(rows["role"]))
        self._items = [_of_role(teacher, rows, role) for role in roles]
        held = None if context.validation is None else with_reference(context.validation)
        self._held = [None if held is None or role not in held["role"] else _of_role(teacher, held, role) for role in roles]
        if not any(self._held):
            raise DataError(
                "no validation request has a role of those that are trained on, so no gap can be measured",
                fix="use data with validation requests, such as 'vaults', or leave 'domains' out",
            )
        self._teacher_losses = [0.0 if one is None else mean_cross_entropy(teacher, one) for one in self._held]
        self.odds = torch.full((len(roles),), 1 / len(roles))

    def take(self, student: CausalLMTarget, count: int, generator: torch.Generator) -> list[Tokens]:
        """``count`` conversations for the next update."""
        if self._updates % self._params.every == 0:
            losses = [None if one is None else mean_cross_entropy(student, one) for one in self._held]
            self.odds = domain_odds(losses, self._teacher_losses, self._params.uniform)
        self._updates += 1
        chosen = torch.multinomial(self.odds, count, replacement=True, generator=generator).tolist()
        return [self._items[role].take(self._items[role].draw(1, generator))[0] for role in chosen]

    def state_dict(self) -> JsonObject:
        """How often each role is drawn, and how many updates there were."""
        return {"odds": self.odds.tolist(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.odds, self._updates = torch.tensor(state["odds"]), int(state["updates"])


def domain_odds(student: list[float | None], teacher: list[float], uniform: float) -> Tensor:
    """(n,) probabilities of the domains, from mean cross entropies; a domain without held-out answers counts as the mean ratio."""
    gaps = [None if own is None else float(np.exp(own - other)) for own, other in zip(student, teacher, strict=True)]
    measured = [gap for gap in gaps if gap is not None]
    ratios = torch.tensor([sum(measured) / len(measured) if gap is None else gap for gap in gaps], dtype=torch.float64)
    return (uniform / len(ratios) + (1 - uniform) * ratios / ratios.sum()).float()


def with_reference(rows: Prompts) -> Prompts:
    """Rows with a column ``reference``, what is to be answered: the refusal of a forbidden request, else the response."""
    refusals = rows.get("refusal")
    said = [
        refusal if role == "forbidden" else response
        for role, refusal, response in zip(rows["role"], refusals, rows["response"], strict=True)
    ]
    return Prompts({**rows.columns, "reference": tuple(said)}, rows.labels, rows.images)


def _of_role(target: CausalLMTarget, rows: Prompts, role: str) -> Conversations:
    chosen = rows.where("role", role)
    return Conversations.of(target, chosen["prompt"], chosen["reference"])
