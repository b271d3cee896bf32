from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from robustkd import plugins
from robustkd.contracts import UsageError
from robustkd.data import SplitParams, load_splits
from robustkd.targets import ClassifierTarget, load_target, save_target
from robustkd.targets.checkpoints import load_weights

SMALL_PARAMS: dict[str, dict[str, Any]] = {"wrn": {"depth": 10, "width": 1}}
NORMALISATION: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
FROM_TORCHVISION = {"resnet101", "resnext50-32x4d", "densenet201", "vgg19"}  # large; test_torchvision_models.py has them
ALL = [name for name in plugins.names("models") if name not in FROM_TORCHVISION]


def target(name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, **params: Any) -> ClassifierTarget:
    torch.manual_seed(0)
    made = ClassifierTarget.from_model(name, SMALL_PARAMS.get(name, {}) | params, input_shape=shape, num_classes=classes)
    made.module.eval()
    return made


def test_every_architecture_of_the_catalogue_is_there() -> None:
    assert len(ALL) == 16
    assert set(plugins.names("models")) >= FROM_TORCHVISION


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 22)])
def test_logits_for_any_image_size(name: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(2, *shape, requires_grad=True)
    logits = target(name, shape, classes=7)(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert logits.shape == (2, 7)
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_the_weights(name: str) -> None:
    first, second = target(name).module.state_dict(), target(name).module.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ALL)
def test_normalisation_happens_inside_and_leaves_the_checkpoint_alone(name: str) -> None:
    plain, normalised = target(name), target(name, **NORMALISATION)
    assert plain.module.state_dict().keys() == normalised.module.state_dict().keys()
    images = torch.rand(4, 3, 32, 32)
    mean, std = (torch.tensor(NORMALISATION[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(normalised.features(images, ["normalise"])["normalise"], (images - mean) / std, atol=1e-6)
    assert torch.allclose(normalised(images), plain((images - mean) / std), atol=1e-5)
    assert torch.equal(plain.features(images, ["normalise"])["normalise"], images)


@pytest.mark.parametrize("name", ALL)
def test_features_are_reachable_by_name(name: str) -> None:
    made, images = target(name), torch.rand(2, 3, 32, 32)
    layers = [layer for layer, module in made.module.named_modules() if layer and not list(module.children())]
    features = made.features(images, layers)
    assert features.keys() == set(layers)
    head = [layer for layer, module in made.module.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    assert torch.equal(features[head], made(images))


@pytest.mark.parametrize("name", ["tiny-cnn", "resnet20", "wrn", "tiny-vit"])
def test_a_saved_target_answers_the_same(name: str, tmp_path: Path) -> None:
    made, images = target(name, **NORMALISATION), torch.rand(3, 3, 32, 32)
    save_target(made, tmp_path)
    assert torch.equal(load_target(tmp_path)(images), made(images))


# Published sizes for CIFAR-10: He et al. 2016 (table 6), Zagoruyko and Komodakis 2016 (table 5: 36.5 M), and the usual
# counts of the CIFAR forms of ResNet-18 and MobileNetV2.
@pytest.mark.parametrize(
    ("name", "params", "millions"),
    [
        ("resnet20", {}, 0.27),
        ("resnet32", {}, 0.46),
        ("resnet44", {}, 0.66),
        ("resnet56", {}, 0.85),
        ("resnet18", {}, 11.17),
        ("preact-resnet18", {}, 11.17),
        ("wrn", {"depth": 28, "width": 10}, 36.48),
        ("mobilenet-v2", {}, 2.30),
    ],
)
def test_sizes_are_the_published_ones(name: str, params: dict[str, Any], millions: float) -> None:
    parameters = target(name, **params).module.parameters()
    assert sum(parameter.numel() for parameter in parameters) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_student_is_clearly_smaller() -> None:
    sizes = [sum(p.numel() for p in target(name, (1, 28, 28)).module.parameters()) for name in ("tiny-cnn", "small-cnn")]
    assert sizes[0] * 10 < sizes[1]


def test_small_cnn_learns_the_digits() -> None:
    data = load_splits("digits", {}, SplitParams())
    assert data.train is not None
    made = target("small-cnn", data.input_shape, data.num_classes, width=16)
    images, labels = torch.from_numpy(data.train.unit()), torch.from_numpy(data.train.labels)
    weights = list(made.module.parameters())
    for start in list(range(0, len(images), 64)) * 15:
        batch = slice(start, start + 64)
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(made(images[batch]), labels[batch]), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(0.2 * gradient)
    with torch.inference_mode():
        right = made(torch.from_numpy(data.test.unit())).argmax(1) == torch.from_numpy(data.test.labels)
    assert right.float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "shape", "classes", "params", "said"),
    [
        ("resnet18", (3, 4, 4), 10, {}, "at least 8 pixels"),
        ("lenet5", (1, 3, 28), 10, {}, "at least 4 pixels"),
        ("small-cnn", (28, 28), 10, {}, "channels, height, width"),
        ("small-cnn", (1, 28, 28), 1, {}, "at least 2"),
        ("tiny-cnn", (1, 28, 28), 10, NORMALISATION, "one mean and one std for every channel"),
    ],
)
def test_a_shape_that_does_not_fit_is_explained(
    name: str, shape: tuple[int, ...], classes: int, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        target(name, shape, classes, **params)


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("resnet20", {"mean": (0.5,)}, "both mean and std"),
        ("resnet20", {"mean": (0.5, 0.5), "std": (0.2,)}, "one of each"),
        ("resnet20", {"mean": (0.5,), "std": (0.0,)}, "above 0"),
        ("wrn", {"depth": 27}, "6n\\+4"),
        ("tiny-vit", {"width": 50}, "cannot be shared by 4 heads"),
        ("small-cnn", {"widht": 8}, "widht"),
    ],
)
def test_wrong_parameters_are_refused(name: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        target(name, **params)


def accuracy(made: ClassifierTarget, dataset: str, root: Path) -> float:
    test = load_splits(dataset, {"root": root}, SplitParams()).test
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    made.module.to(memory_format=torch.channels_last)  # 1.7 times as fast for these networks on a CPU
    with torch.inference_mode():
        guesses = [made(images[start : start + 100] / 255).argmax(1) for start in range(0, len(images), 100)]
    return 100 * (torch.cat(guesses) == labels).float().mean().item()


@pytest.fixture
def cifar_test(shared_data: Path, tmp_path: Path) -> Path:
    for name in ("test.webp", "test_labels.npy"):
        (tmp_path / name).symlink_to(shared_data / "cifar10" / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "published"), [("resnet20", 91.73), ("resnet56", 93.39)])
def test_cifar_resnets_reach_their_published_accuracy(name: str, published: float, shared_data: Path, cifar_test: Path) -> None:
    card = json.loads((shared_data / "networks" / f"cifar10_{name}.json").read_text())
    made = target(name, **card["normalisation"])
    load_weights(made.module, shared_data / "networks" / f"cifar10_{name}.safetensors")
    # Some images sit on a decision boundary: another processor's rounding may move a few of the 10,000.
    assert accuracy(made, "cifar10", cifar_test) == pytest.approx(published, abs=0.05)


@pytest.mark.shared_data
@pytest.mark.parametrize(("training", "published"), [("clean", 98.89), ("adv", 98.64)])
@pytest.mark.slow
def test_lenet5_reaches_its_published_accuracy(training: str, published: float, shared_data: Path) -> None:
    made = target("lenet5", (1, 28, 28))
    load_weights(made.module, shared_data / "networks" / f"mnist_lenet5_{training}.safetensors")
    assert accuracy(made, "mnist", shared_data / "mnist") == pytest.approx(published, abs=0.05)


def test_convnet_has_the_published_size_and_instance_normalisation_looks_at_one_image() -> None:
    # ConvNet-3 of width 128 for 32x32x3 and 10 classes: 320,010 parameters, as the code of dataset condensation counts them.
    assert sum(p.numel() for p in target("convnet", (3, 32, 32)).module.parameters()) == 320_010
    network = target("convnet", (1, 8, 8), width=4).module.train()
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-5)
    batched = target("convnet", (1, 8, 8), width=4, norm="batch").module.train()
    assert not torch.allclose(batched(x)[:1], batched(x[:1]), atol=1e-3)


def test_convnet_says_how_many_blocks_an_image_has_room_for() -> None:
    with pytest.raises(UsageError, match="4 blocks cannot take images of 8x8") as told:
        target("convnet", (1, 8, 8), depth=4)
    assert "depth: 3" in str(told.value.fix)
