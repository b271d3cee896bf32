"""Every attack of the Adversarial Robustness Toolbox on classifiers, as ``art:HopSkipJump`` and so on, with its counts of steps.

pip install adversarial-robustness-toolbox. Its step of 0.1 belongs to its budget of 0.3: where ``eps_step`` is not given, it is the same
share of the budget that is attacked.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.attacks.adapters.family import ORDER, PeerFamily, peer_package
from robustkd.attacks.adapters.signature import CHOSEN_NORM, derived_params, source_of
from robustkd.attacks.image.engine.minimum_norm.nearest import NormOfThreat
from robustkd.contracts import Batch, Goal, PluginError, ThreatModel
from robustkd.contracts.data import Inputs
from robustkd.contracts.threat import Norm
from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What a class does not say of itself.

    Attributes:
        norms: those that it respects or minimises.
        budget: the argument that takes eps; "" where it minimises its norm.
        goals: the goals that it can have.
        gradients: whether it differentiates the model.
        iterative: whether it takes more than one step.
        inputs: the shapes of input that it can take.
        probabilities: whether it wants probabilities instead of logits.
        one_by_one: whether it goes through a batch sample by sample.
        aims: whether the labels that it takes are always classes to reach; without any it chooses some.
        needs: another package that it imports.
    """

    norms: tuple[Norm, ...]
    budget: str = ""
    goals: tuple[Goal, ...] = ("untargeted", "targeted")
    gradients: bool = True
    iterative: bool = True
    inputs: Inputs = "any"
    probabilities: bool = False
    one_by_one: bool = False
    aims: bool = False
    needs: str = ""


_UNTARGETED: tuple[Goal, ...] = ("untargeted",)
_THREE: tuple[Norm, ...] = ("linf", "l2", "l1")
_GRADIENT = Known(_THREE, "eps")
_KNOWN = {
    "AutoAttack": Known(("linf", "l2"), "eps", _UNTARGETED, inputs="images", needs="multiprocess"),
    **dict.fromkeys(
        (
            "AutoConjugateGradient",
            "AutoProjectedGradientDescent",
            "MomentumIterativeMethod",
            "ProjectedGradientDescent",
            "ProjectedGradientDescentNumpy",
            "ProjectedGradientDescentPyTorch",
            "RescalingAutoConjugateGradient",
        ),
        _GRADIENT,
    ),
    "BasicIterativeMethod": Known(("linf",), "eps"),
    "BoundaryAttack": Known(("l2",), gradients=False, one_by_one=True),
    "CarliniL0Method": Known(("l0",)),
    "CarliniL2Method": Known(("l2",)),
    "CarliniLInfMethod": Known(("linf",)),
    "DeepFool": Known(("l2",), goals=_UNTARGETED),
    "ElasticNet": Known(("l1",)),
    "FastGradientMethod": Known(_THREE, "eps", iterative=False),
    "HopSkipJump": Known(("l2", "linf"), gradients=False, one_by_one=True),
    "NewtonFool": Known(("l2",), goals=_UNTARGETED, probabilities=True),
    "PixelAttack": Known(("l0",), "th", gradients=False, inputs="images", one_by_one=True, needs="cma"),
    "SaliencyMapMethod": Known(("l0",), aims=True),
    "SignOPTAttack": Known(("l2",), goals=_UNTARGETED, gradients=False, one_by_one=True),
    "SimBA": Known(("l2",), gradients=False, inputs="images", probabilities=True, one_by_one=True),
    "SquareAttack": Known(("linf", "l2"), "eps", _UNTARGETED, gradients=False, inputs="images"),
    "ThresholdAttack": Known(("linf",), "th", gradients=False, inputs="images", one_by_one=True, needs="cma"),
    "VirtualAdversarialMethod": Known(("l2",), "eps", _UNTARGETED, gradients=False, probabilities=True),
    "ZooAttack": Known(("l2",), gradients=False, inputs="images"),
}
_PATCH = "it puts a patch or a sticker on the image, and no distance between pixels bounds that"
_SOUND = "it is for speech recognition"
_BOXES = "it is for object detection"
_TENSORFLOW = "it is for TensorFlow"
_WHOLE = "it makes one perturbation for all samples of a batch; use 'universal'"
_UNUSABLE = {
    **dict.fromkeys(
        (
            "AdversarialPatch",
            "AdversarialPatchNumpy",
            "AdversarialPatchPyTorch",
            "GRAPHITEBlackbox",
            "GRAPHITEWhiteboxPyTorch",
            "LaserAttack",
        ),
        _PATCH,
    ),
    **dict.fromkeys(("CarliniWagnerASR", "ImperceptibleASR", "ImperceptibleASRPyTorch"), _SOUND),
    **dict.fromkeys(("DPatch", "RobustDPatch", "OverloadPyTorch", "SNAL"), _BOXES),
    **dict.fromkeys(
        (
            "AdversarialPatchTensorFlowV2",
            "FeatureAdversariesTensorFlowV2",
            "MalwareGDTensorFlow",
            "ProjectedGradientDescentTensorFlowV2",
        ),
        _TENSORFLOW,
    ),
    **dict.fromkeys(("UniversalPerturbation", "TargetedUniversalPerturbation"), _WHOLE),
    **dict.fromkeys(
        ("FeatureAdversariesNumpy", "FeatureAdversariesPyTorch"),
        "it needs other images, whose features it imitates, and a layer",
    ),
    **dict.fromkeys(("AdversarialTexturePyTorch", "OverTheAirFlickeringPyTorch"), "it is for video"),
    "BrendelBethgeAttack": "it asserts that each sample finds a start, and fails for all where one finds none; use foolbox's",
    "CompositeAdversarialAttackPyTorch": "it changes hue, brightness and angle, which no distance between pixels bounds",
    "DecisionTreeAttack": "it is for scikit-learn's decision trees",
    "FrameSaliencyAttack": "it is a wrapper around another attack, for video",
    "GeoDA": "it calls numpy.mat, which NumPy 2 does not have",
    "HighConfidenceLowUncertainty": "it is for GPy's Gaussian processes",
    "LowProFool": "it needs the importance of each column of a table",
    "ShadowAttack": "it bounds total variation and colour, which are no norms of a threat model",
    "SpatialTransformation": "it rotates and shifts, and no distance between pixels bounds that",
    "Wasserstein": "its budget is a Wasserstein distance, which is no norm of a threat model",
}
_GIVEN = (
    "estimator",
    "classifier",
    "norm",
    "eps",
    "th",
    "targeted",
    "batch_size",
    "verbose",
    "verbose_es",
    "summary_writer",
    "parallel_pool_size",
    "eps_step",
)
_LARGEST = 255
"""ART's ``th`` is written in steps of 1/255."""


