"""What is asked of architectures and of input transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.contracts import UsageError
from robustkd.lazy import torch
from robustkd.plugin_kit.subject import Broken, NotApplicable, Subject, generators_at, listed, require
from robustkd.targets import backward_surrogates

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLASSES = 7
_SHAPES = ((1, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64))
"""Image shapes that are tried, the smallest first."""


def builds(subject: Subject) -> None:
    """It builds a network from images to a finite row of logits, for some shape of images."""
    network, x = _network(subject)
    logits = network(x)
    require(
        tuple(logits.shape) == (len(x), _CLASSES), f"it returns {tuple(logits.shape)}", "return one row of K logits an image"
    )
    require(bool(torch.isfinite(logits).all()), "its logits are not finite", "look at the initialisation")


def seeded(subject: Subject) -> None:
    """Torch's global generator alone decides the initial weights."""
    first, second, other = (_network(subject, seed)[0].state_dict() for seed in (0, 0, 1))
    moved = [name for name, value in first.items() if not torch.equal(value, second[name])]
    require(not moved, f"built twice from one seed, {listed(moved)} differ", "draw from torch's global generator")
    same = all(torch.equal(value, other[name]) for name, value in first.items())
    require(not same, "two seeds give the same weights", "draw the initial weights, do not load them: that is a defense")


def images_alone(subject: Subject) -> None:
    """In evaluation mode an image's logits depend on no other image."""
    network, x = _network(subject)
    with torch.no_grad():
        whole, alone = network(x), torch.cat([network(image) for image in x.split(1)])
    away = float((whole - alone).abs().max() / whole.abs().max().clamp_min(1))
    require(
        away < 1e-4,
        f"one by one the logits differ by {away:.2g} of the largest",
        "no statistics of the batch in evaluation mode",
    )


def differentiable(subject: Subject) -> None:
    """A gradient reaches the image and, in training, every parameter."""
    network, x = _network(subject)
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x, allow_unused=True)
    require(
        gradient is not None and bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any()),
        "no gradient reaches the image",
        "no rounding, detach() or no_grad() on the way",
    )
    network.train()
    network(x.detach()).square().sum().backward()
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    require(not idle, f"{listed(idle)} get no gradient", "use them in forward, or remove them")


def state_is_whole(subject: Subject) -> None:
    """A second network with the first one's state_dict computes the same."""
    first, x = _network(subject, 0)
    second, _ = _network(subject, 1)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        require(
            torch.equal(first(x), second(x)),
            "with the same weights it computes something else",
            "register what the network computes with as a parameter or a buffer",
        )


MODEL = (builds, seeded, images_alone, differentiable, state_is_whole)


def keeps_shape(subject: Subject) -> None:
    """Images come out as finite images of the same shape, for every shape that it takes."""
    seen = 0
    for shape in _SHAPES:
        try:
            stage = _stage(subject, shape)
        except UsageError:  # a shape that it says it does not take
            continue
        seen += 1
        out = stage(_images(shape))
        require(tuple(out.shape) == (3, *shape), f"{shape} comes out as {tuple(out.shape[1:])}", "keep the shape")
        require(bool(torch.isfinite(out).all()), "pixels come out as NaN or infinite", "look for a division or a root")
    require(seen > 0, f"it takes none of the shapes {_SHAPES}", "build(input_shape) for ordinary images")


def seeded_stage(subject: Subject) -> None:
    """What it draws comes from torch's global generator alone."""
    shape = _taken(subject)
    stage, x = _stage(subject, shape), _images(shape)
    with generators_at(3):
        first = stage(x)
    with generators_at(3):
        second = stage(x)
    require(torch.equal(first, second), "from one seed it computes two results", "draw from torch's global generator")


def attackable(subject: Subject) -> None:
    """A useful gradient goes through it, or it declares a surrogate."""
    shape = _taken(subject)
    stage, x = _stage(subject, shape), _images(shape)
    declared = {name: child.surrogate for name, child in stage.named_modules() if callable(getattr(child, "surrogate", None))}
    with backward_surrogates(stage, declared):
        slope = _slope(stage, x)
    require(
        slope is not None and bool((slope != 0).any()),
        "no gradient goes through it" + (", nor through its surrogate" if declared else ""),
        "declare one: def surrogate(self, images): a smooth function of the same shape, called on the way back",
    )


TRANSFORM = (keeps_shape, seeded_stage, attackable)


def _network(subject: Subject, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, and images for it."""
    refused: UsageError | None = None
    for shape in _SHAPES:
        with generators_at(seed):
            try:
                network: nn.Module = subject.make().build(shape, _CLASSES)
            except UsageError as error:
                refused = error
                continue
            return network.eval(), _images(shape)
    assert refused is not None
    raise Broken(f"it takes none of the shapes {_SHAPES}: {refused.message}", refused.fix or "build for ordinary images")


def _taken(subject: Subject) -> Sequence[int]:
    for shape in _SHAPES:
        try:
            _stage(subject, shape)
        except UsageError:
            continue
        return shape
    raise NotApplicable("it takes no images of the shapes that are tried")


def _stage(subject: Subject, shape: Sequence[int]) -> nn.Module:
    with generators_at(0):
        stage: nn.Module = subject.make().build(shape).eval()
    return stage


def _images(shape: Sequence[int]) -> Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(5))


def _slope(stage: nn.Module, x: Tensor) -> Tensor | None:
    x = x.clone().requires_grad_()
    out = stage(x)
    if not out.requires_grad:
        return None
    weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(6))
    slope: Tensor | None = torch.autograd.grad((out * weights).sum(), x, allow_unused=True)[0]
    return slope
