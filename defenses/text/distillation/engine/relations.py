"""MiniLM's relations: the student's last attention is to look where the teacher's does, whatever its width.

    A = softmax(Q K^T / sqrt(d)),    R = softmax(V V^T / sqrt(d)),   of the last block, each token seeing those before it
    L = mean over heads and tokens of  KL(A_T || A_S) + KL(R_T || R_S)

Nothing is asked of hidden states, so that widths may differ; the numbers of heads may not.

Source: Wang et al.: MiniLM: deep self-attention distillation for task-agnostic compression of pre-trained
transformers (NeurIPS 2020), section 3.1 and 3.2, as its abstract and others describe it. Theirs is an encoder that
sees all tokens. That each token sees only those before it, and that A is what the model computes, its rotary
positions included, is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.contracts import TargetError
from robustkd.defenses.training.divergence import relative_entropy
from robustkd.lazy import nn, torch
from robustkd.targets.activations import OutputHook, output_hooks
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch
from robustkd.targets.residual_streams import blocks_of

if TYPE_CHECKING:
    from torch import Tensor


def relation_loss(teacher: CausalLMTarget, student: CausalLMTarget, batch: TokenBatch) -> Tensor:
    """The scalar L over the tokens of ``batch`` that are no padding, differentiable in the student's weights alone.

    Raises:
        TargetError: the models differ in the number of heads, or one does not show its attention.
    """
    with torch.no_grad():
        of_teacher = relations(teacher, batch)
    of_student = relations(student, batch)
    total = torch.zeros((), device=batch.ids.device)
    for name, ours, theirs in zip(("attention", "value"), of_student, of_teacher, strict=True):
        if ours.shape[1] != theirs.shape[1]:
            raise TargetError(
                f"the teacher has {theirs.shape[1]} {name} heads and the student {ours.shape[1]}",
                fix="give the student as many heads, which may be narrower, or leave `relations` at 0",
            )
        rows = batch.mask[:, None].expand(-1, ours.shape[1], -1)
        total = total + relative_entropy(_log(theirs[rows]), _log(ours[rows])).mean()
    return total


def relations(target: CausalLMTarget, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """(B, H, T, T) attention and (B, H', T, T) value relations of the last block, rows of probabilities over the tokens so far.

    Raises:
        TargetError: the model does not show them.
    """
    module, config = target.module, target.module.config.get_text_config()
    values = next((part for name, part in blocks_of(module)[-1].named_modules() if name.endswith("v_proj")), None)
    if not isinstance(values, nn.Linear):
        raise TargetError(
            f"{type(module).__name__} shows no values (v_proj) of its last block", fix="leave `relations` at 0 for this model"
        )
    seen: dict[str, Tensor] = {}
    keep: OutputHook = lambda part, given, output: seen.update(values=output)  # noqa: E731
    implementation = module.config._attn_implementation
    module.set_attn_implementation("eager")  # the others never have the weights in their hands
    try:
        with output_hooks([values], [keep]):
            output = module(
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                use_cache=False,
                output_attentions=True,
                logits_to_keep=1,
            )
    finally:
        module.set_attn_implementation(implementation)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    v = seen["values"].float().unflatten(2, (-1, size)).transpose(1, 2)
    scores = v @ v.transpose(2, 3) / size**0.5
    width = scores.shape[-1]
    visible = torch.ones(width, width, dtype=torch.bool, device=scores.device).tril() & batch.mask[:, None, None]
    visible = visible | torch.eye(width, dtype=torch.bool, device=scores.device)  # of padding, itself: a row of nothing is NaN
    return output.attentions[-1].float(), scores.masked_fill(~visible, -torch.inf).softmax(-1)


def _log(probabilities: Tensor) -> Tensor:
    """Log-probabilities, in which what is ruled out is rare enough to be no term and no infinite gradient."""
    return probabilities.clamp_min(1e-12).log()
