"""Every attack of torchattacks, as ``torchattacks:PGD`` and so on, with the step sizes and counts of torchattacks.

torchattacks is imported when a member is asked for. It cannot be a plain requirement of robustkd (see ``setup.py``);
``robustkd doctor --fix`` installs it.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.attacks.adapters.family import PeerFamily, peer_package
from robustkd.attacks.adapters.signature import derived_params, source_of
from robustkd.contracts import AttackError, Batch, ThreatModel, Traits
from robustkd.contracts.threat import Norm
from robustkd.lazy import nn

if TYPE_CHECKING:
    from torch import Tensor

# What a constructor does not say. Without an entry, an attack is about linf.
_BOTH: tuple[Norm, ...] = ("linf", "l2")
_NORMS: dict[str, tuple[Norm, ...]] = {
    **dict.fromkeys(("APGD", "APGDT", "AutoAttack", "FAB", "Square"), _BOTH),
    **dict.fromkeys(("PGDL2", "PGDRSL2", "CW", "DeepFool", "EADEN"), ("l2",)),
    "EADL1": ("l1",),
    **dict.fromkeys(("SparseFool", "OnePixel", "Pixle", "JSMA"), ("l0",)),
}
_BUDGETS = ("eps", "max_epsilon", "pixels")  # the argument that is the budget; without any, it minimises its norm
_GIVEN = ("model", "norm", "n_classes", "seed", "verbose", *_BUDGETS)
_REAL = ("c", "kappa", "scale", "lam")
_BLACK_BOX = ("SPSA", "Square", "OnePixel", "Pixle")
_ONE_STEP = ("FGSM", "FFGSM")
_UNTARGETED_ONLY = ("FAB",)  # says that it can be targeted, and takes the labels that it is given for the true ones
_ONE_BY_ONE = ("DeepFool", "SparseFool", "OnePixel", "Pixle", "JSMA")
_NAMES_OF_NORMS = {"linf": "Linf", "l2": "L2"}


class TorchattacksAttack(PeerAttack):
    """An attack of torchattacks; the goals of a targeted threat model are handed over as its target labels."""

    peer: type[Any]

    @property
    def traits(self) -> Traits:
        """Its versions of EOT average over passes."""
        name = self.peer.__name__
        averages = name == "EOTPGD" or (name == "AutoAttack" and self.params.version == "rand")
        return replace(super().traits, averages=averages)

    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Build the peer for this threat model and call it."""
        target: Any = model.target
        if target.bounds != (0.0, 1.0):
            raise AttackError(f"{self.name} works on pixels in [0, 1], the target's are in {target.bounds}")
        known = {
            "norm": _NAMES_OF_NORMS.get(threat.norm),
            "n_classes": target.num_classes,
            "seed": seed,
            "pixels": int(threat.eps),
            "eps": threat.eps,
            "max_epsilon": threat.eps,
        }
        accepted = inspect.signature(self.peer.__init__).parameters
        attack = self.peer(model, **self.params.model_dump(), **{key: known[key] for key in known if key in accepted})
        goals = batch.goals
        if goals is None and self.peer.__name__ == "JSMA":
            # JSMA is targeted by nature; untargeted it takes the next class, and takes it for granted that there are ten.
            goals = (batch.labels + 1) % target.num_classes
        if goals is not None:
            attack.set_mode_targeted_by_label(quiet=True)
        found: Tensor = attack(batch.inputs, batch.labels if goals is None else goals)
        return found


class TorchattacksFamily(PeerFamily):
    """The family ``torchattacks``."""

    name = "torchattacks"
    unusable: ClassVar[dict[str, str]] = {
        "VANILA": "it returns its input",
        "GN": "it adds noise of a fixed size: it respects no budget and minimises no norm",
        "MultiAttack": "it is a wrapper around other attacks; list them one by one",
        "LGV": "it is a wrapper that trains surrogates on data of its own",
    }

    def members(self) -> list[str]:
        """The names of torchattacks' classes."""
        return [name for name in _torchattacks().__all__ if name not in self.unusable]

    @override
    def plugin(self, name: str) -> type[PeerAttack]:
        return _plugin(name)


@functools.cache
def _plugin(name: str) -> type[PeerAttack]:
    peer = getattr(_torchattacks(), name)
    arguments = inspect.signature(peer.__init__).parameters
    # The modes it supports are written down by its constructor only, which looks for the device of a weight.
    targeted = "targeted" in peer(nn.utils.skip_init(nn.Linear, 1, 1)).supported_mode and name not in _UNTARGETED_ONLY
    return type(
        name,
        (TorchattacksAttack,),
        {
            "__doc__": f"{name} of torchattacks.",
            "__module__": __name__,
            "name": f"torchattacks:{name}",
            "peer": peer,
            "Params": derived_params(peer, given=_GIVEN, real=_REAL),
            "kind": "fixed-budget" if any(budget in arguments for budget in _BUDGETS) else "minimum-norm",
            "norms": _NORMS.get(name, ("linf",)),
            "goals": ("untargeted", "targeted") if targeted else ("untargeted",),
            "gradients": name not in _BLACK_BOX,
            "iterative": name not in _ONE_STEP,
            "one_by_one": name in _ONE_BY_ONE,
            "version": f"1, torchattacks {_torchattacks().__version__}",
            "source": source_of(peer),
        },
    )


def _torchattacks() -> Any:
    return peer_package("torchattacks", install="robustkd doctor --fix")


FAMILY = TorchattacksFamily()
