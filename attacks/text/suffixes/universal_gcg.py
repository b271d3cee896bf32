"""Universal GCG: one suffix for all requests, found on training requests, on one model or on several together.

    loss(s) = mean over models f and requests i <= m of loss_f(x_i, s),    m = 1 at first
    g       = sum over f, i of grad_f,i / |grad_f,i|,  the slope of each token at each place
    s      <- the best of `width` swaps that g points to, where it is better than s
    m      <- m + 1 when loss(s) < enough

What is reported is what the suffixes do behind requests that they were not found on, so a model on which that succeeds is broken once
and for all. With ``models`` they are found on other models, and the target does nothing but answer: that is the transfer attack, which a
served model can be asked to withstand. It is weaker than ``gcg`` on each request, so it counts as no search of its own for a verdict.

Each of the ``kept`` best suffixes is one attempt. The passes that are counted are those of using them.

Control: ``steps: 0``, as many random suffixes, which are the same for all requests too.

Source: Zou et al.: Universal and transferable adversarial attacks on aligned language models (2023), arXiv:2307.15043, algorithm 2.
Theirs adds a request when the model's answer to the former ones is no refusal any more; here when their loss is low.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.descent import SuffixParams
from robustkd.attacks.text.engine.slots import Slots, are_texts
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import target_prefixes
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.attacks.text.suffixes.gcg import Swaps
from robustkd.contracts import (
    AttackError,
    Attempts,
    Capabilities,
    DataError,
    GenerativeTarget,
    PromptAttack,
    PromptBatch,
    Prompts,
    Request,
    TargetError,
    TargetRef,
    ThreatModel,
    Traits,
    UsageError,
)
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TooLong
from robustkd.targets.passes import PassCounter

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
_TRIES = 16
_WHITE_BOX: Capabilities = frozenset({"tokens", "embeddings", "log-probabilities"})


class UniversalGCGParams(SuffixParams):
    """On what the suffixes are found, for how long, and how many of them are tried; steps, width and top_k are the paper's."""

    models: tuple[TargetRef, ...] = Field(
        (),
        description="the defenses on whose models the suffixes are found together, which must have one tokenizer; by default the "
        "attacked one; with them the target only answers (transfer)",
    )
    requests: int = Field(25, ge=1, description="training requests that they are found on, at most")
    steps: int = Field(
        500, ge=0, description="tokens swapped at most, one a step; 0: the control, suffixes that nobody searched"
    )
    width: int = Field(512, ge=1, description="candidates in each step: forward passes for each request and model")
    top_k: int = Field(256, ge=1, description="tokens that come into question at each place")
    enough: float = Field(
        0.5, ge=0, description="the mean loss (nats a token of the wanted beginning) below which a request is added"
    )
    kept: int = Field(5, ge=1, description="the best suffixes that are tried, one attempt each")


