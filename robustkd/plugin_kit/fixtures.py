"""What plug-ins are tried on: a few of scikit-learn's digits, small networks trained on them, and watchers of what is left changed."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import (
    Arrays,
    BaseTarget,
    Batch,
    Code,
    ColourBudget,
    FitContext,
    FlowBudget,
    PerceptualBudget,
    SpatialBudget,
    Target,
    ThreatModel,
)
from robustkd.contracts.defense import MetricLog
from robustkd.contracts.image_changes import Change
from robustkd.contracts.threat import Norm, Space
from robustkd.data import SplitParams, Splits, load_splits
from robustkd.evaluation.images import make_batch, with_clean_logits
from robustkd.lazy import torch
from robustkd.plugin_kit.subject import Broken, listed
from robustkd.targets import ClassifierTarget, EnsembleTarget, PipelineTarget, TransformSpec, load_target, save_target

if TYPE_CHECKING:
    from torch import nn

SAMPLES = 10
"""How many images are attacked."""

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.8, "l1": 4.0, "l0": 5.0}
"""A budget in each norm that breaks some of the images and not all."""

CHANGES: dict[Space, Change] = {
    "spatial": SpatialBudget(rotation=20, translation=0.1),
    "flow": FlowBudget(0.3),
    "colour": ColourBudget(0.2, resolution=4),
    "perceptual": PerceptualBudget(0.5),
}
"""A budget of each other kind of change, likewise."""

QUICK_TRAINING = {
    "model": "tiny-cnn",
    "student": "tiny-cnn",
    "epochs": 2,
    "batch_size": 32,
    **dict.fromkeys(("finish_epochs", "gate_epochs", "meta_epochs", "pretrain_epochs"), 1),
    "contrast_epochs": 2,
    "cluster_epochs": 2,
}
"""Training parameters that many defenses have, small."""


@functools.cache
def digits() -> Splits:
    """160 images to train on, 40 to select on, ``SAMPLES`` to attack."""
    return load_splits("digits", {}, SplitParams(train=200, test=SAMPLES, validation=40))


@contextmanager
def context(
    *,
    seed: int = 0,
    targets: Mapping[str, Target] | None = None,
    threat: ThreatModel | None = None,
    checkpoints: Path | None = None,
    train: Arrays | None = None,
    log: MetricLog = lambda epoch, metrics: None,
) -> Iterator[FitContext]:
    """The context that a defense is fitted with. Its checkpoints go to a folder that is gone afterwards, unless one is named."""
    data = digits()
    assert data.train is not None
    assert data.validation is not None
    with tempfile.TemporaryDirectory() as folder:
        yield FitContext(
            train=train or data.train,
            validation=data.validation,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            threat=threat or ThreatModel(eps=EPS["linf"]),
            seed=seed,
            device=torch.device("cpu"),
            checkpoints=checkpoints or Path(folder),
            targets=dict(targets or {}),
            log=log,
        )


@functools.cache
def _trained(seed: int, model: str = "tiny-cnn", params: tuple[tuple[str, Any], ...] = ()) -> ClassifierTarget:
    settings = {"kind": "standard", "model": model, "epochs": 10, "batch_size": 20, "optimiser": "adam", "lr": 0.02}
    settings |= {"model_params": dict(params)} if params else {}
    with context(seed=seed) as given:
        target: ClassifierTarget = plugins.make("defenses", settings).fit(given)
    return target


def classifier(seed: int = 0, model: str = "tiny-cnn") -> ClassifierTarget:
    """An undefended network, trained once for each seed and architecture; every call returns a copy."""
    return copy.deepcopy(_trained(seed, model))


def classifiers(names: Sequence[str], model: str = "tiny-cnn") -> dict[str, ClassifierTarget]:
    """A network for each name, each from another seed."""
    return {name: classifier(seed, model) for seed, name in enumerate(names)}


def ensemble() -> EnsembleTarget:
    """A target that averages the probabilities of two networks."""
    return EnsembleTarget([classifier(0), classifier(1)])


def normalised() -> ClassifierTarget:
    """An undefended network with BatchNorm, for what looks at its statistics."""
    return copy.deepcopy(_trained(0, "convnet", (("norm", "batch"), ("width", 8))))


def residual() -> ClassifierTarget:
    """An undefended network with residual blocks, for attacks that need them."""
    return copy.deepcopy(_trained(0, "resnet20"))


def adaptive() -> ClassifierTarget:
    """An undefended network with exits, for what looks at sub-networks and at what is computed."""
    return classifier(0, "multi-exit-cnn")


def stream() -> Target:
    """A network that has learnt its classes in two tasks."""
    with context() as given:
        target: Target = plugins.make("defenses", {"kind": "wa", "model": "tiny-cnn", "tasks": 2, "epochs": 2}).fit(given)
    return target


def pipeline() -> PipelineTarget:
    """A network behind a stage without a gradient, which declares a surrogate."""
    return PipelineTarget(classifier(), (TransformSpec.model_validate({"kind": "bit-depth", "bits": 5}),))


def batch(target: Target, goals: bool = False) -> Batch:
    """The images to attack, with their logits; with ``goals``, each with the class to reach."""
    test = digits().test
    labels = torch.from_numpy(test.labels)
    wanted = (labels + 1) % digits().num_classes if goals else None
    return with_clean_logits(target, make_batch(test.unit(), labels, index=digits().test_index, goals=wanted))


def saved_and_loaded(target: BaseTarget, code: Iterable[Code | str] = ()) -> BaseTarget:
    """What comes back from the target's files; ``code`` is what its card may call."""
    with tempfile.TemporaryDirectory() as folder:
        save_target(target, Path(folder))
        return load_target(Path(folder), code)


@contextmanager
def left_alone(who: str, *modules: nn.Module) -> Iterator[None]:
    """``Broken`` when mode, flags, gradients, weights or buffers of a module changed, or a global generator was drawn from."""
    before = [_state(module) for module in modules]
    generators = _generators()
    yield
    for module, (values, flags) in zip(modules, before, strict=True):
        now, then = _state(module), values
        moved = [name for name, value in now[0].items() if not torch.equal(value, then[name])]
        if moved:
            raise Broken(f"{who} changed {listed(moved)} of the model", "work on a copy, or restore what you change")
        turned = [name for name, flag in now[1].items() if flag != flags[name]]
        if turned:
            raise Broken(
                f"{who} left {listed(turned)} changed (training mode, requires_grad or .grad)",
                "use robustkd.targets.frozen(target.module), and torch.autograd.grad instead of backward()",
            )
    if generators != _generators():
        raise Broken(f"{who} draws from a global random generator", "take random numbers from the one that it is given")


def _state(module: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, bool]]:
    values = {name: value.detach().clone() for name, value in module.state_dict().items()}
    flags: dict[str, bool] = {f"mode of {name or 'the network'}": child.training for name, child in module.named_modules()}
    for name, parameter in module.named_parameters():
        flags[f"requires_grad of {name}"] = parameter.requires_grad
        flags[f"grad of {name}"] = parameter.grad is None
    return values, flags


def _generators() -> tuple[bytes, bytes]:
    numbers: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numbers[1].tobytes() + bytes(str(numbers[2]), "ascii")
