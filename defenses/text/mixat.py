"""MixAT: C-AdvUL on requests in other words, so that embeddings are moved around rephrased prompts, too.

    x'    = x, or x put another way with a chance of ``rephrased``
    d*    = the embeddings' worst move for (x', y_harm);    min_w  C-AdvUL's loss at x' + d*

Good against attacks that reword a request, around which no ball of c-advul lies. Its control is ``rephrased: 0``,
which is ``c-advul`` with these settings. Give the tiny worlds templates of their own words: of the built-in ones they
know few.

Source: Dekany et al.: MixAT: combining continuous and discrete adversarial training for LLMs (2025), and the authors'
configuration, read: eps 0.075, ten sign steps, weights and cut-offs of C-AdvUL, an eighth of the conversations
harmful, half of these rephrased. They rephrase with another model's persuasion (PAP) beforehand; here templates do
it, which is ours. LoRA and two epochs are theirs as well.
"""

from __future__ import annotations

from pydantic import Field, field_validator
from typing_extensions import override

from robustkd.attacks.text.engine.target_prefix import target_prefixes
from robustkd.attacks.text.engine.templates import REQUEST, TEMPLATES
from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.text.adversarial import Requests
from robustkd.defenses.text.c_advul import CAdvUL, CAdvULParams
from robustkd.defenses.text.inner import InnerParams
from robustkd.defenses.text.training import Conversations, forbidden
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TooLong


class MixATInnerParams(InnerParams):
    eps: float = Field(
        0.075,
        ge=0,
        description="how far each token may be moved, relative to the mean embedding norm; 0: a control without an attack",
    )


class MixATParams(CAdvULParams):
    inner: MixATInnerParams = Field(default_factory=MixATInnerParams, description="the attack that is trained against")
    rephrased: float = Field(0.5, ge=0, le=1, description="share of the forbidden requests that are rephrased; 0: the control")
    templates: tuple[str, ...] = Field(
        TEMPLATES,
        min_length=1,
        description=f"how: texts in which {REQUEST} stands for the request; by default ten built-in ones",
    )

    @field_validator("templates")
    @classmethod
    def _with_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count(REQUEST) != 1:
                raise ValueError(f"the template {template[:60]!r} does not hold {REQUEST} once")
        return templates


class MixAT(CAdvUL):
    """Tuned toward refusals and away from answers under an attack on the embeddings of rephrased requests."""

    Params = MixATParams
    source = "Dekany et al. 2025, arXiv:2505.16947"
    version = "1"

    @override
    def requests(self, context: FitContext[Prompts], target: CausalLMTarget) -> Requests:
        """The forbidden requests as they are and in every template that fits into the context with them."""
        p, rows = self.params, forbidden(context.train)
        whole = p.withheld == "response"
        answers = rows["response"] if whole else target_prefixes(rows)
        worded = [(prompt, row, "plain") for row, prompt in enumerate(rows["prompt"])]
        if p.rephrased:
            others = [template.replace(REQUEST, prompt) for template in p.templates for prompt in rows["prompt"]]
            worded += [(prompt, place % len(rows), "rephrased") for place, prompt in enumerate(others)]
        worded = [
            (prompt, row, kind) for prompt, row, kind in worded if _fits(target, prompt, answers[row], rows["refusal"][row])
        ]
        prompts, kinds = tuple(prompt for prompt, _, _ in worded), [kind for _, _, kind in worded]
        withheld = tuple(answers[row] for _, row, _ in worded)
        odds = {"plain": 1 - p.rephrased, "rephrased": p.rephrased} if p.rephrased else None
        safe = Conversations.of(target, prompts, [rows["refusal"][row] for _, row, _ in worded], kinds, emphasis=odds)
        return Requests(prompts, withheld, safe, Conversations.of(target, prompts, withheld, ends=whole))


def _fits(target: CausalLMTarget, prompt: str, *answers: str) -> bool:
    try:
        return all(bool(target.encode(prompt, answer).ids) for answer in answers)
    except TooLong:
        return False
