"""A transfer attack against attacks that see the gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd import plugins
from robustkd.checks.probe import gradient_misleads, pgd
from robustkd.contracts import Batch, Check, CheckContext, Finding, Params, Share
from robustkd.contracts.random import SampleRng, preserved_rng, seed_torch
from robustkd.evaluation.judging import judge
from robustkd.evaluation.suite import TargetDiagnostics
from robustkd.lazy import F, torch
from robustkd.scoring.worst_case import worst_case
from robustkd.targets.substitute import SubstituteTarget
from robustkd.targets.training import adam, fit

if TYPE_CHECKING:
    from torch import nn

LIMIT = 0.01
_LR = 5e-3  # of the substitute's training


class TransferParams(Params):
    samples: int = Field(256, ge=1, description="samples that are attacked, and that the substitute learns from")
    epochs: int = Field(40, ge=1, description="of the substitute's training")


class TransferBeatsWhiteBox(Check):
    """Does an attack on another network break what attacks on this one do not?

    The other network is a substitute, made on the spot: a small CNN that learns the target's answers on the attacked images and
    on noisy copies of them. Its adversarial examples come from PGD on the margin. On an honest network a substitute of 256
    images is a poor guide, and what it finds, the white-box attacks have found; over 1 % is more than the samples that PGD with
    few steps is known to miss. (0.2 %, as for Square, would be less than one of 256 samples.)
    """

    Params = TransferParams
    severity = "severe"
    rule = "adversarial examples of a substitute network break over 1 % of the samples, all of which every white-box attack left standing"
    needs_norm = True
    source = "Papernot et al. 2017, Practical black-box attacks, section 4; Athalye et al. 2018, section 3.1"
    cost = "4 forward passes a sample, on 256 samples (the substitute's own passes are not the target's)"

    def run(self, context: CheckContext) -> Finding:
        """Train the substitute, attack it, and show the result to the target."""
        white = [attack for attack in context.headline if attack.gradients]
        attack = pgd(context.threat, steps=20, loss="margin", stop_when_broken=False)
        if not white or attack.refusal(context.threat) or context.batch.inputs.ndim != 4:
            return self.not_applicable("it compares with a white-box attack, by PGD on images")
        n = min(self.params.samples, len(context.batch))
        batch = context.batch.select(torch.arange(n, device=context.batch.inputs.device))
        substitute = SubstituteTarget(context.target, self._trained(context, batch))
        asked = replace(batch, logits=None)  # they are the target's, not the substitute's
        result = attack.run(substitute, asked, context.threat, SampleRng(context.seed, batch.index, "transfer"))
        outcome = judge(context.target, attack, batch, context.threat, result)
        left = worst_case(attack.standing for attack in white)[:n]
        broken = left & outcome.success
        diagnostics = TargetDiagnostics(draws=batch.draws is not None, replaced=(), agreement=None)
        lost, fired = int(broken.sum()), bool(broken.sum() / n > LIMIT)
        return self.finding(
            fired,
            fix=_fix(misled=gradient_misleads(context, batch, broken, diagnostics)) if fired else "",
            explanation=(
                f"adversarial examples made on a substitute network break {lost} of the {int(left.sum())} samples that "
                f"{', '.join(a.name for a in white)} left standing"
            ),
            remedies=[{"kind": "square", "queries": 1000}],
            broken_by_transfer_only=lost,
            standing_under_white_box=int(left.sum()),
            share=Share(lost / n),
            n=n,
        )

    def _trained(self, context: CheckContext, batch: Batch) -> nn.Module:
        assert batch.logits is not None
        x, answers = batch.inputs, [batch.logits.argmax(1)]
        rng = SampleRng(context.seed, batch.index, "substitute")
        copies = [x]
        low, high = context.target.bounds
        with torch.no_grad():
            for copy in range(3):
                # Noise as wide as a tenth of the range: what the target says about it is what the substitute has to learn from.
                noisy = (x + (high - low) * 0.1 * rng.fork(copy).normal(x.shape[1:], dtype=x.dtype)).clamp(
                    *context.target.bounds
                )
                copies.append(noisy)
                answers.append(context.target(noisy).argmax(1))
        inputs, labels = torch.cat(copies), torch.cat(answers)
        plugin = plugins.load("models", "tiny-cnn")
        with preserved_rng(x.device), torch.enable_grad():
            seed_torch(context.seed)
            network: nn.Module = plugin(plugin.Params(width=32)).build(x.shape[1:], batch.logits.shape[1]).to(x.device)
            losses = (
                F.cross_entropy(network(inputs[rows].float()), labels[rows])
                for _ in range(self.params.epochs)
                for rows in torch.randperm(len(inputs), device=x.device).split(128)
            )
            fit(adam(network.parameters(), _LR), losses, lambda step: _LR)
        return network.eval()


def _fix(*, misled: bool) -> str:
    if misled:
        return "the target's own gradient misleads: use BPDA, a black-box attack, or transfer from a plain network"
    return "the attacks are too weak: more steps, restarts, and a loss on the margin"
