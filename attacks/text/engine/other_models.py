"""The language models that an attack uses beside its target."""

from __future__ import annotations

from robustkd.contracts import PromptAttack, UsageError
from robustkd.targets.causal_lm import CausalLMTarget


def language_model(attack: PromptAttack, name: str) -> CausalLMTarget:
    """The model of the defense ``name`` that ``attack`` refers to.

    Raises:
        UsageError: it was not handed over, or it is no language model.
    """
    found = attack.target(name)
    if not isinstance(found, CausalLMTarget):
        raise UsageError(f"'{name}' is no language model, which the attack needs", fix="name a defense that makes one")
    return found
