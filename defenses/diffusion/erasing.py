"""What the defenses that erase concepts share: which captions, which weights, and where they are compared.

The model is compared with the original one on drawings that are not finished: those that the model being tuned makes of the
captions themselves, up to a noise level drawn at random, so that what it still draws is what is corrected.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import DataError, FitContext, Params, Prompts, TargetRef, suggestion
from robustkd.defenses.training.steps import Schedule, StepParams
from robustkd.lazy import torch
from robustkd.targets.frozen import recording_gradients, without_gradients
from robustkd.targets.text_encoders import Conditioning, joined
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor, nn

Layers = Literal["cross-attention", "unet", "text-encoder"]
_ENCODED_TOGETHER = 64


class ErasingParams(Params):
    """Parameters of every defense that erases concepts: the model, and what is erased from it."""

    base: TargetRef = Field(description="the defense whose model the concepts are erased from")
    concepts: tuple[str, ...] | None = Field(
        None, min_length=1, description="what is erased; default: the concepts whose training captions are marked forbidden"
    )
    wording: Literal["name", "direct", "captions"] = Field(
        "name", description="erased are the concepts' names, their training captions that use a name, or all of these"
    )


class TuningParams(ErasingParams, StepParams):
    """The same of a defense that tunes the model. The papers make many small steps at a constant rate."""

    batch_size: int = Field(1, ge=1, description="prompts in each step")
    lr: float = Field(1e-5, gt=0, description="learning rate")
    schedule: Schedule = Field("constant", description="how the learning rate falls over the steps")


@dataclass(frozen=True, eq=False)
class ConceptTexts:
    """Texts of several concepts, which are drawn evenly: first a concept, then one of its texts.

    Attributes:
        concepts: their names.
        texts: at least one for each.
    """

    concepts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        """Draw ``count`` texts: for each a concept, then one of its texts."""
        bits = torch.randint(2**31, (count, 2), generator=generator).tolist()
        chosen = [(self.texts[concept % len(self.texts)], place) for concept, place in bits]
        return [texts[place % len(texts)] for texts, place in chosen]

    def every(self) -> list[str]:
        """Return the texts of all concepts as one list."""
        return [text for texts in self.texts for text in texts]


@dataclass(frozen=True, eq=False)
class Erasure:
    """A model to be tuned, the original, and the texts.

    Attributes:
        target: a copy of ``original``, whose weights are tuned.
        original: it stays as it is.
        forget: texts of the erased concepts.
        retain: texts of all other concepts, and the empty one, which guidance stands on.
    """

    target: TextToImageTarget
    original: TextToImageTarget
    forget: ConceptTexts
    retain: ConceptTexts


def begin(context: FitContext[Prompts], params: ErasingParams) -> Erasure:
    """The copy to tune and the texts.

    Raises:
        UsageError: the base draws nothing.
        DataError: a concept is unknown, none is forbidden, or none would be left.
    """
    original = context.target(params.base, TextToImageTarget).to(context.device)
    forget, retain = split(context.train, params)
    return Erasure(copy.deepcopy(original), original, forget, retain)


def split(train: Prompts, params: ErasingParams) -> tuple[ConceptTexts, ConceptTexts]:
    """The texts that are erased and those that are kept; see ``begin``."""
    known = tuple(dict.fromkeys(train["concept"]))
    erased = params.concepts or tuple(dict.fromkeys(train.where("role", "forbidden")["concept"]))
    unknown = [name for name in erased if name not in known]
    if unknown:
        fix = suggestion(unknown[0], known) or f"one of: {', '.join(known)}"
        raise DataError(f"there is no concept '{unknown[0]}' to erase", fix=fix)
    kept = tuple(name for name in known if name not in erased)
    if not erased or not kept:
        raise DataError(f"{len(erased)} of {len(known)} concepts are to be erased", fix="erase some and keep some")
    texts = {name: tuple(sorted(set(train.where("concept", name)["prompt"]))) for name in known}
    worded = select_by_wording(train, params)
    forgotten = {name: tuple(sorted(set(worded.where("concept", name)["prompt"]))) for name in erased}
    named = {name: (name,) for name in erased} if params.wording == "name" else forgotten
    forget = ConceptTexts(erased, tuple(named[name] for name in erased))
    return forget, ConceptTexts((*kept, ""), (*(texts[name] for name in kept), ("",)))


def select_by_wording(train: Prompts, params: ErasingParams) -> Prompts:
    """Return the training rows whose captions have the wording that is to be erased."""
    return train.where("kind", "direct") if params.wording == "direct" else train


def tuned(target: TextToImageTarget, layers: Layers) -> dict[str, nn.Parameter]:
    """The weights that are tuned, by name: what attends to the text, the UNet, or the text encoder; of SDXL both of them."""
    if layers == "text-encoder":
        first, *others = target.encoders.networks.items()
        more = {f"{name}.{key}": weight for name, network in others for key, weight in network.named_parameters()}
        return _with_effect(target, dict(first[1].named_parameters()) | more)
    named: dict[str, nn.Parameter] = dict(target.unet.named_parameters())
    return named if layers == "unet" else {name: weight for name, weight in named.items() if ".attn2." in name}


def _with_effect(target: TextToImageTarget, weights: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those on which it depends what the UNet is told. Of SDXL's first text encoder, it isn't told what the last layer says."""
    with recording_gradients():
        told = target.encode(target.tokenize([""]))
        total = told.tokens.float().sum() + (0 if told.pooled is None else told.pooled.float().sum())
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return {name: weight for (name, weight), gradient in zip(weights.items(), gradients, strict=True) if gradient is not None}


@without_gradients()
def encoded_together(target: TextToImageTarget, texts: list[str]) -> Conditioning:
    """What the UNet is told of any number of texts, some of them encoded at a time."""
    return joined([target.encode(part) for part in target.tokenize(texts).split(_ENCODED_TOGETHER)])


@without_gradients()
def partially_denoised(
    target: TextToImageTarget, hidden: Conditioning, guidance: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(z_t, t): the target's drawings of B prompts at one noise level for all, drawn evenly from those of drawing."""
    times = target.sampling_times()
    done = int(torch.randint(len(times), (), generator=generator))
    seeds = torch.randint(2**31, (len(hidden),), generator=generator).tolist()
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    empty = target.unconditional() if guidance != 1 else None
    z = target.denoise(draws, hidden, empty, guidance, steps=done)
    return z, times[done].expand(len(hidden))
