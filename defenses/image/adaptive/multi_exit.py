"""A multi-exit network whose last exit teaches the others, and whose threshold is chosen on the validation data.

    min_w  sum_e CE(z_e(x~), y)  +  weight * tau^2 * sum_{e < E} KL( sg(z_E(x~)); tau || z_e(x~); tau )

x~ is x, or with ``inner`` an adversarial example of the rule: then every exit is trained adversarially. An image is answered by the first
exit whose largest probability reaches the threshold, which is the smallest at which the rule's accuracy on the validation images is at most
``accuracy_drop`` below that of the last exit.

Good where easy images are many: they cost less. What an image costs can be attacked as well as what is answered: see the analysis
``slowdown``.

Control: ``weight: 0``, exits that are trained side by side and learn nothing from the last.

Sources: Zhang et al.: Be your own teacher (ICCV 2019), arXiv:1905.08094, for the divergence from the last exit, without its loss between
features; Kaya, Hong, Dumitras: Shallow-deep networks (ICML 2019), arXiv:1810.07052, for the rule, and Hong et al.: DeepSloth (ICLR 2021),
arXiv:2010.02432, for a threshold by the accuracy that it may cost. It stands for ModularStarEncoder (2025), of which the abstract was read,
in a reduced form: exits at several layers, each with a loss of its own, the higher teaching the lower; its losses are contrastive, and its
encoder is one of code. ``inner`` and the equal weights of the exits are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext, ModelName, Target, ThreatModel, UsageError
from robustkd.defenses.training import (
    Adversary,
    InnerMaximisation,
    Minibatch,
    NetworkParams,
    OptionallyAdversarial,
    Recipe,
    fresh_network,
    kl,
    train,
)
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.sub_network import sub_networks

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


class MultiExitParams(NetworkParams):
    """Parameters of ``multi-exit``."""

    model: ModelName = Field("multi-exit-cnn", description="the architecture: a model plug-in with exits")
    weight: float = Field(0.5, ge=0, description="of the divergence from the last exit")
    temperature: float = Field(3.0, gt=0, description="tau, of all exits in the divergence")
    accuracy_drop: float = Field(
        0.01, ge=0, lt=1, description="what the rule may cost of the last exit's accuracy on the validation images"
    )
    inner: InnerMaximisation | None = Field(
        None, description="adversarial examples to train on in place of the images; {} makes them by 10 steps"
    )


class MultiExitRecipe(Recipe[ClassifierTarget]):
    """Cross entropies of all exits, and divergences from the last.

    Args:
        params: the defense's.
        adversary: makes the examples, or None.
        threat: what the deployed epoch is selected against, with an adversary.
    """

    def __init__(self, params: MultiExitParams, adversary: Adversary | None = None, threat: ThreatModel | None = None) -> None:
        self.params, self.adversary, self.threat = params, adversary, threat

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum_e CE(z_e, y) + weight tau^2 sum_{e < E} KL(z_E || z_e)."""
        p = self.params
        x = batch.x if self.adversary is None else self.adversary(target, batch)
        answers = sub_networks(target).answers(x)
        hard = torch.stack([F.cross_entropy(logits, batch.y) for logits in answers]).sum()
        taught = answers[-1].detach()
        soft = torch.stack(
            [
                kl(taught, logits, teacher_temperature=p.temperature, student_temperature=p.temperature, reduction="batch")
                for logits in answers[:-1]
            ]
        ).sum()
        return hard + p.weight * p.temperature**2 * soft, {"loss_soft": soft}


def threshold_for(confidences: Tensor, right: Tensor, drop: float) -> float:
    """The smallest confidence at which the first exit that reaches it answers at most ``drop`` worse than the last exit.

    Args:
        confidences: (E - 1, N), of all exits but the last, on any scale.
        right: (E, N) bool, whether each exit is right.
        drop: in accuracy.

    Returns:
        One of the confidences, or infinity where none will do.
    """
    wanted = int(right[-1].sum()) - drop * right.shape[1] - 1e-6
    for threshold in confidences.flatten().unique().tolist():
        sure = torch.cat([confidences >= threshold, torch.ones_like(right[:1])])
        first = sure.to(torch.uint8).argmax(0)
        if int(right.gather(0, first.unsqueeze(0)).sum()) >= wanted:
            return float(threshold)
    return torch.inf


class MultiExit(OptionallyAdversarial):
    """A network that answers what is easy early."""

    Params = MultiExitParams
    source = "Zhang et al. 2019, arXiv:1905.08094; Kaya et al. 2019, arXiv:1810.07052"

    def fit(self, context: FitContext) -> Target:
        """Train all exits, select the epoch by the rule at the architecture's own threshold, then choose the threshold.

        Raises:
            UsageError: the architecture has no exits.
        """
        p = self.params
        target = fresh_network(context, p.model, p.model_params)
        network: Any = target.module
        if not getattr(network, "has_exits", False):
            raise UsageError(f"multi-exit trains a network with exits, '{p.model}' has none", fix="name multi-exit-cnn")
        adversary = None if p.inner is None else Adversary.under(p.inner, context.threat)
        train(context, target, MultiExitRecipe(p, adversary, context.threat if adversary else None), p)
        images, labels = torch.from_numpy(context.validation.unit()), torch.from_numpy(context.validation.labels)
        with torch.no_grad():
            found = [network.answers(part.to(context.device)).cpu() for part in images.split(_BATCH)]
        answers = torch.cat(found, 1)
        from robustkd.models.sub_networks import log_odds  # late: it imports torch

        threshold = threshold_for(log_odds(answers[:-1]), answers.argmax(2) == labels, p.accuracy_drop)
        network.threshold.fill_(threshold)
        return target
