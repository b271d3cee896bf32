"""Every attack of adversarial-library (pip install --no-deps adv-lib), as ``adv-lib:fmn`` and so on, with its steps and step sizes.

Its attacks are functions. They are run as they are; the norm of one that has several is the threat model's, or the parameter ``norm``.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.attacks.adapters.family import ORDER, PeerFamily, peer_package
from robustkd.attacks.adapters.signature import CHOSEN_NORM, derived_params, source_of
from robustkd.attacks.image.engine.minimum_norm.nearest import NormOfThreat
from robustkd.contracts import Batch, Goal, ThreatModel
from robustkd.contracts.attack import AttackKind
from robustkd.contracts.data import Inputs
from robustkd.contracts.threat import Norm

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Known:
    """What a function's signature does not say.

    Attributes:
        norms: those that it respects or minimises.
        norm: the argument that takes the norm, as a number; "" where it has one norm only.
        budget: the argument that takes eps; "" where it minimises its norm.
        goals: the goals that it can have.
        inputs: the shapes of input that it can take.
    """

    norms: tuple[Norm, ...]
    norm: str = ""
    budget: str = ""
    goals: tuple[Goal, ...] = ("untargeted", "targeted")
    inputs: Inputs = "any"

    @property
    def kind(self) -> AttackKind:
        """A fixed-budget attack takes a budget."""
        return "fixed-budget" if self.budget else "minimum-norm"


_UNTARGETED: tuple[Goal, ...] = ("untargeted",)
_KNOWN = {
    "alma": Known(("l2", "l1"), norm="distance"),
    "apgd": Known(("linf", "l2", "l1"), norm="norm", budget="eps"),
    "apgd_targeted": Known(("linf", "l2", "l1"), norm="norm", budget="eps", goals=_UNTARGETED),
    "carlini_wagner_l2": Known(("l2",)),
    "carlini_wagner_linf": Known(("linf",)),
    "ddn": Known(("l2",)),
    "df": Known(("l2", "linf"), norm="norm", goals=_UNTARGETED),
    "fab": Known(("linf", "l2", "l1"), norm="norm", goals=_UNTARGETED),
    "fga": Known(("l0",), inputs="images"),
    "fmn": Known(("linf", "l2", "l1", "l0"), norm="norm"),
    "pdgd": Known(("l2",)),
    "pdpgd": Known(("linf", "l2", "l1", "l0"), norm="norm"),
    "pgd_linf": Known(("linf",), budget="ε"),
    "sdf": Known(("l2",), goals=_UNTARGETED),
    "sigma_zero": Known(("l0",), goals=_UNTARGETED),
    "str_attack": Known(("l2",), inputs="images"),
    "tr": Known(("l2", "linf"), norm="p", goals=_UNTARGETED),
    "vfga": Known(("l0",), inputs="images"),
}
_GIVEN = ("model", "inputs", "labels", "targeted", "return_unsuccessful", "return_targets", "starting_points")


class AdversarialLibraryAttack(PeerAttack):
    """An attack of adversarial-library."""

    peer: Any
    known: ClassVar[Known]

    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Call the peer's function; its labels are the classes to reach where there are any."""
        given: dict[str, object] = self.params.model_dump(exclude={"norm"})
        if self.known.norm:
            norm = self.minimises(threat) if self.kind == "minimum-norm" else threat.norm
            given[self.known.norm] = norm if self.known.norm == "distance" else ORDER[norm]
        if self.known.budget:
            given[self.known.budget] = threat.eps
        if "targeted" in inspect.signature(self.peer).parameters:
            given["targeted"] = batch.goals is not None
        found: Tensor = self.peer(model, batch.inputs.clone(), batch.labels if batch.goals is None else batch.goals, **given)
        return found


class AdversarialLibraryFamily(PeerFamily):
    """The family ``adv-lib``."""

    name = "adv-lib"
    unusable: ClassVar[dict[str, str]] = {
        "perc_al": "it minimises a distance between colours (CIEDE2000), which is no norm of a threat model",
        "alma_prox": "it is for segmentation",
        "asma": "it is for segmentation",
        "dag": "it is for segmentation",
    }

    def members(self) -> list[str]:
        """The names of its functions on classifiers."""
        exported = vars(_attacks())
        return [name for name in _KNOWN if name in exported]

    @override
    def plugin(self, name: str) -> type[PeerAttack]:
        return _plugin(name)


@functools.cache
def _plugin(name: str) -> type[PeerAttack]:
    peer, known = getattr(_attacks(), name), _KNOWN[name]
    choice = bool(known.norm) and known.kind == "minimum-norm"
    bases: tuple[type[Any], ...] = (AdversarialLibraryAttack, NormOfThreat) if choice else (AdversarialLibraryAttack,)
    params = derived_params(peer, given=(*_GIVEN, known.norm, known.budget), more=CHOSEN_NORM if choice else {})
    return type(
        name,
        bases,
        {
            "__doc__": f"{name} of adversarial-library.",
            "__module__": __name__,
            "name": f"adv-lib:{name}",
            "peer": staticmethod(peer),
            "known": known,
            "Params": params,
            "kind": known.kind,
            "norms": known.norms,
            "goals": known.goals,
            "inputs": known.inputs,
            "version": f"1, adv-lib {version('adv-lib')}",
            "source": source_of(peer),
        },
    )


def _attacks() -> Any:
    # It imports visdom, for plots that nobody asks for here; visdom cannot be built everywhere.
    stand_in = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if stand_in:
        sys.modules["visdom"] = ModuleType("visdom")
    try:
        return peer_package("adv_lib.attacks", install="pip install --no-deps adv-lib tqdm")
    finally:
        if stand_in:
            del sys.modules["visdom"]


FAMILY = AdversarialLibraryFamily()
