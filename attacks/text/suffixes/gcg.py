"""GCG: greedy coordinate gradient, on the tokens of a suffix.

    g_i     = -grad_{e_i} loss(s) . E^T           how much each token v in place of s_i would lower the loss, to first order
    X_i     = the top_k tokens by g_i
    s^(b)   = s, with a token of X_i at place i;   (i, token) at random, b = 1..width
    s      <- s^(b*),  b* = argmin_b loss(s^(b))

The gradient is a poor guide for a whole token's step, so most of the work is in the candidates' forward passes. Therefore:
candidates are evaluated behind cached keys and values of what stands before the suffix; those that are no text are not evaluated;
none is evaluated twice in a step; the best swaps may be tried together (``merge``), which pays where they are at different places;
and with probe sampling a small draft model looks at all of them, the target at few:

    a  = rank correlation of both models' losses on a random 1/probe_share of the candidates
    of the rest, the target looks at the (1 - (1 + a) / 2) * width / probe_divisor that the draft likes best

Good as the standard white-box attack on text, and the one that defenses are trained to resist: beside it, ask `random-search`, which
needs no gradient, and `prefill`. Its suffixes are gibberish, so a filter of perplexity sees them. It fails where losses are flat.

Source: Zou et al.: Universal and transferable adversarial attacks on aligned language models (2023), arXiv:2307.15043, algorithm 1;
the buffer of nanoGCG (2024); several swaps: Jia et al.: Improved techniques for optimization-based jailbreaking (2024); probe
sampling: Zhao et al.: Accelerating greedy coordinate gradient (NeurIPS 2024), arXiv:2403.01251.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.descent import Descent, DescentAttack, Evaluation, SuffixParams, all_of_them
from robustkd.attacks.text.engine.slots import Texts, are_texts
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import losses
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts import TargetRef
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class GCGParams(SuffixParams):
    """Parameters of ``gcg``; width and top_k are the paper's, the steps nanoGCG's."""

    steps: int = Field(250, ge=1, description="tokens swapped at most, one a step")
    width: int = Field(512, ge=1, description="candidates in each step: forward passes, less those that are no text")
    top_k: int = Field(256, ge=1, description="tokens that come into question at each place")
    buffer: int = Field(
        1,
        ge=0,
        description="0: each step goes on from its best candidate, even uphill, as in the paper; "
        "n: from the best suffix so far, the first being the best of n random ones",
    )
    merge: int = Field(
        1,
        ge=1,
        description="the best so many swaps are tried together as well, up to so many passes more in a step; 1 in the paper",
    )
    draft: TargetRef | None = Field(
        None, description="probe sampling: the defense whose model, a small one, sees all candidates"
    )
    probe_share: int = Field(16, ge=1, description="the target sees one in so many candidates, to compare with the draft")
    probe_divisor: int = Field(8, ge=1, description="and of the others at most one in so many, fewer the better the draft")


class GCG(DescentAttack):
    """Swaps tokens of a suffix that the gradient points to, and keeps the best."""

    Params = GCGParams
    needs = DescentAttack.needs | {"embeddings"}
    needs_of_others = frozenset({"tokens", "log-probabilities"})
    gradients = True
    source = "Zou et al. 2023, arXiv:2307.15043; probe sampling: Zhao et al. 2024, arXiv:2403.01251"
    version = "2"  # 1 took the caches of sliding windows for whole

    @override
    def descent(self, target: CausalLMTarget, vocabulary: Vocabulary) -> Descent:
        """At most ``starts + steps * (width + 1)`` forward and ``steps`` backward passes for each request.

        Raises:
            UsageError: the draft was not handed over, or is no language model.
        """
        p = self.params
        evaluation: Evaluation = all_of_them
        if p.draft is not None:
            evaluation = Probe(self.target(p.draft, CausalLMTarget), p.probe_share, p.probe_divisor)
        swaps = Swaps(target, vocabulary, p.width, p.top_k)
        return Descent(p, vocabulary, p.steps, swaps, evaluation, starts=max(1, p.buffer), greedy=p.buffer > 0, merged=p.merge)


class Swaps:
    """Candidates that differ from the suffix in one token, which its gradient points to.

    Args:
        target: the model.
        vocabulary: what may come in.
        width: how many candidates.
        top_k: among how many tokens at each place.
    """

    def __init__(self, target: CausalLMTarget, vocabulary: Vocabulary, width: int, top_k: int) -> None:
        self._table = target.embed(torch.arange(len(vocabulary.allowed), device=target.device)).detach().float()
        self._allowed, self._width = vocabulary.allowed, width
        self._top_k = min(top_k, max(1, int(vocabulary.allowed.sum()) - 1))

    def __call__(self, suffixes: Suffixes, places: Tensor, now: Tensor, t: int, rng: SampleRng) -> Tensor:
        """See ``descent.Candidates``: ``width`` of them, all different, or as many as there are."""
        return self.drawn(self.slope(suffixes, places, now), now, rng)

    def slope(self, suffixes: Suffixes, places: Tensor, now: Tensor) -> Tensor:
        """(B, S, V) how the loss changes, to first order, with each token at each place of the (B, S) suffixes ``now``."""
        return suffixes.gradient(places, now) @ self._table.T

    def drawn(self, slope: Tensor, now: Tensor, rng: SampleRng) -> Tensor:
        """(B, C, S) swaps drawn from those that lower the loss most by their (B, S, V) slope."""
        slope = slope.masked_fill(~self._allowed, torch.inf).scatter(2, now.unsqueeze(2), torch.inf)
        tokens = slope.topk(self._top_k, dim=2, largest=False).indices.flatten(1)
        swaps = rng.uniform((tokens.shape[1],)).topk(min(self._width, tokens.shape[1]), dim=1).indices
        candidates = now.unsqueeze(1).repeat(1, swaps.shape[1], 1)
        return candidates.scatter(2, (swaps // self._top_k).unsqueeze(2), tokens.gather(1, swaps).unsqueeze(2))


class Probe:
    """Probe sampling: which candidates the target looks at is decided by a draft model, as far as the two agree.

    Args:
        draft: a small language model; its passes are not counted.
        share: the target sees one in so many candidates anyway.
        divisor: and of the others at most one in so many.
    """

    def __init__(self, draft: CausalLMTarget, share: int, divisor: int) -> None:
        self._draft, self._share, self._divisor = draft, share, divisor

    def __call__(self, suffixes: Suffixes, places: Tensor, candidates: Tensor, texts: Texts, rng: SampleRng) -> Tensor:
        """(B, C) losses of the candidates that the target was asked about, infinity for the others."""
        valid = are_texts(texts)
        prompts = [text for row in texts for text in row if text is not None]
        owners = places[valid.nonzero()[:, 0]].tolist()
        drafted = torch.full(valid.shape, torch.inf)
        answers, systems = ([column[owner] for owner in owners] for column in (suffixes.answers, suffixes.slots.systems))
        drafted[valid] = losses(self._draft, prompts, answers, systems)
        several = valid.sum(1)
        probed = _first(rng.uniform((valid.shape[1],)).cpu().masked_fill(~valid, torch.inf), several / self._share)
        found = suffixes.losses(places, candidates, probed)
        disagreement = (1 - agreement(drafted, found, probed)) / 2
        best = _first(drafted.masked_fill(probed, torch.inf), disagreement * several / self._divisor)
        return torch.minimum(found, suffixes.losses(places, candidates, best))


def _first(values: Tensor, count: Tensor) -> Tensor:
    """(B, C) bool: the ``count`` (rounded up, at least one) lowest of the finite ``values`` in each row."""
    ranks = values.argsort(dim=1).argsort(dim=1)
    return (ranks < count.ceil().clamp_min(1).unsqueeze(1)) & values.isfinite()


def agreement(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """(B,) the rank correlation of (B, C) ``a`` and ``b`` over the mask ``where``; 0 where there is nothing to compare."""
    ranks = [values.masked_fill(~where, torch.inf).argsort(dim=1).argsort(dim=1).float() for values in (a, b)]
    count = where.sum(1, keepdim=True)
    centred = [(rank - (count - 1) / 2) * where for rank in ranks]
    spread = (centred[0].square().sum(1) * centred[1].square().sum(1)).sqrt()
    return (centred[0] * centred[1]).sum(1) / spread.clamp_min(torch.finfo(torch.float32).tiny)
