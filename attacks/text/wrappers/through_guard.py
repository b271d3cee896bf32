"""Through the guards: any search that goes by the model's loss, with the guards around the model in that loss.

    loss(prompt) = mean over what the model sees of it ( loss of the bare model ) + weight * sum over guards max(0, alarm)

Of a model that draws, the alarms are those about pictures; the prompts that a filter would hold back are not proposed, and what drawings
are led away from is in the predictions (``robustkd.targets.guarded_drawing``).

Without it a search knows the model and not its guards: it optimises what the guards change or hold back, as attacks without ``eot`` and
``bpda`` do on images. What a guard draws is replaced by its mean over ``draws`` texts that the attacker draws (EOT). Gradients are those
at the prompt itself: no changed text is differentiated, and the alarm chooses among candidates alone (BPDA).

Control: the same attack without the wrapper. Where the model has no guard, the two are the same. ``beast`` around a perplexity filter
is the natural choice, as its candidates are likely words; ``gcg`` finds few of these. A guard whose reader is only served tells no score:
nothing is searched then, and an attack by answers (``pair``) is left.

Source: Carlini & Wagner: Adversarial examples are not easily detected (AISec 2017), for the detector's term in the loss; Jain et al. 2023,
arXiv:2309.00614, section 4.1, for perplexity; Athalye et al. 2018, arXiv:1802.00420, for EOT and BPDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator
from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import (
    Attempts,
    BaseTarget,
    Capabilities,
    GenerativeTarget,
    Params,
    PluginError,
    PromptAttack,
    PromptBatch,
    ThreatModel,
    Traits,
)
from robustkd.contracts.random import SampleRng
from robustkd.plugins.nested import PluginSpec
from robustkd.targets.guarded import BehindGuards, guards_of
from robustkd.targets.guarded_drawing import BehindDrawingGuards


class PromptAttackSpec(PluginSpec):
    """An attack on prompts by its kind, with its parameters."""

    group: ClassVar[plugins.Group] = "attacks"

    @override
    def make(self) -> PromptAttack[Any]:
        attack = super().make()
        if not isinstance(attack, PromptAttack):
            raise PluginError(f"'{self.kind}' is no attack on prompts", fix="name one, such as gcg")
        return attack


class ThroughGuardParams(Params):
    """The attack that is wrapped, and what the guards count in its loss."""

    attack: PromptAttackSpec = Field(
        {"kind": "gcg"}, validate_default=True, description="the attack to wrap: its kind and parameters"
    )
    weight: float = Field(1.0, gt=0, description="of the guards' alarms in the loss")
    draws: int = Field(
        5, ge=1, description="texts that stand for what a guard draws of a prompt: so many passes for a candidate"
    )

    @field_validator("attack")
    @classmethod
    def _goes_by_the_loss(cls, attack: PromptAttackSpec) -> PromptAttackSpec:
        traits = attack.make().traits
        if not traits.needs & {"log-probabilities", "denoising"} or traits.space != "prompt":
            raise ValueError(f"'{attack.kind}' searches no prompt by the model's loss: use it without the wrapper")
        return attack


class ThroughGuard(PromptAttack):
    """Another attack, with the guards of the model in its loss."""

    Params = ThroughGuardParams
    modalities = ("text", "text-to-image")
    knows_guards = True
    source = "Jain et al. 2023, arXiv:2309.00614; Athalye et al. 2018, arXiv:1802.00420"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.inner: PromptAttack[Any] = self.params.attack.make()
        self.version = f"{type(self).version}/{self.inner.version}"  # its numbers change when those of either do
        self.control = self.inner.control
        vars(self)["modalities"] = self.inner.modalities

    @property
    @override
    def traits(self) -> Traits:
        return self.inner.traits

    @override
    def others(self) -> dict[str, Capabilities]:
        return self.inner.others()

    @override
    def files(self) -> list[Path]:
        return self.inner.files()

    @override
    def most_attempts(self, allowed: int) -> int:
        return self.inner.most_attempts(allowed)

    @override
    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        return self.inner.threat_for(threat)

    @override
    def with_targets(self, targets: Mapping[str, BaseTarget]) -> Self:
        wrapper = copy(self)
        wrapper.inner = self.inner.with_targets(targets)
        return wrapper

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """As many attempts and passes as the wrapped attack's; of each candidate a pass for each text that the model sees.

        Raises:
            TargetError: the model tells no log-probabilities, or a guard no score.
        """
        searched = target
        if "denoising" in target.capabilities:
            searched = BehindDrawingGuards(target, self.params.weight)
        elif guards_of(target):
            searched = BehindGuards(target, self.params.weight, self.params.draws)
        self.inner.search(searched, batch, attempts, threat, rng)
