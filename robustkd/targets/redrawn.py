"""A classifier that sees what a diffusion model makes of an image: noised to some level, and drawn back from there.

    z = latents(x),   z_t = sqrt(a_t) z + sqrt(1 - a_t) noise,   x' = drawn back from z_t under one fixed prompt,   answer = f(x')

This is SDEdit, and both how pictures are imitated and how inputs are purified (DiffPure). The prompt says nothing of the image, so
what is right about x' was carried over by the image. The noise is the same for every image: the answer is a function of the image,
with an exact gradient, and does not depend on the batch.

Source: Meng et al.: SDEdit (ICLR 2022), arXiv:2108.01073; Nie et al.: Diffusion models for adversarial purification (ICML 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Card, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import nn, torch
from robustkd.targets.cards import target_from_card
from robustkd.targets.image import ImageTarget
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class Redrawn(nn.Module):
    """x -> f(x')."""

    def __init__(self, drawing: TextToImageTarget, classifier: nn.Module, steps: int, prompt: str, seed: int) -> None:
        super().__init__()
        self.weights, self.classifier = drawing.module, classifier
        self._drawing, self._steps, self._prompt, self._seed = drawing, steps, prompt, seed

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K)."""
        logits: Tensor = self.classifier(self.redrawn(images))
        return logits

    def redrawn(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> x', the same; differentiable."""
        drawing = self._drawing
        draws = [torch.Generator().manual_seed(self._seed) for _ in images]
        hidden = drawing.encode(drawing.tokenize([self._prompt])).expand(len(images))
        guided = bool(self._prompt) and drawing.guidance != 1
        empty = drawing.unconditional() if guided else None
        drawn = drawing.redraw(drawing.latents(images), draws, hidden, empty, drawing.guidance, steps=self._steps)
        return drawing.decode_latents(drawn).to(images.dtype)


class PurifiedCard(Card):
    """The card of a purified classifier: those of its two models, and how the images are redrawn."""

    drawing: JsonObject
    classifier: JsonObject
    strength: float
    prompt: str
    seed: int


class PurifiedTarget(ImageTarget):
    """A diffusion model, then a classifier; both share their weights with this target.

    Args:
        drawing: the diffusion model.
        classifier: of what it draws; pixels in [0, 1].
        strength: the share of the drawing's steps that is drawn again, in (0, 1]: 1 leaves next to nothing of the image.
        prompt: what the image is drawn anew as; empty for nothing in particular.
        seed: of the noise.

    Raises:
        TargetError: the two do not take the same images.
    """

    kind = "redrawn"

    def __init__(
        self, drawing: TextToImageTarget, classifier: ImageTarget, *, strength: float, prompt: str = "", seed: int = 0
    ) -> None:
        if classifier.bounds != (0.0, 1.0):
            raise TargetError(f"images are drawn in [0, 1], the classifier takes them in {classifier.bounds}")
        with torch.no_grad():
            latents = tuple(drawing.latents(torch.zeros(1, *classifier.input_shape)).shape[1:])
        if latents != drawing.latent_shape:
            raise TargetError(
                f"the classifier's images {classifier.input_shape} are latents of {latents}, the model draws from {drawing.latent_shape}",
                fix="use a classifier of images of the size that the model draws",
            )
        steps = max(1, round(strength * drawing.steps))
        super().__init__(
            Redrawn(drawing, classifier.module, steps, prompt, seed),
            num_classes=classifier.num_classes,
            input_shape=classifier.input_shape,
        )
        self.drawing, self.classifier = drawing, classifier
        self.strength, self.prompt, self.seed = strength, prompt, seed
        self.output = classifier.output
        self.capabilities = classifier.capabilities - {"members"} | {"denoising"}

    @override
    def card(self) -> JsonObject:
        return PurifiedCard(
            target=self.kind,
            drawing=self.drawing.card(),
            classifier=self.classifier.card(),
            strength=self.strength,
            prompt=self.prompt,
            seed=self.seed,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> PurifiedTarget:
        own = PurifiedCard.read(card)
        drawing, classifier = target_from_card(own.drawing), target_from_card(own.classifier)
        assert isinstance(drawing, TextToImageTarget)
        assert isinstance(classifier, ImageTarget)
        return cls(drawing, classifier, strength=own.strength, prompt=own.prompt, seed=own.seed)
