"""GAL: gradient alignment loss. Members whose gradients point apart, so that no step raises the loss of all.

    min  1/M sum_m CE(f_m(x), y)  +  lambda * log sum_{i<j} exp( cos(g_i, g_j) ),      g_m = grad_x CE(f_m(x), y)

The coherence is differentiated through the gradients. Networks of plain ReLUs have sparse ones, so the members' are leaky
(``slope``); half of the images, drawn for each and epoch, are shown with Gaussian noise.

Good against transfer, between the plain ensemble and ``dverge`` (36.5 % in ``dverge-small``). White-box it falls: 4.9 %.

Source: Kariyappa, Qureshi: Improving adversarial robustness of ensembles with diversity training (2019), equations 6 and 7; lambda,
slope, noise and optimiser (Adam at 0.001) as in the evaluation by Yang et al. (DVERGE, NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustkd import plugins
from robustkd.contracts import FitContext, Target, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.defenses.training import Minibatch, Recipe, train
from robustkd.defenses.training.members import (
    MembersDefense,
    MembersParams,
    cosines,
    cross_entropies,
    first_members,
    input_gradients,
)
from robustkd.defenses.training.params import OptimiserParam
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget, EnsembleTarget


class GALParams(MembersParams):
    optimiser: OptimiserParam = "adam"
    coherence: float = Field(0.5, ge=0, description="lambda, the weight of the coherence")
    slope: float = Field(0.1, ge=0, lt=1, description="of the members' leaky ReLUs below 0; 0 leaves the ReLUs as they are")
    noise: float = Field(0.045, ge=0, description="deviation of the noise on half of the images, in pixel units")


def coherence(gradients: Tensor) -> Tensor:
    """(B,) log sum_{i<j} exp(cos(g_i, g_j)) of (M, B, D) gradients."""
    return cosines(gradients).logsumexp(0)


def half_noisy(x: Tensor, deviation: float, rng: SampleRng) -> Tensor:
    """(B, C, H, W) with N(0, deviation^2) added to each image with probability 1/2; not clipped, as in the authors' code."""
    chosen = rng.integers((1, 1, 1), 2)
    return x + deviation * chosen * rng.normal(x.shape[1:], dtype=x.dtype)


class GALRecipe(Recipe[EnsembleTarget]):
    """The members' cross entropies and the coherence of their gradients."""

    def __init__(self, params: GALParams) -> None:
        self.params = params

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """mean CE + lambda * coherence; the pass that gives a member's gradient gives its cross entropy too."""
        x = half_noisy(batch.x, self.params.noise, batch.rng("noise"))
        logits, gradients = input_gradients(target.members, x, batch.y)
        aligned = coherence(gradients).mean()
        return cross_entropies(logits, batch.y).mean() + self.params.coherence * aligned, {"coherence": aligned}


class _Leaky(TorchFunctionMode):
    """Every ReLU of the block, module or function, is a leaky one."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.relu, torch.relu, Tensor.relu):
            return F.leaky_relu(args[0], self.slope)
        return func(*args, **(kwargs or {}))


class LeakyNetwork(nn.Module):
    """A network whose ReLUs have a slope below 0."""

    def __init__(self, network: nn.Module, slope: float) -> None:
        super().__init__()
        self.network, self.slope = network, slope

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        with _Leaky(self.slope):
            logits: Tensor = self.network(images)
        return logits


def build(model: str, params: Mapping[str, Any], slope: float, input_shape: Sequence[int], num_classes: int) -> LeakyNetwork:
    """A fresh model plug-in with leaky ReLUs: how a saved member is built again."""
    plugin = plugins.load("models", model)
    return LeakyNetwork(plugin(plugin.Params(**params)).build(tuple(input_shape), num_classes), slope)


def leaky(member: ClassifierTarget, slope: float) -> ClassifierTarget:
    """The same network, weights included, with leaky ReLUs.

    Raises:
        UsageError: it is not a model plug-in's, so that it could not be built again.
    """
    if member.origin is None or "model" not in member.origin:
        raise UsageError("gal makes the ReLUs of model plug-ins leaky, not those of the user's own code", fix="set slope: 0")
    kwargs = {**member.origin, "slope": slope, "input_shape": list(member.input_shape), "num_classes": member.num_classes}
    return ClassifierTarget(
        LeakyNetwork(member.module, slope),
        num_classes=member.num_classes,
        input_shape=member.input_shape,
        origin={"code": "robustkd.defenses.image.gal:build", "kwargs": kwargs},
        bounds=member.bounds,
    )


class GAL(MembersDefense):
    """An ensemble whose members have gradients in different directions."""

    Params = GALParams
    source = "Kariyappa and Qureshi 2019, arXiv:1901.09981"

    def fit(self, context: FitContext) -> Target:
        """Train the members in one training; the epoch is chosen as ``selection`` says."""
        p = self.params
        members = first_members(context, p)
        if p.slope:
            members = [leaky(member, p.slope) for member in members]
        return train(context, EnsembleTarget(members), GALRecipe(p), p)
