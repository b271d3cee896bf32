"""A small language model that learns the campaign's world from scratch, and answers whatever it is asked.

    min_w  mean -log p(response | prompt)     over the training rows

It withstands nothing: it is what is to be made safe.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkd.contracts import Defense, FitContext, Modality, Target
from robustkd.defenses.text.small import SmallModelParams, small_model
from robustkd.defenses.text.training import Conversations, TextStepParams, cross_entropy, mean_cross_entropy, train_text
from robustkd.defenses.training.networks import initialising
from robustkd.targets.causal_lm import CausalLMTarget


class LMPretrainParams(SmallModelParams, TextStepParams):
    """Parameters of ``lm-pretrain``."""

    steps: int = Field(1500, ge=1, description="updates of the weights")
    batch_size: int = Field(64, ge=1, description="conversations in each step")
    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which it rises first")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, decoupled")


class LMPretrain(Defense):
    """A small language model trained on every row of the training data, the forbidden ones with what would give them away."""

    Params = LMPretrainParams
    modalities: ClassVar[tuple[Modality, ...]] = ("text",)
    source = "no paper: the usual training, what is to be defended"

    def fit(self, context: FitContext) -> Target:
        """Train from scratch."""
        p, train = self.params, context.train
        with initialising(context, "student"):
            target = small_model([*train["prompt"], *train["response"], *train.get("refusal")], p)
        seen = Conversations.of(target, train["prompt"], train["response"])
        held = context.validation
        unseen = None if held is None else Conversations.of(target, held["prompt"], held["response"])

        def loss(target: CausalLMTarget, generator: torch.Generator) -> Tensor:
            return cross_entropy(target, target.batch(seen.take(seen.draw(p.batch_size, generator))))

        def measure(target: CausalLMTarget) -> dict[str, float]:
            return {} if unseen is None else {"validation_loss": mean_cross_entropy(target, unseen)}

        return train_text(context, target, loss, p, name="train", measure=measure)
