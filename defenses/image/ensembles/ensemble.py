"""A plain ensemble: trained defenses that answer together.

    p(x) = 1/M sum_m softmax(f_m(x))

The members are other defenses of the campaign, trained each for itself: the baseline of every ensemble defense, and the way to
attack several models as one. Members of one recipe need different ``replica`` numbers, else they are one and the same network.

Good as the reference that ensemble defenses have to beat. It is none itself: in ``dverge-small`` 15.4 % withstand transfer,
and 6.9 % an attacker who has the members.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from robustkd.contracts import Defense, FitContext, Params, Target, TargetRef, UsageError
from robustkd.targets import EnsembleTarget, ImageTarget


class EnsembleParams(Params):
    """Parameters of ``ensemble``."""

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

    def fit(self, context: FitContext) -> Target:
        """Put them together.

        Raises:
            UsageError: a member is no classifier of images, or of other ones than the first.
        """
        members = []
        for name in self.params.members:
            member = context.target(name)
            if not isinstance(member, ImageTarget):
                raise UsageError(f"'{name}' is a {member.kind}, which takes no images")
            members.append(member)
        target = EnsembleTarget(members).to(context.device)
        target.module.eval()
        return target
