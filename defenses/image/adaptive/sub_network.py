"""One sub-network of another defense's network: an exit whatever the rule says, or a width.

    f'(x) = z_name(x)

The weights are taken as they are. So the campaign attacks each exit and width by itself, with every attack, check and interval that it has,
beside the whole network, which answers by its rule.

Good to see what the rule is worth: an attack on it may be stopped by the jump from one exit to the next, and what breaks an exit may break
the rule.

Source: this package; that every exit has to be attacked, and the rule with them: Hu et al.: Triple wins (ICLR 2020), arXiv:2002.10025.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Capabilities, Defense, FitContext, Params, Target, TargetRef
from robustkd.targets import ImageTarget
from robustkd.targets.sub_network import SubNetworkTarget


class SubNetworkParams(Params):
    base: TargetRef = Field(description="the defense whose network holds it: one of multi-exit, acm, elastic-student or wa")
    part: str = Field(
        description="which one: exit-1, ..; learners-1, ..; width-0.25, ..; or after-1, .. (tasks)",
        examples=["exit-1"],
    )


class SubNetworkOf(Defense):
    """A sub-network of another defense, as it is."""

    Params = SubNetworkParams
    uses_data = False
    source = "this package"

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        return others[self.params.base] - {"members"}

    def fit(self, context: FitContext) -> Target:
        """Take it out.

        Raises:
            TargetError: the base holds no sub-network of this name.
            UsageError: the base is no classifier of images.
        """
        target = SubNetworkTarget(context.target(self.params.base, ImageTarget), self.params.part).to(context.device)
        target.module.eval()
        return target
