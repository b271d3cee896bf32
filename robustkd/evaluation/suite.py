"""The platform's own attacks: what a number has to withstand before it is believed, and what goes on where one did not.

Each is a ``SuiteAttack``: an attack as in a campaign file, and the rule that says whether an evaluation has it already. They are of
different kinds, so that what misleads one does not mislead the next:

    margin-pgd            PGD on the logit margin, with restarts
    bpda                  gradients past whatever cuts or falsifies them, where the target has such operations
    distilled-surrogate   transfer from a student of the target's answers; no gradient
    square                random search; no gradient
    smoothed-pgd          gradients averaged over a neighbourhood, where those of neighbours disagree
    autoattack            AutoAttack, in the order that adapts to the target

Where the norm is l0, which some of them cannot respect, ``in_norm`` has others of their kind in their place. Under a threat model that
says how an image changes, they are two or three: ``rotate-pgd`` and ``rotate-grid``, ``stadv`` and ``flow-search``, ``recolor`` and
``colour-search``, ``lpa`` and ``perceptual-search``, and ``bpda`` around the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from robustkd import plugins
from robustkd.contracts import Arrays, Attack, AttackEvidence, BaseAttack, Batch, Target, ThreatModel
from robustkd.contracts.errors import out_of_memory
from robustkd.contracts.image_changes import ImageChange
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Space
from robustkd.lazy import torch
from robustkd.scoring.distances import random_offsets
from robustkd.targets.memory import in_memory

if TYPE_CHECKING:
    from torch import Tensor

Spec = Mapping[str, Any]
"""An attack as in a campaign file: its kind and parameters."""

PASSES = 80
"""The passes that a margin attack has to have spent on samples that it left standing: PGD of 20 steps with two starts."""
QUERIES = 1000
"""The queries that a random search has to have planned."""
AT_FIRST = 40
"""On how many samples a costly attack is tried first. Of a loss of 1 in 15 it sees nothing there in 6 of 100 cases."""
DRAWS = 10
"""The passes that make up one query of a target that draws random numbers."""
PASSES_OF_A_REMEDY = 20_000
"""The passes, forward and backward, that the attacks of a remedy may spend for each sample that it begins with, before the last begins."""
HIDDEN = 0.5
"""A gradient misleads where it breaks less than this share of the samples that were broken without it."""
_AGREE = 0.25
"""The mean cosine of gradients at neighbouring points, below which a gradient says nothing of its neighbourhood."""
_ADAPTIVE: Spec = {"kind": "autoattack", "version": "adaptive", "steps": 50, "queries": QUERIES, "thorough": False}
_SEARCHES = ("square", "sparse-rs", "patch-rs")
_NEIGHBOURS, _PROBED, _REACH = 4, 32, 0.25
_IN_L0: Mapping[str, Spec] = {
    "pgd": {"kind": "spgd"},
    "apgd-ce": {"kind": "spgd"},
    "apgd-dlr": {"kind": "spgd", "loss": "dlr"},
    "apgd-t": {"kind": "spgd", "loss": "margin"},
    "square": {"kind": "sparse-rs"},
}
"""What does in l0 what an attack does in the other norms."""


def in_norm(spec: Spec, threat: ThreatModel) -> Spec:
    """The attack itself, or where the norm is l0 the one of its kind that can respect it, with the parameters that both have.

    An attack without such a counterpart stays as it is, and is refused where it is used.
    """
    if threat.budget.stored[0] != "l0":
        return spec
    spec = {**spec, "attack": in_norm(spec["attack"], threat)} if "attack" in spec else spec
    if spec["kind"] not in _IN_L0:
        return spec
    other = _IN_L0[spec["kind"]]
    common = plugins.load("attacks", other["kind"]).Params.model_fields.keys() & spec.keys()
    return {**other, **{name: spec[name] for name in spec if name in common}}


@dataclass(frozen=True)
class SuiteAttack:
    """An attack of the platform's own.

    Attributes:
        name: what findings call it.
        spec: the attack.
        gradients: whether it follows the target's own gradient. What only others break, that gradient hides.
        covered: whether a finished attack makes it superfluous.
        at_first: on how many samples it is tried before it is run on all; None where it costs little.
    """

    name: str
    spec: Spec
    gradients: bool
    covered: Callable[[AttackEvidence], bool]
    at_first: int | None = None

    @classmethod
    def stronger(cls, spec: Spec) -> SuiteAttack:
        """An attack of the escalation, which nothing that an evaluation has makes superfluous."""
        return cls(str(spec["kind"]), spec, plugins.load("attacks", str(spec["kind"])).gradients, lambda evidence: False)

    def usable(self, target: Target, threat: ThreatModel) -> str | None:
        """Why it cannot be used on this target under this threat model; None when it can."""
        attack = self.make()
        if reason := attack.refusal(threat):
            return reason
        missing = attack.missing(target.capabilities)
        return f"needs {' and '.join(missing)}" if missing else None

    def make(self) -> Attack:
        """Make the attack from its kind and parameters."""
        attack: Attack = plugins.make("attacks", self.spec)
        return attack


@dataclass(frozen=True)
class TargetDiagnostics:
    """What a few forward and backward passes tell about a target. The suite is chosen by it.

    Attributes:
        draws: it draws random numbers.
        replaced: the operations in its forward pass that cut or falsify the gradient (``bpda`` with ``automatic``), sorted.
        agreement: the mean cosine between the gradients at points of a ball a quarter as wide as the budget; None without gradients
            or a norm.
        misleads: an attack without gradients has broken what one by gradients had left.
    """

    draws: bool
    replaced: tuple[str, ...]
    agreement: float | None
    misleads: bool = False

    @property
    def unreliable(self) -> bool:
        """Whether there is no gradient, or one that says nothing of its neighbourhood or leads astray."""
        return self.misleads or self.agreement is None or self.agreement < _AGREE

    @property
    def may_mask(self) -> bool:
        """Whether the target's own gradient may hide something from attacks that follow it."""
        return bool(self.replaced) or self.unreliable

    @classmethod
    def of(cls, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> TargetDiagnostics:
        """Look at the first samples of ``batch``: ``1 + 4`` forward and backward passes on 32 samples."""
        from robustkd.targets.automatic_surrogates import DifferentiableTarget  # late: it imports torch

        relaxed, replaced = DifferentiableTarget(target), set[str]()

        def cosines(rows: Tensor) -> Tensor | None:
            part = batch.select(rows)
            with torch.enable_grad():
                try:
                    relaxed(part.inputs.detach().requires_grad_())
                    replaced.update(relaxed.replaced)
                except Exception as error:  # a network that does not bear being computed in another way is attacked as it is
                    if out_of_memory(error):
                        raise
            return _cosines(target, part, threat, seed)

        rows = torch.arange(min(_PROBED, len(batch)), device=batch.inputs.device)
        parts = [part for part in in_memory(cosines, rows, _PROBED) if part is not None]
        agreement = float(torch.cat(parts, 1).mean()) if parts else None
        return cls(batch.draws is not None, tuple(sorted(replaced)), agreement)


def suite_attacks(diagnostics: TargetDiagnostics, threat: ThreatModel) -> list[SuiteAttack]:
    """The suite for a target with these diagnostics: cheap ones first, and those that need no gradient of the target before AutoAttack.

    Under a threat model that says how an image changes, the suite is of attacks of that space; where the attacker chooses a place, of
    attacks that do.
    """
    if isinstance(threat.budget, ImageChange):
        return _of_changes(diagnostics, threat.space)
    if places_patch(threat):
        patch: Spec = {"kind": "patch-pgd"}
        return [
            SuiteAttack("patch-pgd", _averaged(patch, diagnostics), True, lambda e: "patch-pgd" in _kinds(e.attack)),
            SuiteAttack("patch-rs", {"kind": "patch-rs", "queries": QUERIES}, False, _random_search, AT_FIRST),
        ]
    margin: Spec = {"kind": "pgd", "loss": "margin", "steps": 20, "restarts": 2}
    found = [SuiteAttack("margin-pgd", _averaged(margin, diagnostics), True, lambda e: _margin(e, diagnostics))]
    if diagnostics.replaced:
        past: Spec = {"kind": "bpda", "automatic": True, "attack": margin}
        found.append(SuiteAttack("bpda", _averaged(past, diagnostics), False, _automatic))
    student: Spec = {"kind": "distilled-surrogate", "queries": 0, "rounds": 1, "training_steps": 100}
    found.append(SuiteAttack("distilled-surrogate", student, False, lambda e: "distilled-surrogate" in _kinds(e.attack)))
    search: Spec = {"kind": "square", "queries": QUERIES, "give_up": True}
    found.append(SuiteAttack("square", search, False, _random_search, AT_FIRST))
    if diagnostics.agreement is not None and diagnostics.unreliable:
        found.append(
            SuiteAttack(
                "smoothed-pgd",
                _averaged({"kind": "smoothed-pgd", "neighbours": 16, "reach": 1.0}, diagnostics),
                True,
                lambda e: "smoothed-pgd" in _kinds(e.attack),
                AT_FIRST,
            )
        )
    if not diagnostics.draws:  # what ``rand`` takes, the attacks above have taken
        found.append(SuiteAttack("autoattack", _ADAPTIVE, True, _autoattack, AT_FIRST))
    return [replace(one, spec=in_norm(one.spec, threat)) for one in found]


def _changes(space: Space, effort: int = 1) -> tuple[Spec, Spec]:
    """The attacks of a space of ``ImageChange``: one that follows the gradient, and one that tries."""
    if space == "spatial":
        rotations, translations = (31, 5) if effort == 1 else (61, 7)
        grid: Spec = {"kind": "rotate-grid", "rotations": rotations, "translations": translations}
        return {"kind": "rotate-pgd", "steps": 20, "restarts": 5 * effort}, grid
    if space == "perceptual":  # each proposal costs passes for features too
        return {"kind": "lpa", "restarts": effort}, {"kind": "perceptual-search", "queries": QUERIES // 4 * effort}
    climb, search = {"flow": ("stadv", "flow-search"), "colour": ("recolor", "colour-search")}[space]
    climbed: Spec = {"kind": climb, "steps": 40 * effort, "restarts": 2 * effort, "random_start": True}
    return climbed, {"kind": search, "queries": QUERIES * effort, "give_up": effort == 1}


def _of_changes(diagnostics: TargetDiagnostics, space: Space) -> list[SuiteAttack]:
    climb, search = _changes(space)
    found = [SuiteAttack(climb["kind"], _averaged(climb, diagnostics), True, lambda e: _margin(e, diagnostics))]
    if diagnostics.replaced:
        past: Spec = {"kind": "bpda", "automatic": True, "attack": climb}
        found.append(SuiteAttack("bpda", _averaged(past, diagnostics), False, _automatic))
    found.append(SuiteAttack(search["kind"], search, False, lambda e: _tried(e, search), AT_FIRST))
    return found


def by_gradient(diagnostics: TargetDiagnostics, threat: ThreatModel) -> SuiteAttack:
    """The attack that tells whether the target's own gradient finds what was found without it."""
    if places_patch(threat):
        return SuiteAttack(
            "patch-pgd", _averaged({"kind": "patch-pgd", "places": 8}, diagnostics), True, lambda evidence: False
        )
    spec = _averaged({"kind": "apgd-t", "steps": 50, "targets": 3}, diagnostics)
    return SuiteAttack("apgd-t", in_norm(spec, threat), True, lambda evidence: False)


class StoppingRule:
    """Stop when an attack by gradients and one without, with none that succeeded between them, have broken no sample."""

    def __init__(self) -> None:
        self._in_vain: set[bool] = set()

    def note(self, gradients: bool, *, broke: bool) -> None:
        """Note an attack that was run, and whether it broke a sample."""
        self._in_vain = set() if broke else self._in_vain | {gradients}

    @property
    def reached(self) -> bool:
        """Whether both kinds were in vain."""
        return len(self._in_vain) == 2


def escalation(diagnostics: TargetDiagnostics, threat: ThreatModel) -> Iterator[Spec]:
    """Ever stronger attacks of different kinds, for what is left when one of the suite has broken something."""
    for spec in _escalation(diagnostics, threat):
        yield in_norm(spec, threat)


def _escalation(diagnostics: TargetDiagnostics, threat: ThreatModel) -> Iterator[Spec]:
    if places_patch(threat):
        for effort in (1, 4):
            yield _averaged({"kind": "patch-pgd", "places": 5 * effort, "steps": 50 * effort}, diagnostics)
            yield {"kind": "patch-rs", "queries": 2500 * effort}
        return
    if isinstance(threat.budget, ImageChange):
        for effort in (1, 4):
            climb, search = _changes(threat.space, effort)
            if diagnostics.replaced:
                yield _averaged({"kind": "bpda", "automatic": True, "attack": climb}, diagnostics)
            yield _averaged(climb, diagnostics)
            yield search
        return
    for effort in (1,) if diagnostics.draws else (1, 4):  # each pass of a target that draws is ten
        yield from _in_a_norm(diagnostics, threat, effort)


def _in_a_norm(diagnostics: TargetDiagnostics, threat: ThreatModel, effort: int) -> Iterator[Spec]:
    margin: Spec = {"kind": "pgd", "loss": "margin", "steps": 40 * effort, "restarts": 2 * effort}
    smoothed: Spec = {"kind": "smoothed-pgd", "neighbours": 16 * effort, "reach": 1.0 / effort}
    past = [margin, {"kind": "apgd-t", "steps": 50 * effort}, smoothed] if diagnostics.replaced else []
    around = [_averaged({"kind": "bpda", "automatic": True, "attack": spec}, diagnostics) for spec in past]
    yield from around[:1]
    if effort == 1 and not diagnostics.draws:  # early, so that no search ends without it
        yield _ADAPTIVE
    if diagnostics.unreliable:
        yield {"kind": "nes", "sigma": threat.eps / 2, "pairs": 25 * (1 + effort), "steps": 50}
    yield from around[1:]
    yield _averaged(margin, diagnostics)
    yield {"kind": "distilled-surrogate", "queries": 1000 * effort, "rounds": 2 + effort}
    if diagnostics.unreliable:
        yield _averaged(smoothed, diagnostics)
    yield {"kind": "square", "queries": 2500 * effort, "give_up": effort == 1}


def places_patch(threat: ThreatModel) -> bool:
    """Whether the attacker chooses where the patch lies."""
    return threat.where is not None and threat.where.placing == "chosen"


def images_of(batch: Batch) -> Arrays:
    """The images of a batch, as training data of an attack that learns from a target's answers and looks at no label."""
    from robustkd.evaluation.deferred import DeferredImages  # late: it imports torch

    if isinstance(batch.inputs, DeferredImages):
        return batch.inputs.data_set
    return Arrays(batch.inputs.detach().float().cpu().numpy(), batch.labels.cpu().numpy())


def _averaged(spec: Spec, diagnostics: TargetDiagnostics) -> Spec:
    return {"kind": "eot", "samples": DRAWS, "attack": spec} if diagnostics.draws else spec


def kinds(spec: Spec) -> tuple[str, ...]:
    """The kind of an attack and of those that it is wrapped around."""
    return (str(spec["kind"]), *(kinds(spec["attack"]) if "attack" in spec else ()))


def _inside(attack: BaseAttack | None) -> Iterator[BaseAttack]:
    """An attack, and what it is wrapped around."""
    while isinstance(attack, BaseAttack):
        yield attack
        attack = getattr(attack, "inner", None)


def _kinds(attack: BaseAttack | None) -> list[str]:
    return [each.name for each in _inside(attack)]


def _margin(evidence: AttackEvidence, diagnostics: TargetDiagnostics) -> bool:
    if _autoattack(evidence) and not diagnostics.draws:
        return True
    if evidence.kind != "fixed-budget" or evidence.loss_family != "margin" or not (evidence.gradients and evidence.iterative):
        return False
    return _spent(evidence) >= PASSES * (DRAWS if diagnostics.draws else 1) and (evidence.averages or not diagnostics.draws)


def _automatic(evidence: AttackEvidence) -> bool:
    return any(attack.name == "bpda" and attack.params.automatic for attack in _inside(evidence.attack))


def _random_search(evidence: AttackEvidence) -> bool:
    return _autoattack(evidence) or (
        any(a.name in _SEARCHES for a in _inside(evidence.attack))
        and all(a.params.queries >= QUERIES for a in _inside(evidence.attack) if a.name in _SEARCHES)
    )


def _tried(evidence: AttackEvidence, search: Spec) -> bool:
    """Whether an attack has searched by ``search``, or by a longer one of its kind."""
    params = next((each.params for each in _inside(evidence.attack) if each.name == search["kind"]), None)
    if params is None:
        return False
    if search["kind"] != "rotate-grid":
        return bool(params.queries >= search["queries"])
    return params.draws is None and params.rotations >= search["rotations"] and params.translations >= search["translations"]


def _autoattack(evidence: AttackEvidence) -> bool:
    return any(attack.name == "autoattack" and attack.params.version != "rand" for attack in _inside(evidence.attack))


def _spent(evidence: AttackEvidence) -> float:
    """The mean passes on samples that the attack left standing, on which it went to its end, also where that was known beforehand."""
    if (covered := evidence.covered) is None or not evidence.standing.any():
        return 0.0
    return float(covered[evidence.standing].mean())


def _cosines(target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Tensor | None:
    """(pairs, N): the cosines of the gradients at random points of each sample's ball; of vanishing gradients 0, None without any."""
    if "gradients" not in target.capabilities or isinstance(threat.budget, ImageChange):
        return None
    rng, gradients = SampleRng(seed, batch.index, "neighbours"), []
    for _ in range(_NEIGHBOURS):
        offsets = random_offsets(_REACH * threat.eps, batch.inputs.shape[1:], threat.norm, rng, batch.inputs.dtype)
        x = (batch.inputs + offsets).clamp(*target.bounds).requires_grad_()
        with torch.enable_grad():
            logits = target(x)
            if not logits.requires_grad:
                return None
            own = logits.gather(1, batch.labels.unsqueeze(1)).sum()
            others = logits.scatter(1, batch.labels.unsqueeze(1), -torch.inf).amax(1).sum()
            (gradient,) = torch.autograd.grad(own - others, x, allow_unused=True)
        if gradient is None:
            return None
        gradients.append(gradient.nan_to_num(0.0, 0.0, 0.0).flatten(1))
    unit = [torch.nn.functional.normalize(gradient.cpu().double(), dim=1) for gradient in gradients]
    pairs = [unit[i] * unit[j] for i in range(len(unit)) for j in range(i)]
    return torch.stack([pair.sum(1) for pair in pairs])
