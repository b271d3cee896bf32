"""The loss of a search for prompts: the answer is to begin with the target prefix, the request's column ``target``.

    loss(prompt) = -1/|y| * sum_i log p(y_i | prompt, y_<i)

A low loss need not mean a harmful answer: success is decided by the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from robustkd.contracts import Attempts, DataError, Prompts, TargetError
from robustkd.contracts.devices import free_memory
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens, TooLong
from robustkd.targets.guarded import BehindGuards
from robustkd.targets.memory import in_memory

if TYPE_CHECKING:
    from torch import Tensor

REQUESTS = 64
"""Requests that are attacked side by side."""

_MEMORY = 2**30
"""Bytes that a pass may take where nobody tells how many are free."""


def target_prefixes(requests: Prompts) -> tuple[str, ...]:
    """The target prefix of each request, with which the answer is to begin.

    Raises:
        DataError: a request has none.
    """
    found = requests["target"]
    if not all(found):
        raise DataError(
            f"the column 'target' is empty for the request {requests['prompt'][found.index('')][:60]!r}",
            fix="write there how an answer that complies begins, such as 'Sure, here is', or use an attack that needs no target prefix",
        )
    return found


def fitting(
    target: CausalLMTarget,
    requests: Prompts,
    attempts: Attempts,
    *,
    suffix: int,
    answers: Sequence[str] | None = None,
    template: Callable[[str], str] = str,
) -> Tensor:
    """The open requests that fit into the context with a suffix and the beginning of the answer; the attack leaves the others.

    Args:
        suffix: its number of tokens.
        answers: the target prefixes; None: room for one token is enough.
        template: makes of a request what is in front of the suffix.
    """
    rows, systems, long = attempts.open, requests.get("system"), []
    for row in rows.tolist():
        try:
            laid = target.encode(
                template(requests["prompt"][row]), answers[row] if answers else "", ends=False, system=systems[row]
            )
        except TooLong:
            long.append(row)
            continue
        if len(laid.ids) + suffix + (answers is None) > target.chat.context:
            long.append(row)
    left = torch.tensor(long, dtype=rows.dtype)
    if long:
        behind = "a suffix" if answers is None else "the beginning of its answer" if not suffix else "a suffix and its answer"
        attempts.leave(left, f"with {behind} the request is longer than the context of {target.chat.context} tokens")
    return rows[~torch.isin(rows, left)]


def losses(
    target: CausalLMTarget, prompts: Sequence[str], answers: Sequence[str], systems: Sequence[str] | None = None
) -> Tensor:
    """The (N,) losses, float32 on the CPU, one forward pass each; infinite where prompt and answer are longer than the context.

    Behind guards the mean over what the model sees of a prompt, ``target.copies`` passes, and the guards' alarms.

    Args:
        systems: the requests' own system messages, "" for the target's; None: all have the target's.
    """
    if isinstance(target, BehindGuards):
        return _behind_guards(target, prompts, answers, systems)
    rows = enumerate(zip(prompts, answers, systems or [""] * len(prompts), strict=True))
    laid = {place: item for place, row in rows if (item := _encoded(target, *row))}
    found = torch.full((len(prompts),), torch.inf)
    order = sorted(laid, key=lambda place: len(laid[place].ids))

    def loss(places: Tensor) -> Tensor:
        with torch.no_grad():
            return -target.completion_logprob(target.batch([laid[place] for place in places.tolist()])).float().cpu()

    while order:
        longest = laid[order[-1]]
        most = rows_at_once(target, len(longest.ids), longest.completion.stop - longest.completion.start)
        chunk = torch.tensor(order[-most:])
        del order[-most:]
        found[chunk] = torch.cat(in_memory(loss, chunk, most))
    return found


def _behind_guards(
    target: BehindGuards, prompts: Sequence[str], answers: Sequence[str], systems: Sequence[str] | None
) -> Tensor:
    shown, alarms = target.views(prompts)
    owners = [place for place in range(len(prompts)) for _ in range(target.copies)]
    told = None if systems is None else [systems[place] for place in owners]
    found = losses(target.bare, [text for texts in shown for text in texts], [answers[place] for place in owners], told)
    return found.unflatten(0, (len(prompts), target.copies)).mean(1) + alarms


def rows_at_once(target: CausalLMTarget, length: int, answer: int) -> int:
    """How many texts of ``length`` tokens, the last ``answer`` of them predicted, fit into one pass.

    By what a transformer keeps of each token (keys and values of all layers, the widest layer's activations) and by the logits.
    """
    config = target.module.config.get_text_config()
    vocabulary, width = target.embedding.weight.shape
    floats = length * width * (2 * config.num_hidden_layers + 24) + 3 * (answer + 1) * vocabulary
    free = free_memory(target.device)
    return max(1, (_MEMORY if free is None else free // 2) // (4 * floats))


def _encoded(target: CausalLMTarget, prompt: str, answer: str, system: str) -> Tokens | None:
    try:
        return target.encode(prompt, completion=answer, ends=False, system=system)
    except TargetError:
        return None
