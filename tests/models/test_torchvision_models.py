from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.contracts import PluginError, UsageError
from robustkd.targets import ClassifierTarget

NAMES = ["resnet101", "resnext50-32x4d", "densenet201", "vgg19"]


@pytest.fixture
def models() -> Any:
    try:
        import torchvision.models
    except Exception as error:
        pytest.skip(f"torchvision does not load: {error}")
    return torchvision.models


def target(name: str, shape: tuple[int, ...] = (3, 32, 32), **params: Any) -> ClassifierTarget:
    torch.manual_seed(0)
    made = ClassifierTarget.from_model(name, params, input_shape=shape, num_classes=10)
    made.module.eval()
    return made


# Millions of parameters with torchvision's own head of 1,000 classes, as its documentation lists them.
@pytest.mark.parametrize(
    ("name", "published", "features"),
    [("resnet101", 44.549, 2048), ("resnext50-32x4d", 25.029, 2048), ("densenet201", 20.014, 1920), ("vgg19", 143.667, 4096)],
)
def test_sizes_are_the_published_ones(models: Any, name: str, published: float, features: int) -> None:
    plugin = plugins.load("models", name)
    with torch.device("meta"):
        network = plugin(plugin.Params()).build((3, 224, 224), 10)
    size = sum(weight.numel() for weight in network.parameters()) + 990 * (features + 1)
    assert size / 1e6 == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_small_stem_keeps_small_images_and_hooks_see_what_layers_return(models: Any, name: str) -> None:
    made, images = target(name, (1, 32, 32), stem="small"), torch.rand(2, 1, 32, 32, requires_grad=True)
    first = next(layer for layer, module in made.module.named_modules() if isinstance(module, nn.Conv2d))
    layers = [layer for layer, module in made.module.named_modules() if layer and not list(module.children())]
    features = made.features(images, layers)
    assert features[first].shape[2:] == (32, 32)
    head = [layer for layer, module in made.module.named_modules() if isinstance(module, nn.Linear)][-1]
    assert features[head].shape == (2, 10)
    assert features[head].abs().max() > 1e-4
    norms = [layer for layer, module in made.module.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # A ReLU in place would have left nothing below zero in what a normalisation returned.
    assert all(features[layer].min() < 0 for layer in norms[-3:])
    (gradient,) = torch.autograd.grad(features[head].sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("name", ["resnext50-32x4d", "densenet201"])
def test_torchvisions_own_weights_load_and_give_its_answers(models: Any, name: str) -> None:
    theirs = getattr(models, name.replace("-", "_"))(num_classes=10).eval()
    made, images = target(name, (3, 64, 64)), torch.rand(2, 3, 64, 64)
    made.module.body.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(made(images), theirs(images))


@pytest.mark.parametrize("params", [{}, {"batch_norm": True}])
def test_vgg_learns_something_from_its_own_initialisation(models: Any, params: dict[str, Any]) -> None:
    first, again = (target("vgg19", stem="small", **params) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True))
    logits = first(torch.rand(8, 3, 32, 32))
    assert logits.isfinite().all()
    assert logits.std(0).min() > 1e-4  # images are told apart: nothing has died on the way through 16 convolutions
    assert sum(weight.numel() for weight in first.module.parameters()) / 1e6 == pytest.approx(20.03, abs=0.02)


def test_images_that_are_too_small_are_refused(models: Any) -> None:
    with pytest.raises(UsageError, match="VGG19 cannot take inputs of shape \\(1, 28, 28\\)"):
        target("vgg19", (1, 28, 28))


def test_without_torchvision_only_the_network_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refusing(name: str, *given: Any) -> Any:
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return imported(name, *given)

    for name in [name for name in sys.modules if name.startswith("torchvision.") or name == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refusing)
    plugin = plugins.load("models", "resnet101")
    assert plugin.Params(stem="small").stem == "small"
    with pytest.raises(PluginError, match="ResNet101 comes from torchvision, which cannot be imported: RuntimeError") as caught:
        plugin(plugin.Params()).build((3, 32, 32), 10)
    assert "belongs to torch" in (caught.value.fix or "")
