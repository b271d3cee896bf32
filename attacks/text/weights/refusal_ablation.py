"""Refusal-direction ablation: one direction is taken out of all that a model writes to its residual stream.

    r   = mean of h_l(forbidden) - mean of h_l(harmless)   at a token behind the request, scaled to length 1
    W  <- W - r r^T W   for each matrix that writes to the stream, the embedding included;   then <h, r> = 0 at every layer

Of the candidates, one for each block and each token between a request and its answer, the best make the beginnings of
the answers to other forbidden requests likeliest, and change the first word to harmless ones little. No gradient, no
search of prompts: the strongest that somebody who holds the weights can do in so little time. What is left of a
refusal afterwards is elsewhere than in one direction. ``random: true`` is the control, as many directions that nobody
looked for.

Source: Arditi et al.: Refusal in language models is mediated by a single direction (NeurIPS 2024), sections 2 and 4:
difference of means, weight orthogonalisation, and a bound of 0.1 on the KL divergence at harmless requests, as others
describe it. Theirs takes the candidate of the lowest refusal score among the first four fifths of the layers; that it
is the likelihood of the answers' beginnings, that several candidates are tried, one an attempt, and that the
unembedding stays where it is tied to the embedding, are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.target_prefix import target_prefixes
from robustkd.attacks.text.weights.finetuning import chosen_rows
from robustkd.attacks.text.weights.weight_attack import WeightAttack
from robustkd.contracts import Params, Prompts, TargetError, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.lazy import nn, torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.residual_streams import blocks_of, streams

if TYPE_CHECKING:
    from torch import Tensor

_WRITERS = ("o_proj", "out_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "fc2", "wo", "w2")
"""What the layers are called, in a block, that write to the residual stream."""
_ROUNDING = 1e-4
"""How much of a stream may lie along a direction that was taken out of it, for rounding, in float32."""
_ULPS = 2
"""The same in units of the weights' precision, where that is coarser: in bfloat16 SmolLM2-135M has 0.001 to 0.004 left of 0.15 to 0.41."""


class RefusalAblationParams(Params):
    """From how many requests a direction is made, and how many are tried."""

    requests: int = Field(
        64, ge=2, description="training requests of each kind, at most; half of them choose among the directions"
    )
    directions: int = Field(3, ge=1, description="the best that are tried, one attempt each")
    kl: float = Field(
        0.1, gt=0, description="the most that the first word to harmless requests may change, where any changes less"
    )
    random: bool = Field(False, description="the control: random directions")


class RefusalAblation(WeightAttack):
    """Takes the direction of refusing out of the weights."""

    Params = RefusalAblationParams
    gradients = False
    source = "Arditi et al. 2024, arXiv:2406.11717"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.directions: Tensor | None = None

    @override
    def most_attempts(self, allowed: int) -> int:
        return min(allowed, self.params.directions)

    @override
    def fit(self, target: CausalLMTarget, requests: Prompts, rng: SampleRng) -> Self:
        """A copy of this attack that holds the directions.

        Raises:
            DataError: there are no forbidden or no harmless training requests.
            TargetError: the model writes to its residual stream in a way that is not known here.
        """
        p = self.params
        forbidden, harmless = (chosen_rows(target, requests, kind, p.requests, rng) for kind in ("forbidden", "harmless"))
        holding = copy(self)
        with frozen(target.module), torch.no_grad():
            candidates = _differences(target, forbidden["prompt"][::2], harmless["prompt"][::2])
            if p.random:
                draws = rng.select(torch.tensor([0], device=rng.index.device)).fork("directions")
                candidates = nn.functional.normalize(draws.normal(tuple(candidates.shape))[0].to(candidates), dim=1)
            holding.directions = self._best(target, candidates, forbidden, harmless)
        return holding

    def _best(self, target: CausalLMTarget, candidates: Tensor, forbidden: Prompts, harmless: Prompts) -> Tensor:
        """(directions, D) of (C, D) candidates: those within the bound on harmless requests first, then by the answers' likelihood."""
        p = self.params
        wanted = target.batch(
            [target.encode(*pair, ends=False) for pair in zip(forbidden["prompt"], target_prefixes(forbidden), strict=True)][
                1::2
            ]
        )
        plain = target.batch(
            [target.encode(*pair) for pair in zip(harmless["prompt"], harmless["response"], strict=True)][1::2]
        )
        before = _first_words(target, plain)
        ranks: list[tuple[bool, float, int]] = []
        for number, direction in enumerate(candidates):
            ablated = target.with_weights(without_direction(target, direction))
            changed = nn.functional.kl_div(_first_words(ablated, plain), before, log_target=True, reduction="batchmean")
            ranks.append((float(changed) > p.kl, -float(ablated.completion_logprob(wanted).mean()), number))
        best = sorted(ranks)[: p.directions]
        require_ablated(target.with_weights(without_direction(target, candidates[best[0][2]])), candidates[best[0][2]], wanted)
        return candidates[[number for _, _, number in best]]

    @override
    def weights(self, target: CausalLMTarget) -> Iterable[Mapping[str, Tensor]]:
        """Those without each direction."""
        if self.directions is None:
            raise UsageError("directions must be found before they are taken out", fix="call fit, and use what it returns")
        return (without_direction(target, direction.to(target.device)) for direction in self.directions)


