"""R2D2: a pool of GCG's suffixes that moves on with the model, which learns to refuse behind them.

    pool     a suffix for each of some forbidden requests; those of a step first go some steps of GCG further
    toward = CE(y_safe | x, suffix),    away = mean -log(1 - p_w(y_harm token | x, suffix))
    min_w    toward_weight * toward + away_weight * away + utility_weight * CE(y | x)  on harmless requests

Good against GCG, which is what it sees. Discrete attacks that look otherwise may find it open, and each of its steps costs several
of GCG's. A suffix that lives long was made for weights that are gone, so a share of the pool begins anew from time to time.

Source: Mazeika et al.: HarmBench (ICML 2024), section 5: a pool of 180, 8 of them in a step and 5 steps of GCG each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.attacks.text.engine.descent import Descent, SuffixParams
from robustkd.attacks.text.engine.slots import Slots
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.attacks.text.suffixes.gcg import Swaps
from robustkd.contracts import FitContext, Params, Prompts
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.random import SampleRng
from robustkd.defenses.text.adversarial import AdversarialTuneParams, Adversary, Pair, Requests, UnlikelihoodTuning
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.passes import PassCounter

if TYPE_CHECKING:
    from torch import Tensor


class PoolParams(Params):
    """The pool, and how its suffixes move on."""

    size: int = Field(180, ge=1, description="suffixes, each behind a request of its own as far as there are so many")
    tokens: int = Field(20, ge=1, description="length of a suffix, in the target's tokens")
    steps: int = Field(5, ge=1, description="steps of GCG before each update of the weights")
    width: int = Field(512, ge=1, description="candidates in each of them")
    top_k: int = Field(256, ge=1, description="tokens that come into question at each place")
    renew_every: int = Field(50, ge=1, description="updates after which a share of the pool begins anew")
    renew_share: float = Field(0.2, ge=0, le=1, description="that share")


class R2D2Params(AdversarialTuneParams):
    inner: PoolParams = Field(default_factory=PoolParams, description="the attack that is trained against")
    toward_weight: float = Field(1.0, ge=0, description="weight of the refusal's loss")
    away_weight: float = Field(1.0, ge=0, description="weight of the withheld answer's loss")


class R2D2(UnlikelihoodTuning):
    """Tuned toward refusals and away from answers behind GCG's suffixes."""

    Params = R2D2Params
    source = "Mazeika et al. 2024, arXiv:2402.04249"

    def adversary(self, context: FitContext[Prompts], target: CausalLMTarget, requests: Requests) -> Adversary:
        """The attack by a pool of GCG suffixes."""
        return Pool(target, requests, self.params.inner, derived_seed(context.seed, "pool"))


class Pool(Adversary):
    """Suffixes of GCG's that live on from step to step.

    Args:
        target: the model before the training.
        requests: what they stand behind.
        params: of the pool.
        seed: chooses the requests, and the words that suffixes begin with.
    """

    def __init__(self, target: CausalLMTarget, requests: Requests, params: PoolParams, seed: int) -> None:
        self._requests, self._params = requests, params
        self._vocabulary = Vocabulary.of(target)
        order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(seed))
        self._rows = order.repeat(-(-params.size // len(order)))[: params.size]
        self._suffixes = torch.zeros(params.size, params.tokens, dtype=torch.int64)
        self._updates = 0
        self._begin(target, torch.arange(params.size), seed)
        self.memory = self

    def pair(self, target: CausalLMTarget, count: int, generator: torch.Generator) -> Pair:
        """Some of the pool, after some steps of GCG on the weights as they are."""
        p, seed = self._params, int(torch.randint(2**62, (), generator=generator))
        if self._updates and self._updates % p.renew_every == 0:
            renewed = torch.randperm(p.size, generator=generator)[: round(p.renew_share * p.size)]
            self._begin(target, renewed, seed)
        self._updates += 1
        members = torch.randperm(p.size, generator=generator)[:count]
        rows = self._rows[members].tolist()
        with frozen(target.module):
            rng = SampleRng(seed, members.to(target.device))
            self._suffixes[members] = self._moved(target, rows, self._suffixes[members], rng)
        return self._requests.pair(target, rows, self._suffixes[members].tolist())

    def logprobs(self, target: CausalLMTarget, pair: Pair) -> tuple[Tensor, Tensor]:
        """Log-probabilities of both answers behind the suffixes, which are part of the prompts already."""
        return target.token_logprobs(pair.safe), target.token_logprobs(pair.harmful)

    def state_dict(self) -> JsonObject:
        """The suffixes, and how many updates there were."""
        return {"suffixes": self._suffixes.tolist(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the suffixes and the count that ``state_dict`` gave."""
        self._suffixes, self._updates = torch.tensor(state["suffixes"]), int(state["updates"])

    def _moved(self, target: CausalLMTarget, rows: list[int], now: Tensor, rng: SampleRng) -> Tensor:
        p, places = self._params, torch.arange(len(rows))
        suffixes = Suffixes(
            self._slots(target, rows), [self._requests.answers[row] for row in rows], places, PassCounter(len(rows))
        )
        now = now.to(target.device)
        loss = suffixes.losses(places, now.unsqueeze(1), torch.ones(len(rows), 1, dtype=torch.bool)).squeeze(1)
        swaps = Swaps(target, self._vocabulary, p.width, p.top_k)
        search = Descent(SuffixParams(tokens=p.tokens), self._vocabulary, p.steps, swaps)
        for t in range(p.steps):
            search.step(suffixes, places, now, loss, t, rng.fork(t))
        return now.cpu()

    def _begin(self, target: CausalLMTarget, members: Tensor, seed: int) -> None:
        slots = self._slots(target, self._rows[members].tolist())
        ids, _ = self._vocabulary.random_suffixes(slots, self._params.tokens, SampleRng(seed, members, "begin"))
        self._suffixes[members] = ids.cpu()

    def _slots(self, target: CausalLMTarget, rows: list[int]) -> Slots:
        return Slots(target, [self._requests.prompts[row] for row in rows])