class UniversalGCG(PromptAttack):
    """One suffix for all requests, found on training requests."""

    Params = UniversalGCGParams
    needs_of_others = _WHITE_BOX | {"respond", "gradients"}
    learns = True
    source = "Zou et al. 2023, arXiv:2307.15043"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.control = self.params.steps == 0
        self.suffixes: tuple[str, ...] | None = None
        self.spent = (0, 0)

    @property
    @override
    def traits(self) -> Traits:
        """On other models it takes nothing of its target but answers."""
        own = not self.params.models
        needs = PromptAttack.needs | _WHITE_BOX if own else PromptAttack.needs
        return replace(super().traits, needs=needs, gradients=own, iterative=own)

    @override
    def most_attempts(self, allowed: int) -> int:
        return min(allowed, self.params.kept)

    @override
    def most_asked_of_others(self, allowed: int) -> int:
        """None: they are differentiated, not asked."""
        return 0

    @override
    def fit(self, target: GenerativeTarget, requests: Prompts, rng: SampleRng) -> Self:
        """A copy of this attack that holds the suffixes; ``spent`` has the forward and backward passes that they took.

        Raises:
            DataError: there is no training request to find them on, or one has no ``target``.
            TargetError: the models have several tokenizers.
            UsageError: a model was not handed over, or is no language model.
        """
        p = self.params
        models = [self.target(name, CausalLMTarget) for name in p.models] or [_white_box(target)]
        _require_one_tokenizer(p.models, models)
        passes = PassCounter()
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(frozen(model.module))
            chosen = _chosen(models, requests, p, rng)
            found = _Shared.of(models, chosen, p, passes).found(rng.select(torch.tensor([0], device=rng.index.device)))
        holding = copy(self)
        holding.suffixes, holding.spent = found, passes.total
        _LOG.info(
            "universal-gcg: %d suffixes on %d requests, %d forward and %d backward passes",
            len(found),
            len(chosen),
            *passes.total,
        )
        return holding

    @override
    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt for each suffix, no more than allowed; no pass of its own.

        Raises:
            UsageError: it was not fitted.
        """
        if self.suffixes is None:
            raise UsageError("universal suffixes must be found before they are used", fix="call fit, and use what it returns")
        prompts = batch.requests["prompt"]
        for suffix in self.suffixes:
            rows = attempts.open
            attempts(rows, [Request(self.params.in_template(prompts[row]) + suffix) for row in rows.tolist()])


@dataclass
class _Found:
    """A suffix, the number of requests that its loss is the mean of, and the loss."""

    requests: int
    loss: float
    text: str


@dataclass(frozen=True)
class _Shared:
    """The search for a suffix behind R requests on F models at once.

    Attributes:
        params: of the search.
        places: (F,) where the suffixes stand, and their losses.
        swaps: (F,) the slopes of the tokens.
        vocabulary: what they are made of.
    """

    params: UniversalGCGParams
    places: Sequence[Suffixes]
    swaps: Sequence[Swaps]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, models: Sequence[CausalLMTarget], requests: Prompts, p: UniversalGCGParams, passes: PassCounter) -> _Shared:
        vocabulary, answers = Vocabulary.of(models[0], p.ascii), target_prefixes(requests)
        prompts, systems = [p.in_template(prompt) for prompt in requests["prompt"]], requests.get("system")
        rows = torch.zeros(len(requests), dtype=torch.int64)  # all passes are added up
        return cls(
            p,
            [Suffixes(Slots(model, prompts, systems), answers, rows, passes) for model in models],
            [Swaps(model, vocabulary, p.width, p.top_k) for model in models],
            vocabulary,
        )

    def found(self, rng: SampleRng) -> tuple[str, ...]:
        """The texts of the best suffixes; ``rng`` has one stream."""
        p = self.params
        if p.steps == 0:
            return tuple(dict.fromkeys(self._text(self._start(rng.fork(f"start/{number}"))) for number in range(p.kept)))
        now, present, best = self._start(rng.fork("start/0")), 1, dict[str, _Found]()
        loss = float(self._losses(now[None], 1)[0])
        for t in range(p.steps):
            self._note(best, now, present, loss)
            streams = rng.fork(t)
            candidates = self.swaps[0].drawn(self._slope(now, present), now[None], streams)[0]
            candidates = candidates[self._are_texts(candidates)]
            if len(candidates):
                losses = self._losses(candidates, present)
                if float(losses.min()) < loss:
                    now, loss = candidates[losses.argmin()], float(losses.min())
            if loss < p.enough and present < self._requests:
                self._note(best, now, present, loss)
                present += 1
                loss = float(self._losses(now[None], present)[0])
        self._note(best, now, present, loss)
        ranked = sorted(best.values(), key=lambda one: (-one.requests, one.loss))
        return tuple(one.text for one in ranked[: p.kept])

    @property
    def _requests(self) -> int:
        return len(self.places[0].rows)

    def _note(self, best: dict[str, _Found], now: Tensor, present: int, loss: float) -> None:
        text = self._text(now)
        best[text] = _Found(present, loss, text)

    def _slope(self, now: Tensor, present: int) -> Tensor:
        """(1, S, V), each request's slope on each model weighing as much as any other's."""
        rows, total = torch.arange(present), torch.zeros(())
        for suffixes, swaps in zip(self.places, self.swaps, strict=True):
            slope = swaps.slope(suffixes, rows, now.expand(present, -1).to(suffixes.target.device))
            total = total.to(slope) + (slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]).sum(
                0, keepdim=True
            )
        return total

    def _losses(self, candidates: Tensor, present: int) -> Tensor:
        """(C,) the mean over the first ``present`` requests and the models of (C, S) suffixes that are texts."""
        rows = torch.arange(present)
        everyone = candidates.expand(present, -1, -1)
        among = torch.ones(everyone.shape[:2], dtype=torch.bool)
        return torch.stack([each.losses(rows, everyone.to(each.target.device), among).mean(0) for each in self.places]).mean(0)

    def _are_texts(self, candidates: Tensor) -> Tensor:
        """(C,) bool, whether (C, S) suffixes stay themselves behind every request, on every model."""
        rows = torch.arange(self._requests)
        everyone = candidates.expand(len(rows), -1, -1)
        return torch.stack([are_texts(each.slots.texts(rows, everyone)).all(0) for each in self.places]).all(0)

    def _start(self, rng: SampleRng) -> Tensor:
        """(S,) random words that are a text behind every request.

        Raises:
            AttackError: none of several draws is.
        """
        words = self.vocabulary.words
        drawn = words[rng.integers((_TRIES, self.params.tokens), len(words))[0]]
        usable = self._are_texts(drawn).nonzero().squeeze(1)
        if not len(usable):
            raise AttackError(
                "no random words are the tokens that they were made of behind all training requests",
                fix="fewer 'requests', or fewer 'tokens'",
            )
        first: Tensor = drawn[usable[0]]
        return first

    def _text(self, suffix: Tensor) -> str:
        """What is written behind a request."""
        slots = self.places[0].slots
        ((prompt,),) = slots.texts(torch.tensor([0]), suffix[None, None])
        assert prompt is not None
        return prompt[len(slots.prompts[0]) :]


def _white_box(target: GenerativeTarget) -> CausalLMTarget:
    if not isinstance(target, CausalLMTarget):
        raise TargetError(
            f"a {target.kind} cannot be differentiated", fix="name language models to find the suffixes on: models"
        )
    return target


def _require_one_tokenizer(names: Sequence[str], models: Sequence[CausalLMTarget]) -> None:
    known = [model.tokenizer.backend_tokenizer.to_str() for model in models]
    for name, own in zip(names[1:], known[1:], strict=True):
        if own != known[0]:
            raise TargetError(
                f"'{names[0]}' and '{name}' have different tokenizers, and one suffix is searched in the tokens of both",
                fix="name models of one family, or use the attack several times, with one model each",
            )


def _chosen(models: Sequence[CausalLMTarget], requests: Prompts, p: UniversalGCGParams, rng: SampleRng) -> Prompts:
    """Training requests that must be refused and fit into every context with a suffix, in a random order.

    Raises:
        DataError: there is none.
    """
    if "role" in requests.columns:
        rows = torch.tensor([role == "forbidden" for role in requests["role"]])
    else:
        rows = torch.ones(len(requests), dtype=torch.bool)
    places = rows.nonzero().squeeze(1)
    order = rng.uniform((1,)).squeeze(1).cpu()[places].argsort(stable=True) if len(places) else places
    kept: list[int] = []
    for place in places[order].tolist():
        if len(kept) < p.requests and _fits(models, requests, place, p):
            kept.append(place)
    if not kept:
        raise DataError(
            "there is no training request to find a universal suffix on",
            fix="give training requests that must be refused (of behaviors: 'training'); those that are attacked do not count",
        )
    return requests.select(torch.tensor(kept).numpy())


def _fits(models: Sequence[CausalLMTarget], requests: Prompts, place: int, p: UniversalGCGParams) -> bool:
    prompt, answer, system = requests["prompt"][place], requests["target"][place], requests.get("system")[place]
    try:
        return all(
            len(model.encode(p.in_template(prompt), answer, ends=False, system=system).ids) + p.tokens <= model.chat.context
            for model in models
        )
    except TooLong:
        return False
