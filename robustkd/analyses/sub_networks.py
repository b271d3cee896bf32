"""Each sub-network of a network, and the rule that chooses among them, under what breaks any of them.

    R_ij = share of samples x with f_i(x) = y and f_i(x'_j) = y,      x'_j = attack on f_j

f_1 .. f_S are the exits or widths, and f_{S+1}, of an adaptive network, is the network as it is deployed. The worst case of f_i is over all
x'_j: an attack on the rule climbs one exit at a time and may stop where the rule jumps to another, so what breaks an exit is shown to the
rule as well. On x'_j the attack goes on to its last step and hands over its highest loss.

Source: Hu et al.: Triple wins (ICLR 2020), arXiv:2002.10025, section 3.2, attacks each exit, and their mean; the matrix is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.attacked import adversarial, attack_field, right
from robustkd.analyses.members import first_samples
from robustkd.attacks.image.wrappers.transfer import Surrogate
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetError, ThreatModel
from robustkd.lazy import torch
from robustkd.scoring.intervals import share_interval
from robustkd.targets import ImageTarget
from robustkd.targets.sub_network import SubNetworkTarget, sub_networks

if TYPE_CHECKING:
    from torch import Tensor

RULE = "the rule"


class SubNetworksParams(Params):
    attack: AttackSpec = attack_field("the attack on each", loss="margin")
    samples: int = Field(500, ge=1, description="samples at most")


class SubNetworksUnderAttack(Analysis):
    """The worst case of each exit or width and of the rule, and how far adversarial examples transfer among them."""

    Params = SubNetworksParams
    inputs = "images"
    source = "Hu et al. 2020, arXiv:2002.10025"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for each sub-network, the rule last; ``metrics``: the worst case of each, and of the rule under its own attack alone.

        Raises:
            TargetError: the network holds no other, or the attack cannot be used under the threat model.
        """
        p, network = self.params, sub_networks(target)
        assert isinstance(target, ImageTarget)
        attack = p.attack.make()
        if reason := attack.refusal(threat):
            raise TargetError(f"the attack of sub-networks {reason}", fix="name another attack")
        judged: dict[str, Target] = {name: SubNetworkTarget(target, name) for name in network.names}
        adaptive = hasattr(network, "budgets")
        if adaptive:
            judged[RULE] = target
        samples = first_samples(batch, p.samples)
        found = {
            name: adversarial(Surrogate(one), attack, samples, threat, seed, "sub-networks") for name, one in judged.items()
        }
        full, values, metrics = network.multiply_adds[-1], [], {}
        for number, (name, one) in enumerate(judged.items()):
            clean = right(one, samples.inputs, samples.labels)
            stands = torch.stack([clean & right(one, x, samples.labels) for x in found.values()])
            worst = stands.all(0)
            cost = network.multiply_adds[number] / full if name != RULE else _spent(network, samples.inputs) / full
            low, high = share_interval(worst.cpu().numpy())
            values.append([cost, _share(clean), *map(_share, stands), _share(worst), low, high])
            metrics[f"worst_case_of_{name.replace(' ', '_')}"] = _share(worst)
            if name == RULE:
                metrics["rule_under_its_own_attack"] = _share(stands[number])
        return Table(
            caption=f"accuracy of the row's network on {len(samples)} samples, clean and under {p.attack.kind} on the column's network, "
            "and under all of these (worst case with its 95 % interval); multiply-adds as a share of the whole network's",
            rows=list(judged),
            columns=["multiply-adds", "clean", *(f"by {name}" for name in judged), "worst case", "low", "high"],
            values=values,
            metrics=metrics,
        )


def _share(held: Tensor) -> float:
    return float(held.float().mean())


def _spent(network: object, inputs: Tensor) -> float:
    with torch.no_grad():
        spent: Tensor = torch.cat([network.spent(x) for x in inputs.split(256)])  # type: ignore[attr-defined]
    return float(spent.float().mean())
