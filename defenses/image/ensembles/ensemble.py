"""A plain ensemble: trained defenses that answer together.

    p(x) = 1/M sum_m softmax(f_m(x))

The members are other defenses of the campaign, trained each for itself: the baseline of every ensemble defense, and the way to
attack several models as one. Members of one recipe need different ``replica`` numbers, else they are one and the same network.

Good as the reference that ensemble defenses have to beat. It is none itself: in ``dverge-small`` 15.4 % withstand transfer,
and 6.9 % an attacker who has the members.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator

from robustkd.contracts import Capabilities, Defense, FitContext, Params, Target, TargetRef
from robustkd.targets import ClassifierTarget, EnsembleTarget, ImageTarget
from robustkd.targets.ensemble import together
from robustkd.targets.logits import as_logits


class EnsembleParams(Params):
    members: tuple[TargetRef, ...] = Field(min_length=1, description="other defenses of the campaign")

    @field_validator("members")
    @classmethod
    def _once_each(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(members)) < len(members):
            raise ValueError("a member is named twice")
        return members


class Ensemble(Defense):
    """Members of the campaign, their probabilities averaged."""

    Params = EnsembleParams
    uses_data = False
    source = "Hansen & Salamon: Neural network ensembles (IEEE TPAMI 1990)"

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """What all members have, and the members."""
        return together(others[name] for name in self.params.members)

    def fit(self, context: FitContext) -> Target:
        """Put them together.

        Raises:
            UsageError: a member is no classifier of images, or of other ones than the first.
        """
        members = [_member(context, name) for name in self.params.members]
        target = EnsembleTarget(members).to(context.device)
        target.module.eval()
        return target


def _member(context: FitContext, name: str) -> ImageTarget:
    """The finished target called ``name``, in logits: where it returns probabilities, their logarithm."""
    found = context.target(name, ImageTarget)
    return as_logits(found, f"member '{name}'") if isinstance(found, ClassifierTarget) else found