class ARTAttack(PeerAttack):
    """An attack of the Adversarial Robustness Toolbox."""

    peer: ClassVar[type[Any]]
    known: ClassVar[Known]

    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Build the peer for this threat model; its labels are the classes to reach where there are any."""
        target: Any = model.target
        classifier = peer_package("art.estimators.classification", install=_INSTALL).PyTorchClassifier(
            model=nn.Sequential(model, nn.Softmax(1)) if self.known.probabilities else model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(batch.inputs.shape[1:]),
            nb_classes=target.num_classes,
            clip_values=tuple(target.bounds),
            device_type="gpu" if batch.inputs.is_cuda else "cpu",
        )
        given = self.params.model_dump(exclude={"norm", "eps_step"}) | self._asked(threat, batch)
        labels = nn.functional.one_hot(batch.labels if batch.goals is None else batch.goals, target.num_classes)
        y = None if self.known.aims and batch.goals is None else labels.float().cpu().numpy()
        with _seeded_generators():
            found = self.peer(classifier, **given).generate(x=batch.inputs.detach().float().cpu().numpy(), y=y)
        return torch.as_tensor(found).to(batch.inputs)

    def _asked(self, threat: ThreatModel, batch: Batch) -> dict[str, object]:
        """The arguments that the threat model and the batch give."""
        arguments = inspect.signature(self.peer).parameters
        norm = self.minimises(threat) if self.kind == "minimum-norm" else threat.norm
        offered: dict[str, object] = {
            "norm": ORDER[norm],
            "targeted": batch.goals is not None,
            "batch_size": len(batch),
            "verbose": False,
            "summary_writer": False,
        }
        if self.known.budget == "th":
            offered["th"] = max(1, round(threat.eps if norm == "l0" else threat.eps * _LARGEST))
        elif self.known.budget:
            offered["eps"] = threat.eps
            if "eps_step" in arguments:
                own = self.params.eps_step
                share = arguments["eps_step"].default / arguments["eps"].default
                offered["eps_step"] = threat.eps * share if own is None else own
        return {name: value for name, value in offered.items() if name in arguments}


@contextmanager
def _seeded_generators() -> Iterator[None]:
    """Until the end of the block, a generator that is made without a seed takes one from the global generator, which is seeded."""
    fresh = np.random.RandomState

    def made(seed: int | None = None) -> np.random.RandomState:
        return fresh(np.random.randint(2**31) if seed is None else seed)

    np.random.RandomState = made  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        np.random.RandomState = fresh  # type: ignore[misc]


class ARTFamily(PeerFamily):
    """The family ``art``."""

    name = "art"
    unusable: ClassVar[Mapping[str, str]] = _UNUSABLE

    def members(self) -> list[str]:
        """The names of its attacks on classifiers of numbers, those of packages that are missing included."""
        _evasion()
        return sorted(_KNOWN)

    def plugin(self, name: str) -> type[PeerAttack]:
        """See ``PeerFamily``; what needs another package is refused without it."""
        return _plugin(name)


@functools.cache
def _plugin(name: str) -> type[PeerAttack]:
    known, module = _KNOWN[name], _evasion()
    if known.needs and importlib.util.find_spec(known.needs) is None:
        raise PluginError(f"art:{name} needs {known.needs}", fix=f"pip install {known.needs}")
    peer = getattr(module, name)
    arguments = inspect.signature(peer).parameters
    more: dict[str, Any] = {}
    bases: tuple[type[Any], ...] = (ARTAttack,)
    if "eps_step" in arguments:
        share = arguments["eps_step"].default / arguments["eps"].default
        text = f"size of a step; default {share:.3g} of eps, ART's own proportion"
        more["eps_step"] = (float | None, Field(None, gt=0, description=text))
    if not known.budget and len(known.norms) > 1:
        more |= CHOSEN_NORM
        bases = (ARTAttack, NormOfThreat)
    return type(
        name,
        bases,
        {
            "__doc__": f"{name} of the Adversarial Robustness Toolbox.",
            "__module__": __name__,
            "name": f"art:{name}",
            "peer": peer,
            "known": known,
            "Params": derived_params(peer, given=_GIVEN, more=more),
            "kind": "fixed-budget" if known.budget else "minimum-norm",
            "norms": known.norms,
            "goals": known.goals,
            "gradients": known.gradients,
            "iterative": known.iterative,
            "inputs": known.inputs,
            "one_by_one": known.one_by_one,
            "version": f"1, art {version('adversarial-robustness-toolbox')}",
            "source": source_of(peer),
        },
    )


_INSTALL = "pip install adversarial-robustness-toolbox"


def _evasion() -> Any:
    return peer_package("art.attacks.evasion", install=_INSTALL)


FAMILY = ARTFamily()
