"""A small caption model: an image tower, and a recurrent decoder that says how bright the image is and what is in it.

    min  -mean log p(caption | x),      caption = "a ADJECTIVE NAME"

The adjective is dark, grey or bright, by the image's brightness among all of the training's; the name is the class's own. As a classifier,
class k is what the likelier captions say: logit_k = log sum_adjectives p("a ADJECTIVE NAME_k" | x). So an attack on a class is an attack
on the keyword of a caption, and every attack on a classifier works on it.

Good as the model that a controlled captioning attack (``feature-target``) is tried on. It is no defense: ``adversarial: true`` is one,
the same training at the image in the ball that makes its caption least likely.

From the authors: an image encoder whose features start a recurrent decoder, trained on the captions' likelihood. From us: the sizes, the
captions of three or four words, and the adversarial form.

Source: Vinyals et al.: Show and tell: a neural image caption generator (CVPR 2015), equations 1 to 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.data.captions import tones_of
from robustkd.defenses.image.representations.encoders.class_texts import class_texts
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, HeldOutParams, without_classes
from robustkd.defenses.training import Adversary, Minibatch, NetworkParams, Recipe, fresh_network, train
from robustkd.defenses.training.inner import InnerSteps
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.captioner import CaptionerTarget
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import ImageTower

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from robustkd.targets.caption_modules import Captioner

ADJECTIVES = ("dark", "grey", "bright")


class CaptionPretrainParams(HeldOutParams, NetworkParams):
    dimensions: int = Field(64, ge=2, description="D, of the features between the tower and the decoder")
    width: int = Field(64, ge=2, description="of the decoder")
    adversarial: bool = Field(False, description="train at the images of the ball whose caption is least likely")
    inner: InnerSteps = Field(default_factory=InnerSteps, description="how these are found")


class CaptionRecipe(Recipe[ClassifierTarget]):
    """The likelihood of each image's own caption.

    Args:
        tones: (N,) int64 of the training images.
        adversary: the inner maximisation, or None for the images as they are.
    """

    def __init__(self, tones: Tensor, adversary: Adversary | None) -> None:
        self.tones, self.adversary = tones, adversary
        self.threat = adversary.threat if adversary else None

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-mean log p(caption | x)."""
        model: Captioner = target.module  # type: ignore[assignment]
        wanted = own_captions(model, batch, self.tones)
        x, encoder = batch.x, EncoderTarget(target, unit=False)
        if self.adversary is not None:
            with frozen(target.module):
                x = self.adversary.climb(batch, encoder, lambda z, rows: -model.log_likelihood(z, wanted[rows]))
        return -model.log_likelihood(model.image(x).flatten(1), wanted).mean(), {}


def own_captions(model: Captioner, batch: Minibatch, tones: Tensor) -> Tensor:
    """(B, T) the tokens of each image's caption."""
    return model.tokens[batch.y, tones.to(batch.y.device)[batch.index]]


def fresh_captioner(
    context: FitContext, model: str, params: Mapping[str, object], dimensions: int, width: int, role: str = "student"
) -> CaptionerTarget:
    """A caption model of the context's classes in fresh weights."""
    network = fresh_network(replace(context, num_classes=dimensions), model, params, role=role)
    captions = captions_of(class_texts(context))
    from robustkd.targets.tower_modules import words_of  # late: it imports torch

    words = sorted({word for texts in captions for text in texts for word in words_of(text)})
    with seeded_init(context, f"{role}/decoder"):
        return CaptionerTarget(
            network.module,
            tower=ImageTower(network=network.card()),
            words=words,
            captions=captions,
            dimensions=dimensions,
            width=width,
            input_shape=context.input_shape,
        )


def captions_of(names: Sequence[str]) -> list[list[str]]:
    """Of each class the captions that say it, one for each adjective."""
    return [[f"a {adjective} {name}" for adjective in ADJECTIVES] for name in names]


class CaptionPretrain(HeldOutDefense):
    """A model that was trained on images and their captions."""

    Params = CaptionPretrainParams
    reads_texts = True
    uses_threat = True
    source = "Vinyals et al. 2015, arXiv:1411.4555"

    def fit(self, context: FitContext) -> Target:
        """Train; the epoch is chosen by the keyword's accuracy on the validation images, under attack where it is trained so."""
        p, seen = self.params, without_classes(context, self.params.held_out)
        target = fresh_captioner(context, p.model, p.model_params, p.dimensions, p.width)
        adversary = Adversary.under(p.inner, context.threat) if p.adversarial else None
        recipe = CaptionRecipe(torch.from_numpy(tones_of(seen.train.unit())), adversary)
        return train(seen, target, recipe, p)
