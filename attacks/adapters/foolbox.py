"""Every attack of foolbox, as ``foolbox:LinfPGD`` and so on, with the step sizes and counts of foolbox."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import foolbox
from foolbox.attacks.base import AttackWithDistance, FixedEpsilonAttack, FlexibleDistanceMinimizationAttack
from foolbox.attacks.blended_noise import LinearSearchBlendedUniformNoiseAttack
from foolbox.attacks.saltandpepper import SaltAndPepperNoiseAttack
from foolbox.criteria import Misclassification, TargetedMisclassification
from foolbox.models.pytorch import PyTorchModel

from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.attacks.adapters.family import PeerFamily
from robustkd.attacks.adapters.signature import derived_params, source_of
from robustkd.contracts import Batch, PluginError, ThreatModel
from robustkd.contracts.threat import Norm

if TYPE_CHECKING:
    from torch import Tensor

# What foolbox's classes do not say of themselves, by parts of their names. HopSkipJump calls its distance l1 and minimises
# l2 (its other constraint is not offered, it would change the norm of the attack); Pointwise leaves its distance open.
_NORMS: dict[str, Norm] = {"HopSkipJumpAttack": "l2", "PointwiseAttack": "l0"}
_UNTARGETED_ONLY = ("FastGradientAttack", "DeepFool", "NewtonFool", "VirtualAdversarial")
_TARGETED_ONLY = ("GenAttack",)
_BLACK_BOX = ("Noise", "Contrast", "Inversion", "Blur", "Boundary", "HopSkipJump", "GenAttack", "Pointwise")
_ONE_STEP = ("FastGradientAttack", "Additive", "L2ContrastReduction", "Inversion")
_BLENDED = ("Boundary", "HopSkipJump", "BrendelBethge")

_LP: dict[float, Norm] = {0: "l0", 1: "l1", 2: "l2", float("inf"): "linf"}
_GIVEN = ("distance", "constraint", "init_attack", "channel_axis", "tensorboard", "update_stats_every_k")


class FoolboxAttack(PeerAttack):
    """An attack of foolbox.

    Walks along the decision boundary start from an adversarial input, which foolbox looks for in noise; it raises when
    one sample of a batch has none. Here such a sample has failed and the others go on.
    """

    peer: type[Any]
    start: Callable[[], Any] | None = None

    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Call the peer's ``run``; its ``__call__`` would add a verification that ours repeats."""
        target: Any = model.target
        viewed = PyTorchModel(model, bounds=target.bounds, device=batch.inputs.device)
        attack = self.peer(**self.params.model_dump())
        found: Tensor
        if self.kind == "fixed-budget":
            found = attack.run(viewed, batch.inputs, _criterion(batch), epsilon=threat.eps)
        elif self.start is None:
            found = attack.run(viewed, batch.inputs, _criterion(batch))
        else:
            found = batch.inputs.clone()
            starts = self.start().run(viewed, batch.inputs, _criterion(batch))
            begun = _criterion(batch)(starts, viewed(starts))
            if begun.any():
                some = batch.select(begun)
                with model.only(model.rows[begun.cpu()]):
                    found[begun] = attack.run(viewed, some.inputs, _criterion(some), starting_points=starts[begun])
        return found


def _criterion(batch: Batch) -> Any:
    if batch.goals is not None:
        return TargetedMisclassification(batch.goals)
    return Misclassification(batch.labels)


class FoolboxFamily(PeerFamily):
    """The family ``foolbox``."""

    name = "foolbox"
    unusable: ClassVar[dict[str, str]] = {
        "BinarizationRefinementAttack": "it refines the result of another attack",
        "DatasetAttack": "it needs a data set to pick its answers from",
        "SpatialAttack": "it rotates and shifts, which no norm bounds; rotate-grid does the same under a budget of rotations",
    }

    def members(self) -> list[str]:
        """The names of foolbox's attacks, its short ones included."""
        return sorted(
            name
            for name, kind in vars(foolbox.attacks).items()
            if isinstance(kind, type) and issubclass(kind, AttackWithDistance) and name not in self.unusable
        )

    def plugin(self, name: str) -> type[PeerAttack]:
        """See ``PeerFamily``; Brendel & Bethge's are refused without numba."""
        return _plugin(name)


@functools.cache
def _plugin(name: str) -> type[PeerAttack]:
    peer = getattr(foolbox.attacks, name)

    def is_of(parts: tuple[str, ...]) -> bool:
        return any(part in peer.__name__ for part in parts)

    if is_of(("BrendelBethge",)) and importlib.util.find_spec("numba") is None:
        raise PluginError(f"foolbox:{name} needs numba", fix="pip install numba")
    start: Callable[[], Any] | None = None
    if is_of(_BLENDED):
        start = functools.partial(LinearSearchBlendedUniformNoiseAttack, steps=50)
    elif is_of(("Pointwise",)):
        start = SaltAndPepperNoiseAttack
    excluded = {"targeted": _UNTARGETED_ONLY, "untargeted": _TARGETED_ONLY}
    return type(
        name,
        (FoolboxAttack,),
        {
            "__doc__": f"{peer.__name__} of foolbox.",
            "__module__": __name__,
            "name": f"foolbox:{name}",
            "peer": peer,
            "start": staticmethod(start) if start else None,
            "Params": derived_params(peer, given=_GIVEN),
            "kind": "fixed-budget" if issubclass(peer, FixedEpsilonAttack) else "minimum-norm",
            "norms": (_norm(peer),),
            "goals": tuple(goal for goal in ("untargeted", "targeted") if not is_of(excluded[goal])),
            "gradients": not is_of(_BLACK_BOX),
            "iterative": not is_of(_ONE_STEP),
            "version": f"1, foolbox {foolbox.__version__}",
            "source": source_of(peer),
        },
    )


def _norm(peer: type[Any]) -> Norm:
    if peer.__name__ in _NORMS:
        return _NORMS[peer.__name__]
    if issubclass(peer, FlexibleDistanceMinimizationAttack):
        return "l2"  # searches along one direction, where every norm grows together
    distance = peer.distance
    return _LP[(peer().distance if isinstance(distance, property) else distance).p]


FAMILY = FoolboxFamily()
