"""An encoder-decoder student: a decoder-only teacher reads request and answer as one text, its student reads the request
with an encoder and writes the answer with a decoder.

    min_S  weight * KL(p_T(. | x y_<i) || p_S(. | enc(x), y_<i)) + weight_ce * CE     at the tokens y_i of answers

Request and answer are in different stacks: whether a begun answer (``prefill``) then does less is the question. The
student is a fresh T5; what it knows it has to learn, so a share ``knowledge`` of the conversations tells it. Its control
is ``lm-distil`` without ``start``, a fresh decoder-only student on the same texts.

Source: Elfeki et al.: Return of the encoder: maximizing parameter efficiency for SLMs (2025), arXiv:2501.16273, by its
authors' code: the teacher's logits are cut to the answer and aligned with the decoder's, forward KL at 0.9 and cross
entropy at the rest. Theirs sums over the tokens of an answer and divides by the batch, so that long answers weigh more;
here it is the mean over tokens. Sizes, steps and rate are ours. They write answers with the teacher (temperature 0.9,
the likeliest 128 tokens): ``source: {kind: teacher}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pydantic import Field, field_validator
from typing_extensions import override

from robustkd.contracts import Capabilities, FitContext, Params, Prompts
from robustkd.defenses.text.distillation.engine.sources import SourceParams
from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams
from robustkd.defenses.training.networks import seeded_init
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.encoder_decoder import EncoderDecoderTarget


class TwoStacksParams(Params):
    """What a small encoder-decoder model is like."""

    width: int = Field(64, ge=2, description="of both stacks")
    layers: int = Field(2, ge=1, description="blocks of each stack")
    heads: int = Field(4, ge=1, description="of attention")
    max_new_tokens: int = Field(24, ge=1, description="the most tokens of an answer")


class EncoderDecoderParams(LMDistilParams):
    start: None = Field(None, description="a student of another shape begins fresh")
    student: TwoStacksParams = Field(  # type: ignore[assignment]
        default_factory=TwoStacksParams, description="the shape of the student, which speaks its teacher's tokens"
    )
    weight: float = Field(0.9, ge=0, description="of the divergence")
    weight_ce: float = Field(0.1, ge=0, description="of the cross entropy of the answers themselves")
    relations: float = Field(0.0, ge=0, le=0, description="there is no last attention that both have")
    knowledge: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share that tells what to know; of 'vaults' these are forbidden requests, too, with answers",
    )

    @field_validator("source")
    @classmethod
    def _not_the_student(cls, source: SourceParams) -> SourceParams:
        if source.kind not in ("data", "teacher"):
            raise ValueError("an encoder-decoder student writes no texts for its own training: take data or teacher")
        return source


class EncoderDecoderStudent(LMDistil):
    """A student that reads with an encoder and writes with a decoder."""

    Params = EncoderDecoderParams
    source = "Elfeki et al. 2025, arXiv:2501.16273"

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """It answers, and can be asked for little else."""
        return EncoderDecoderTarget.capabilities

    @override
    def begin(self, context: FitContext[Prompts], teacher: CausalLMTarget) -> CausalLMTarget:
        """A fresh T5 of the teacher's tokens."""
        from transformers import T5Config, T5ForConditionalGeneration

        p, tokenizer = self.params.student, teacher.tokenizer
        with seeded_init(context, "student"):
            config = T5Config(
                vocab_size=len(tokenizer),
                d_model=p.width,
                d_kv=max(1, p.width // p.heads),
                d_ff=4 * p.width,
                num_layers=p.layers,
                num_heads=p.heads,
                dropout_rate=0.0,
                pad_token_id=teacher.chat.pad,
                eos_token_id=tokenizer.eos_token_id,
            )
            config.decoder_start_token_id = teacher.chat.pad
            module = T5ForConditionalGeneration(config)
        student = EncoderDecoderTarget(module, tokenizer, max_new_tokens=p.max_new_tokens, context=teacher.chat.context).to(
            context.device
        )
        # It has what a training asks of a student: ``batch``, ``completion_logits`` and ``token_logprobs``.
        return cast("CausalLMTarget", student)
