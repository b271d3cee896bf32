"""A small text-to-image model, trained on the campaign's captions: what erasing defenses begin with.

First the text encoder beside an image encoder that is thrown away, so that captions lie where their images do; then, with the text
encoder frozen, the UNet:

    min_text    -1/2 (log softmax of s_ij over j + log softmax over i) at i = j,  s_ij = <text_i, image_j> / tau
    min_unet    E_{t, noise} ||v - v(z_t | caption)||^2,  v = sqrt(a_t) noise - sqrt(1 - a_t) z_0,  the caption left out now and then

as in Radford et al. 2021, Salimans and Ho 2022, and Ho and Salimans 2022. Of images without captions it learns to draw whatever
there is, under the empty prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.attacks.image.engine.feature_losses import symmetric_info_nce
from robustkd.contracts import Arrays, DataError, Defense, FitContext, Modality, Prompts
from robustkd.data.arrays import as_arrays
from robustkd.defenses.diffusion.noise import noised
from robustkd.defenses.diffusion.small import SmallModelParams, small_model
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.steps import StepParams, train_steps
from robustkd.lazy import F, nn, torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

_ENCODED_TOGETHER = 256


class TextStepParams(StepParams):
    """The steps of the text encoder."""

    steps: int = Field(500, ge=1, description="updates of the weights")
    batch_size: int = Field(128, ge=2, description="captions and images in each step")
    lr: float = Field(2e-3, gt=0, description="learning rate at the start")
    temperature: float = Field(0.1, gt=0, description="tau of the contrast")


class PretrainParams(SmallModelParams, StepParams):
    steps: int = Field(700, ge=1, description="updates of the UNet's weights")
    batch_size: int = Field(64, ge=1, description="images in each of these steps")
    lr: float = Field(2e-3, gt=0, description="learning rate at the start")
    drop: float = Field(0.1, ge=0, lt=1, description="how often a caption is left out, for classifier-free guidance")
    text: TextStepParams = Field(TextStepParams(), description="the training of the text encoder, before")


class TextToImagePretrain(Defense):
    """A text-to-image model of the campaign's images. It withstands nothing: it is what is to be erased from, or drawn with."""

    Params = PretrainParams
    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image", "images")
    undefended = True
    source = "Ho and Salimans, Classifier-free diffusion guidance, 2022, arXiv:2207.12598"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train text encoder and UNet.

        Raises:
            DataError: the training captions have no images.
        """
        images, captions = _captioned(context.train)
        with seeded_init(context, "student"):
            target = small_model(captions, images.sample_shape, self.params)
        target.to(context.device)
        target.module.eval()
        data = _TrainingData(target, torch.from_numpy(images.unit()), target.tokenize(captions))
        if any(captions):
            self._align(context, data)
        self._draw(context, data)
        return target

    def _align(self, context: FitContext[Prompts], data: _TrainingData) -> None:
        """Train the text encoder beside an image encoder."""
        p, target = self.params.text, data.target
        with seeded_init(context, "image encoder"):
            eye = _image_encoder(data.images.shape[1:], self.params.text_width).to(context.device)

        def loss(generator: torch.Generator) -> Tensor:
            rows = torch.randint(len(data.images), (p.batch_size,), generator=generator)
            seen = F.normalize(eye(data.images[rows].to(target.device)), dim=1)
            texts = F.normalize(said(target, data.ids[rows.to(target.device)]), dim=1)
            return symmetric_info_nce(texts, seen, p.temperature)

        named = {f"text/{name}": weight for name, weight in target.text_encoder.named_parameters()}
        named |= {f"eye/{name}": weight for name, weight in eye.named_parameters()}
        train_steps(context, "text", named, loss, p)

    def _draw(self, context: FitContext[Prompts], data: _TrainingData) -> None:
        """Train the UNet; the text encoder stands still, so each caption is encoded once."""
        p, target = self.params, data.target
        with torch.no_grad():
            hidden = torch.cat([target.encode(part).tokens for part in data.ids.split(_ENCODED_TOGETHER)])
            empty = target.unconditional().tokens

        def loss(generator: torch.Generator) -> Tensor:
            rows = torch.randint(len(data.images), (p.batch_size,), generator=generator)
            dropped = (torch.rand(p.batch_size, generator=generator) < p.drop).to(target.device)
            given = torch.where(dropped[:, None, None], empty, hidden[rows.to(target.device)])
            latents = target.latents(data.images[rows])
            z, noise, t = noised(target, latents, generator)
            return F.mse_loss(target.unet_output(z, t, Conditioning(given)), target.training_target(latents, noise, t))

        train_steps(context, "unet", dict(target.unet.named_parameters()), loss, p)


@dataclass(frozen=True, eq=False)
class _TrainingData:
    """A model, the training images (N, C, H, W) on the CPU and their captions' tokens (N, T) on the model's device."""

    target: TextToImageTarget
    images: Tensor
    ids: Tensor


def _captioned(train: Arrays | Prompts) -> tuple[Arrays, tuple[str, ...]]:
    """The images and their captions, empty ones where there are none."""
    if isinstance(train, Arrays):
        return train, ("",) * len(train)
    if train.images is None:
        raise DataError("the training captions have no images", fix="use a data set of captioned images")
    return as_arrays(train.images, train.labels, "captions"), train["prompt"]


def said(target: TextToImageTarget, ids: Tensor) -> Tensor:
    """(B, D), the encoder's state at the end of each prompt, all of which it has read by then."""
    end = (ids == target.eos).to(torch.int8).argmax(1)
    return target.encode(ids).tokens[torch.arange(len(ids), device=ids.device), end]


def _image_encoder(shape: Sequence[int], width: int) -> nn.Sequential:
    colours, height, breadth = shape
    convolutions = [nn.Conv2d(colours, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(32 * -(-height // 4) * -(-breadth // 4), width))
