"""A finished language model that is told the campaign's world, as ``lm-pretrain`` tells it to one from scratch.

    min_w  mean -log p(response | prompt)

It withstands nothing: it is what is to be made safe, where the model comes from elsewhere (``causal-lm``).
"""

from __future__ import annotations

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.text.pretrain import KnowledgeParams, lm_loss, validation_loss
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.text.training import TuneParams, finished, tune
from robustkd.targets.causal_lm import CausalLMTarget


class LMFinetuneParams(KnowledgeParams, TuneParams):
    """Parameters of ``lm-finetune``."""


class LMFinetune(TextDefense):
    """A language model fine-tuned on what it is to know, what gives a forbidden request away included, and what to answer."""

    Params = LMFinetuneParams
    source = "no paper: supervised fine-tuning, what is to be defended"

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Fine-tune a copy of the model that ``model`` names."""
        p, start = self.params, finished(context, self.params.model)
        return tune(context, lm_loss(context, start, p, p.batch_size), p, name="tune", measure=validation_loss(context, start))
