"""Templates that people wrote: a role to play, a pretext, an order to forget the rules, with the request inside.

The built-in ones are short and plain, enough to see whether a refusal depends on the request's bare wording. Collections of
jailbreaks that circulate are the user's to bring, as a file; a fine-tuned model may have seen those in its training.

Source: Shen et al.: "Do anything now": characterizing in-the-wild jailbreak prompts (CCS 2024), arXiv:2308.03825; as a baseline in
Mazeika et al.: HarmBench (ICML 2024), arXiv:2402.04249.
"""

from __future__ import annotations

from typing_extensions import override

from robustkd.attacks.text.engine.templates import REQUEST, TemplateAttack, TemplateParams, templates
from robustkd.contracts import Attempts, GenerativeTarget, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng


class HumanJailbreaksParams(TemplateParams):
    """The templates that are tried, one after the other."""


class HumanJailbreaks(TemplateAttack):
    """Puts the request into one template after the other, in the file's order."""

    Params = HumanJailbreaksParams
    iterative = False
    source = "Shen et al. 2023, arXiv:2308.03825"

    @override
    def most_attempts(self, allowed: int) -> int:
        return min(allowed, len(templates(self.params.templates)))

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt for each template, no more than allowed.

        Raises:
            DataError: the file cannot be read, or a template has no place for the request.
            TargetError: a template is longer than the target's context.
        """
        prompts = batch.requests["prompt"]
        for template in templates(self.params.templates):
            rows = attempts.open
            attempts(rows, [Request(template.replace(REQUEST, prompts[row])) for row in rows.tolist()])
