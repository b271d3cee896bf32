"""Trans-Encoder: two scorers of sentence pairs teach each other, without a label. It is no model to attack but one to judge by.

    start   the bi-encoder learns that two views of a text are alike:  InfoNCE of e(view_1), e(view_2) at temperature tau
    cycle   the cross-encoder learns  BCE( sigma(c(a, b)), max(0, cos(e(a), e(b))) ),     then the bi-encoder
            the bi-encoder learns     ( cos(e(a), e(b)) - sigma(c(a, b)) )^2,             and from the beginning again

The bi-encoder reads each text by itself and is quick, the cross-encoder reads both at once and can compare them word by word, which one
that begins with random weights hardly learns in few steps: by default the bi-encoder is asked (``reads``). The judge
``sentence-similarity`` asks one of them whether an answer says what the forbidden answer says, and the analysis ``judge-evasion`` how
easily other words around the same secret turn its verdict.

Two texts are alike from ``threshold`` on; left out, it is what 95 % of pairs of answers to different training requests stay below.

Controls: ``cycles: 0``, the bi-encoder that nothing was distilled into; ``steps: 0`` beside it, its fresh weights.

Source: Liu et al.: Trans-Encoder: unsupervised sentence-pair modelling through self- and mutual-distillations (ICLR 2022),
arXiv:2109.13059, read in the authors' code (src/self_distill.py). From the authors: three cycles, cosines as soft labels of a binary
cross entropy for the cross-encoder, which sees a pair in both orders, its scores as those of a squared error of the cosine for the
bi-encoder, and that each begins with the weights of the one that taught it. From us: small encoders of the campaign's own words in the
place of pre-trained ones, views by words left out in the place of dropout, cosines below 0 taken as 0, the mean over both orders as the
score, the pairs (a text beside another one, or beside itself with up to a third of its words exchanged), the last cycle in the place of
the best on labelled pairs, the threshold, and the sizes. Mutual distillation of several models is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from robustkd.attacks.image.engine.feature_losses import info_nce
from robustkd.contracts import Capabilities, DataError, FitContext, Prompts
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.steps import StepParams, train_steps
from robustkd.lazy import F, torch
from robustkd.targets.sentence_pairs import Reads, SentencePairsCard, SentencePairsTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.pair_modules import SentencePairs

_BELOW = 0.95
"""The share of pairs of answers to different requests that are not to be called alike."""
_PAIRS = 1000
"""That the threshold is learnt on, at most."""


class TransEncoderParams(StepParams):
    columns: tuple[str, ...] = Field(
        ("response", "refusal"), min_length=1, description="columns of the training data whose texts are learnt from"
    )
    reads: Reads = Field("bi", description="which encoder is asked in the end")
    cycles: int = Field(3, ge=0, description="how often each teaches the other; 0: the control, the bi-encoder alone")
    steps: int = Field(200, ge=0, description="updates of the bi-encoder at the start")
    cycle_steps: int = Field(100, ge=1, description="updates of each encoder in a cycle")
    pairs: int = Field(1024, ge=2, description="pairs of texts that they teach each other")
    batch_size: int = Field(64, ge=2, description="texts or pairs in each step")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW")
    temperature: float = Field(0.05, gt=0, description="tau, of the start")
    left_out: float = Field(0.2, ge=0, lt=1, description="share of the words that a view leaves out")
    length: int = Field(24, ge=1, description="the most words of a text; what follows is cut off")
    width: int = Field(32, ge=16, multiple_of=16, description="of both encoders")
    layers: int = Field(1, ge=1, description="of both encoders")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="from which similarity on two texts are alike; left out, it is learnt"
    )

    @model_validator(mode="after")
    def _cross_is_taught(self) -> TransEncoderParams:
        if not self.cycles and self.reads == "cross":
            raise ValueError("with cycles: 0 nobody teaches the cross-encoder: give reads: bi")
        return self


class TransEncoder(TextDefense):
    """A scorer of pairs of texts, which a judge can ask. It answers nothing."""

    Params = TransEncoderParams
    source = "Liu et al. 2022, arXiv:2109.13059"

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """It says how alike texts are."""
        return SentencePairsTarget.capabilities

    def fit(self, context: FitContext[Prompts]) -> SentencePairsTarget:
        """Let them teach each other, and learn what is alike.

        Raises:
            DataError: the data have no such column, or fewer than two texts in them.
        """
        from robustkd.targets.tower_modules import words_of  # late: it imports torch

        p, texts = self.params, _texts(context.train, self.params.columns)
        words = sorted({word for text in texts for word in words_of(text)})
        card = SentencePairsCard(
            target=SentencePairsTarget.kind,
            words=tuple(words),
            length=p.length,
            width=p.width,
            layers=p.layers,
            reads=p.reads,
            threshold=0.0,
        )
        with seeded_init(context, "encoders"):
            module = card.build().to(context.device)
        self._train(context, module, texts, words)
        module.eval()
        target = SentencePairsTarget(module, card)
        threshold = _threshold(context, target) if p.threshold is None else p.threshold
        return SentencePairsTarget(module, card.model_copy(update={"threshold": threshold}))

    def _train(self, context: FitContext[Prompts], module: SentencePairs, texts: Sequence[str], words: Sequence[str]) -> None:
        p, bi, cross = self.params, dict(module.bi.named_parameters()), dict(module.cross.named_parameters())

        def at_the_start(generator: torch.Generator) -> Tensor:
            chosen = [texts[place] for place in torch.randint(len(texts), (p.batch_size,), generator=generator).tolist()]
            chosen = list(dict.fromkeys(chosen))  # a text twice would be told from itself
            one, other = (module.bi(module.bi.tokens([_view(t, p.left_out, generator) for t in chosen])) for _ in range(2))
            return info_nce(one, other, p.temperature).mean()

        if p.steps:
            train_steps(context, "start", bi, at_the_start, p)
        first, second = _pairs(texts, words, p.pairs, derived_seed(context.seed, "pairs"))
        brief = p.model_copy(update={"steps": p.cycle_steps})

        def taught(loss: Callable[[list[str], list[str], Tensor], Tensor], labels: Tensor) -> Callable[..., Tensor]:
            def step(generator: torch.Generator) -> Tensor:
                rows = torch.randint(len(first), (p.batch_size,), generator=generator).tolist()
                return loss([first[row] for row in rows], [second[row] for row in rows], labels[rows])

            return step

        def for_cross(one: list[str], other: list[str], labels: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(module.cross.pair_logits(one, other), labels)

        def for_bi(one: list[str], other: list[str], labels: Tensor) -> Tensor:
            return F.mse_loss(module.cosines(one, other), labels)

        for cycle in range(1, p.cycles + 1):
            with torch.no_grad():
                labels = module.cosines(first, second).clamp(0, 1)
            module.hand_over("cross")
            train_steps(context, f"cross-{cycle}", cross, taught(for_cross, labels), brief)
            with torch.no_grad():
                labels = module.cross.pair_logits(first, second).sigmoid()
            module.hand_over("bi")
            train_steps(context, f"bi-{cycle}", bi, taught(for_bi, labels), brief)


def _texts(rows: Prompts, columns: Sequence[str]) -> list[str]:
    """The different texts of these columns, in their order."""
    found = list(dict.fromkeys(text for column in columns for text in rows[column] if text.strip()))
    if len(found) < 2:
        raise DataError(f"the columns {', '.join(columns)} have fewer than two texts to be told apart", fix="name others")
    return found


def _view(text: str, left_out: float, generator: torch.Generator) -> str:
    """The text without some of its words, one at least left."""
    words = text.split()
    kept = torch.rand(len(words), generator=generator) >= left_out
    kept[int(torch.randint(len(words), (), generator=generator))] = True
    return " ".join(word for word, stays in zip(words, kept.tolist(), strict=True) if stays)


def _pairs(texts: Sequence[str], words: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """A text beside another one, and one beside itself with none to a third of its words exchanged, in turns."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for place in range(count):
        one, other = (int(row) for row in rng.choice(len(texts), 2, replace=False))
        first.append(texts[one])
        if place % 2:
            second.append(texts[other])
            continue
        said = texts[one].split()
        for spot in rng.permutation(len(said))[: int(rng.integers(len(said) // 3 + 1))]:
            said[spot] = words[int(rng.integers(len(words)))]
        second.append(" ".join(said))
    return first, second


def _threshold(context: FitContext[Prompts], target: SentencePairsTarget) -> float:
    """What most pairs of answers to different requests stay below."""
    answers = _texts(context.train, ("response",))
    rng = np.random.default_rng(derived_seed(context.seed, "threshold"))
    pairs = [rng.choice(len(answers), 2, replace=False) for _ in range(_PAIRS)]
    found = target.similarity([answers[int(one)] for one, _ in pairs], [answers[int(other)] for _, other in pairs])
    return float(found.double().quantile(_BELOW))
