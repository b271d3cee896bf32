"""CLIP from scratch at a small size: an image tower and a text tower that agree on which caption belongs to which image.

    L = 1/2 mean_i [ -log softmax_j(s I_i . T_j)_i  -  log softmax_j(s T_i . I_j)_i ]     over a minibatch, s learnt

Captions come from the data's classes: one of a class's names or descriptions, a word for how bright the image is among all of them, and a
frame (``robustkd.data.captions``). Each epoch writes other captions. Zero-shot, the image is compared with the mean vector of its
templates for each class. It is no defense: it is what others start from.

Good as the encoder of a small world, where what happens to classes outside of a fine-tuning can be seen. It has read of all classes, as
CLIP has; ``held_out`` takes classes out of this training as well.

From the authors: the loss, the learnt temperature from 0.07, clipped so that logits are scaled by 100 at most. From us: the towers, their
sizes and the captions. Several images of a batch may have the same class, so some negatives are none, as on the web.

Source: Radford et al.: Learning transferable visual models from natural language supervision (ICML 2021), figure 3 and section 2.5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.feature_losses import symmetric_info_nce
from robustkd.contracts import FitContext, Target
from robustkd.data.captions import caption, concept_of, phrases, tones_of
from robustkd.defenses.image.representations.encoders.class_texts import Templates, class_texts, class_vectors
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, HeldOutParams, without_classes
from robustkd.defenses.training import Minibatch, NetworkParams, Recipe, fresh_network, train
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget
from robustkd.targets.two_tower import ImageTower, Texts, TwoTowerTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from robustkd.data.concepts import Concept
    from robustkd.defenses.image.representations.encoders.pretraining import Pretraining

_LARGEST_SCALE = 100.0


class ClipPretrainParams(HeldOutParams, NetworkParams):
    dimensions: int = Field(64, ge=2, description="D, of the vectors that both towers give")
    text_width: int = Field(64, ge=16, multiple_of=16, description="of the text tower")
    text_layers: int = Field(2, ge=1, description="of the text tower")
    max_words: int = Field(20, ge=4, description="words of a text at most")
    templates: Templates = ("a photo of a {}",)


class ContrastiveRecipe(Recipe[ClassifierTarget]):
    """InfoNCE both ways between the images of a minibatch and their captions.

    Args:
        concepts: of each class, what it is called.
        tones: of each training image, how bright it is (0, 1 or 2).
    """

    supports_data_parallel = False  # the negatives are those of the whole minibatch

    def __init__(self, concepts: Sequence[Concept], tones: Sequence[int]) -> None:
        self.concepts, self.tones = concepts, tones

    def captions(self, batch: Minibatch) -> list[str]:
        """One for each image, others in each epoch."""
        drawn = batch.rng("caption").integers((4,), 1 << 30).tolist()
        rows = zip(batch.y.tolist(), batch.index.tolist(), drawn, strict=True)
        return [
            caption(self.concepts[label], ("direct", "indirect")[first % 2], self.tones[index], choices)
            for label, index, (first, *choices) in rows
        ]

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the sum of both directions."""
        towers: Pretraining = target.module  # type: ignore[assignment]
        images = F.normalize(towers.image(batch.x).flatten(1).float(), dim=1)
        texts = towers.text(towers.text.tokens(self.captions(batch))).float()
        temperature = 1 / towers.scale(_LARGEST_SCALE)
        return symmetric_info_nce(images, texts, temperature), {"temperature": temperature}


class ClipPretrain(HeldOutDefense):
    """Two towers that were trained on images and captions."""

    Params = ClipPretrainParams
    reads_texts = True
    undefended = True
    source = "Radford et al. 2021, arXiv:2103.00020"

    def fit(self, context: FitContext) -> Target:
        """Train; the epoch is chosen by zero-shot accuracy on the validation images."""
        from robustkd.defenses.image.representations.encoders.pretraining import Pretraining  # late: it imports torch

        p, seen = self.params, without_classes(context, self.params.held_out)
        names = class_texts(context)
        concepts = [concept_of(name) for name in names]
        network = fresh_network(replace(context, num_classes=p.dimensions), p.model, p.model_params)
        texts = Texts(words=_words(concepts, p.templates), length=p.max_words, width=p.text_width, layers=p.text_layers)
        with seeded_init(context, "text"):
            text = texts.build(p.dimensions)
        trained = ClassifierTarget(
            Pretraining(network.module, text, names, p.templates),
            num_classes=context.num_classes,
            input_shape=context.input_shape,
        )
        tones = tones_of(seen.train.unit()).tolist()
        train(seen, trained, ContrastiveRecipe(concepts, tones), p)
        towers: Pretraining = trained.module  # type: ignore[assignment]
        target = TwoTowerTarget(
            towers.image,
            class_vectors(towers.text, names, p.templates),
            tower=ImageTower(network=network.card()),
            input_shape=context.input_shape,
            scale=float(towers.scale(_LARGEST_SCALE).detach()),
            texts=texts,
            text=towers.text,
            classes=context.classes,
        ).to(context.device)
        target.module.eval()
        return target


def _words(concepts: Sequence[Concept], templates: Sequence[str]) -> tuple[str, ...]:
    """Every word of any caption of these concepts, and of the templates."""
    from robustkd.targets.tower_modules import words_of  # late: it imports torch

    texts = [*phrases(), *templates, *(text for concept in concepts for text in (*concept.names, *concept.descriptions))]
    return tuple(sorted({word for text in texts for word in words_of(text)}))
