"""What the analyses share that attack models of the campaign: which attack, what it finds, and who stands on that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.analyses.members import parts
from robustkd.contracts import Attack, Batch, Target, ThreatModel
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def attack_field(description: str, *, steps: int = 20, **params: JsonValue) -> Any:
    """The parameter that says how models are attacked: by PGD unless a user names another attack."""
    return Field({"kind": "pgd", "steps": steps, **params}, validate_default=True, description=description)


def adversarial(target: Target, attack: Attack, batch: Batch, threat: ThreatModel, seed: int, purpose: str) -> Tensor:
    """(N, *shape) what the attack finds on ``target``; the batch may be another target's.

    Raises:
        TargetError: the attack cannot be run on this target.
    """
    attack.require(target)
    own = replace(batch, logits=None, draws=None, rejection=target.num_classes - 1 if target.rejects else None)
    found = [attack.run(target, part, threat, SampleRng(seed, part.index, purpose)).adversarial for part in parts(own)]
    return torch.cat(found).detach()


def right(target: Target, inputs: Tensor, labels: Tensor) -> Tensor:
    """(N,) bool, which of (N, *shape) are classified as labelled."""
    with torch.no_grad():
        return torch.cat([target(x).argmax(1) == y for x, y in zip(inputs.split(256), labels.split(256), strict=True)])


def standing(target: Target, attack: Attack, batch: Batch, threat: ThreatModel, seed: int, purpose: str) -> Tensor:
    """(N,) bool, which samples are classified rightly before and after the attack."""
    attacked = adversarial(target, attack, batch, threat, seed, purpose)
    return right(target, batch.inputs, batch.labels) & right(target, attacked, batch.labels)
