"""INFER: real images that share a learnt perturbation, in the place of images that are made one by one.

    U_j = argmin_U  sum over networks f of  CE(f(A(x + U)), y) + r_bn * (distance of BatchNorm statistics),     x one image of each class
    S = { clip(x + U_j) }

One perturbation of the shape of an image serves a whole picture of one image a class, so that a set of n images a class takes n
perturbations and the numbers of the real images. It is a universal perturbation that helps: its size in linf is reported for each picture,
to be compared with the eps of the threat.

From the authors: the shared perturbation over several networks, losses and optimiser. From us: the clip to the pixel range acts on the
images that are stored (in their code on a copy that goes nowhere); the labels are those of the images, without their interpolation (MixUp),
which belongs to who trains on the set.

Control: ``random-subset``, which is the same images without U.

Source: Zhang et al.: Breaking class barriers: efficient dataset distillation via inter-class feature compensator (INFER, 2024),
arXiv:2408.06927; settings as in the authors' code (UFC).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from robustkd.condensers.engine.inversion import InversionParams, inversion_loss, one_of_each, with_adam
from robustkd.condensers.engine.synthetic import start_images
from robustkd.contracts import Arrays, Condenser, FitContext, Params, TargetRef
from robustkd.defenses.training.networks import teacher
from robustkd.lazy import nn, torch
from robustkd.targets.frozen import frozen

if TYPE_CHECKING:
    from torch import Tensor


class INFERParams(InversionParams):
    networks: tuple[TargetRef, ...] = Field(
        min_length=1, description="the defenses whose models share the perturbation, each with BatchNorm"
    )
    start: Literal["real"] = Field("real", description="the images are real ones")
    labels: Literal["hard"] = Field("hard", description="those of the images")


class INFER(Condenser):
    """Real images with one learnt perturbation for each picture of one image a class."""

    Params: ClassVar[type[Params]] = INFERParams
    source = "Zhang et al. 2024, arXiv:2408.06927"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Learn a perturbation for each picture."""
        p = self.params
        networks = [teacher(context, name) for name in p.networks]
        images, labels = start_images(context, p)
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(frozen(network.module))
            for number, rows in enumerate(one_of_each(labels)):
                x, y = images[rows], labels[rows]
                shared = nn.Parameter(torch.zeros_like(x[:1]))

                def loss(
                    step: int, generator: torch.Generator, x: Tensor = x, y: Tensor = y, shared: Tensor = shared
                ) -> Tensor:
                    moved = (x + shared).clamp(0, 1)
                    terms = [inversion_loss(network, p, moved, y, p.smallest_crop, generator) for network in networks]
                    return torch.stack(terms).mean()

                found = with_adam(context, f"picture-{number}", {"perturbation": shared}, loss, p)["perturbation"]
                context.log(number, {"perturbation_linf": float(found.abs().max())})
                images[rows] = (x + found).clamp(0, 1)
        return Arrays(images.cpu().numpy(), labels.cpu().numpy())
