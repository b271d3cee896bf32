"""SalUn: saliency unlearning (Fan et al. 2024, equations 3 to 6).

Images of an erased concept are taken for another one, and only the weights move that matter for them:

    m      = 1[ |grad_theta E ||noise - eps_theta(z_t | c)||^2| among the largest ]
    min over m * theta    E ||eps_theta(z_t | c) - eps_theta(z_t | c')||^2 + retain E_kept ||noise - eps_theta(z_t | c)||^2

where c' is another concept's text and the second prediction is held constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.captioned_pictures import CaptionedPictures
from robustkd.defenses.diffusion.erasing import Layers, TuningParams, begin, select_by_wording, tuned
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import F, torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor, nn

_SALIENCY_BATCHES = 8


class SalUnParams(TuningParams):
    layers: Layers = Field("unet", description="what is tuned")
    share: float = Field(0.5, gt=0, le=1, description="of these weights: how many may move")
    retain: float = Field(1.0, ge=0, description="weight of drawing what is not erased")


class SalUn(TextToImageDefense):
    """A model whose salient weights are tuned to draw other concepts in place of the erased ones."""

    Params = SalUnParams
    source = "Fan et al., SalUn: gradient-based weight saliency for machine unlearning, ICLR 2024, arXiv:2310.12508"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Tune a copy of the base.

        Raises:
            DataError: the training captions have no images; see also ``erasing.begin``.
            UsageError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        target, retain = erasure.target, erasure.retain
        erased = select_by_wording(context.train, p).where("concept", *erasure.forget.concepts)
        forgotten = CaptionedPictures.of(erased, erased["concept"] if p.wording == "name" else erased["prompt"])
        others = context.train.where("concept", *retain.concepts)
        kept = CaptionedPictures.of(others, others["prompt"])

        def loss(generator: torch.Generator) -> Tensor:
            z, _, t, texts = forgotten.draw(target, p.batch_size, generator)
            with torch.no_grad():
                instead = target.unet_output(z, t, target.encode(target.tokenize(retain.draw(p.batch_size, generator))))
            forgetting = F.mse_loss(target.unet_output(z, t, target.encode(target.tokenize(texts))), instead)
            return forgetting + (p.retain * denoising_loss(target, kept, p.batch_size, generator) if p.retain else 0)

        parameters = tuned(target, p.layers)
        generator = torch.Generator().manual_seed(derived_seed(context.seed, "saliency"))
        masks = salient(
            parameters, [lambda: denoising_loss(target, forgotten, p.batch_size, generator)] * _SALIENCY_BATCHES, p.share
        )
        hooks = [weight.register_hook(masks[name].mul) for name, weight in parameters.items()]
        train_steps(context, "erase", parameters, loss, p)
        for hook in hooks:
            hook.remove()
        return target


def denoising_loss(target: TextToImageTarget, pictures: CaptionedPictures, count: int, generator: torch.Generator) -> Tensor:
    """The loss of diffusion models, E ||noise - eps(z_t | c)||^2."""
    z, aim, t, texts = pictures.draw(target, count, generator)
    return F.mse_loss(target.unet_output(z, t, target.encode(target.tokenize(texts))), aim)


def salient(parameters: Mapping[str, nn.Parameter], losses: Sequence[Callable[[], Tensor]], share: float) -> dict[str, Tensor]:
    """Of each parameter, 1 where the mean gradient of the losses is among the largest ``share`` of all numbers, else 0."""
    sums = [torch.zeros_like(weight) for weight in parameters.values()]
    for loss in losses:
        gradients = torch.autograd.grad(loss(), list(parameters.values()))
        sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
    sizes = torch.cat([total.abs().flatten() for total in sums])
    smallest = sizes.kthvalue(max(1, len(sizes) - round(share * len(sizes)) + 1)).values
    return {name: (total.abs() >= smallest).to(total.dtype) for name, total in zip(parameters, sums, strict=True)}