def without_direction(target: CausalLMTarget, direction: Tensor) -> Mapping[str, Tensor]:
    """The weights that write to the residual stream, by name, with (D,) ``direction``, of length 1, taken out of what they write.

    Raises:
        TargetError: the blocks have no layer that is known to write to it.
    """
    module, changed = target.module, dict[str, torch.Tensor]()
    inside = {part: block for block in blocks_of(module) for part in block.modules()}
    for name, part in module.named_modules():
        width = len(direction)
        if isinstance(part, nn.Embedding) and part.weight.shape[1] == width:
            changed[f"{name}.weight"] = _out_of(part.weight, direction, -1)
        elif part in inside and name.rpartition(".")[2] in _WRITERS:
            weight: Tensor = part.weight
            rows = isinstance(part, nn.Linear)  # else Conv1D of GPT-2, which is stored the other way round
            if weight.shape[0 if rows else -1] == width:
                changed[f"{name}.weight"] = _out_of(weight, direction, 0 if rows else -1)
                if getattr(part, "bias", None) is not None:
                    changed[f"{name}.bias"] = _out_of(part.bias, direction, -1)
    if len(changed) < 2:
        raise TargetError(
            f"no layer of {type(module).__name__} is known to write to its residual stream",
            fix="use relearning or harmful-finetuning, which need no names of layers",
        )
    return changed


def require_ablated(target: CausalLMTarget, direction: Tensor, batch: Any) -> None:
    """Refuse a model whose residual streams still have a part along ``direction``.

    Raises:
        TargetError: they have: it writes to them in another way, such as through a norm behind each layer.
    """
    seen = streams(target, batch).transpose(1, 2)[batch.mask].detach()
    along = float(((seen @ direction.to(seen)).detach().abs() / seen.norm(dim=-1).clamp_min(1e-12)).max())
    if along > max(_ROUNDING, _ULPS * torch.finfo(target.embedding.weight.dtype).eps):
        raise TargetError(
            f"a direction cannot be taken out of {type(target.module).__name__}: {along:.2g} of a residual stream is still along it",
            fix="it writes to its stream through more than its matrices; use relearning or harmful-finetuning",
        )


def _out_of(weight: Tensor, direction: Tensor, axis: int) -> Tensor:
    """The tensor without its part along ``direction`` on one axis, computed in float64 where there is that."""
    wide = weight.detach().to("cpu", torch.float64).movedim(axis, -1)
    r = direction.to("cpu", torch.float64)
    r = r / r.norm()
    return (wide - (wide @ r).unsqueeze(-1) * r).movedim(-1, axis).to(weight)


def _differences(target: CausalLMTarget, forbidden: Sequence[str], harmless: Sequence[str]) -> Tensor:
    """(C, D) unit differences of the mean streams, behind each block and at each token between a request and its answer."""
    means = [_behind(target, prompts) for prompts in (forbidden, harmless)]
    difference = (means[0] - means[1])[1:].flatten(0, 1)
    return nn.functional.normalize(difference[difference.norm(dim=1) > 1e-6], dim=1)


def _behind(target: CausalLMTarget, prompts: Sequence[str]) -> Tensor:
    """(L + 1, S, D) mean streams at the S tokens between a request and its answer."""
    items = [target.encode(prompt) for prompt in prompts]
    batch, slots = target.batch(items), min(len(item.ids) - item.prompt.stop for item in items)
    seen = streams(target, batch)
    rows = [seen[row, :, len(item.ids) - slots : len(item.ids)] for row, item in enumerate(items)]
    return torch.stack(rows).mean(0)


def _first_words(target: CausalLMTarget, batch: Any) -> Tensor:
    """(B, V) log-probabilities of the first token of each answer."""
    rows = target.completion_logits(batch).log_softmax(1)
    counts = batch.completion.sum(1)
    first: Tensor = rows[counts.cumsum(0) - counts]
    return first
