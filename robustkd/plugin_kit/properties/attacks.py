"""What is asked of an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from robustkd.contracts import Attack, AttackResult, Batch, PixelBudget, RobustkdError, Target, ThreatModel, target_references
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Patch
from robustkd.contracts.threat import Goal, Norm
from robustkd.evaluation.images import evaluate_attack
from robustkd.evaluation.judging import judge
from robustkd.lazy import torch
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.subject import Broken, NotApplicable, Subject, generators_at, listed, require
from robustkd.scoring.distances import distance
from robustkd.targets import CountedTarget

TOLERANCE = 1e-4
"""Two batches of another size round differently; further apart than this two results are not one."""

_ROOM: dict[Norm, float] = {"linf": 0.4, "l2": 4.0, "l1": 30.0, "l0": 40.0}
"""A budget in which nothing undefended stands."""


def deterministic(subject: Subject) -> None:
    """One seed gives one result, whatever else has drawn random numbers before."""
    once = _once(subject)
    with generators_at(2):
        again = _run(once.attack, once.target, once.batch, once.threat)
    require(
        torch.equal(once.found.adversarial, again.adversarial),
        "two runs with one seed differ",
        "take random numbers from rng alone: rng.uniform(shape), ball.random_point(rng)",
    )


def each_sample_alone(subject: Subject) -> None:
    """A sample's result depends on no other sample of its batch: not on their number, not on their order."""
    once = _once(subject)
    attack, target, batch, threat, whole = once.attack, once.target, once.batch, once.threat, once.found
    rows = torch.arange(len(batch))
    for what, split in (("in another order", [rows.flip(0)]), ("in parts", [rows[:1], rows[1:4], rows[4:]])):
        for part in split:
            found = _run(attack, target, batch.select(part), threat)
            away = (found.adversarial - whole.adversarial[part]).abs().flatten(1).amax(1)
            moved = [str(int(batch.index[row])) for row, far in zip(part.tolist(), away, strict=True) if far > TOLERANCE]
            require(
                not moved,
                f"run {what}, samples {listed(moved)} end elsewhere (by up to {float(away.max()):.2g})",
                "sum, stop or schedule nothing over the batch; draw from rng, which has a stream for each sample",
            )
            require(
                bool((found.success == whole.success[part]).all()),
                f"run {what}, it claims other successes",
                "decide the success of each sample by its own logits",
            )


def threat_model(subject: Subject) -> None:
    """Every result is inside the budget and the pixel range, in each norm and goal that it takes; others are refused."""
    attack, target = _ready(subject)
    traits = attack.traits
    for goal in traits.goals:
        for norm in traits.norms:
            threat = _threat(attack, norm, goal=goal)
            if attack.refusal(threat) is not None:  # what it wraps, say, cannot
                continue
            batch = fixtures.batch(target, goal == "targeted")
            evaluate_attack(target, attack, batch, threat, fit_data=fixtures.digits().train)
    for placing in traits.regions:
        where = Patch(3, "random" if placing == "given" else "worst")
        threat = attack.threat_for(
            ThreatModel(traits.norms[0], fixtures.EPS[traits.norms[0]], goal=traits.goals[0], where=where)
        )
        if attack.refusal(threat) is None:
            batch = fixtures.batch(target, threat.goal == "targeted")
            evaluate_attack(target, attack, batch, threat, fit_data=fixtures.digits().train)
    for norm, eps in fixtures.EPS.items():
        if traits.kind == "fixed-budget" and norm not in traits.norms:
            require(
                attack.refusal(ThreatModel(norm, eps)) is not None,
                f"it does not name {norm} among its norms, and does not refuse it either",
                "leave refusal() as it is, or call super().refusal(threat) first",
            )


def honest(subject: Subject) -> None:
    """What it holds for adversarial is so, and what it returns for the rest are images and no zeros."""
    once = _once(subject)
    batch, found = once.batch, once.found
    seen = judge(once.target, once.attack, batch, once.threat, found)
    reached = seen.after != seen.label
    wrong = found.success.cpu().numpy() & ~reached
    require(
        not wrong.any(),
        f"it claims {int(wrong.sum())} successes on inputs that the model classifies rightly",
        "judge success by the logits at the input that is returned",
    )
    empty = (found.adversarial.flatten(1) == 0).all(1) & (batch.inputs.flatten(1) != 0).any(1)
    require(not bool(empty.any()), "it returns black images where it fails", "return the best try, or the clean image")


def counts_passes(subject: Subject) -> None:
    """The passes that it reports are those that the model made."""
    attack, target = _ready(subject)
    if target_references(attack.params):
        raise NotApplicable("most of its passes are made on other models")
    counted, batch, threat = CountedTarget(target), fixtures.batch(target), _threat(attack)
    found = _fitted(attack, target, threat).run(counted, batch, threat, SampleRng(0, batch.index))
    if not counted.forwards and int(found.forwards.sum()):
        raise NotApplicable("it asks the parts of its target, whose passes are not seen from outside")
    for what, told, made in (
        ("forward", int(found.forwards.sum()), counted.forwards),
        ("backward", int(found.backwards.sum()), counted.backwards),
    ):
        require(
            told == made,
            f"it reports {told} {what} passes, the model made {made}",
            "ask the model through an Oracle (maximize and fixed_budget do), which counts",
        )
    require(
        attack.traits.gradients or counted.backwards == 0,
        "it says that it uses no gradients, and made backward passes",
        "set gradients = True",
    )


def leaves_no_trace(subject: Subject) -> None:
    """The model, the images and the global random generators are left as they were."""
    if (trace := _once(subject).trace) is not None:
        raise trace


def effective(subject: Subject) -> None:
    """With a budget that leaves room for it, it breaks some images of an undefended network."""
    attack, target = _ready(subject)
    norm = attack.traits.norms[0]
    batch = fixtures.batch(target, "untargeted" not in attack.traits.goals)
    threat = _threat(attack, norm, _ROOM[norm] / fixtures.EPS[norm], attack.traits.goals[0])
    found = evaluate_attack(target, attack, batch, threat, fit_data=fixtures.digits().train)
    require(
        bool(found.outcome.success.any()),
        f"at {threat} it breaks none of {len(batch)} images",
        "look for a wrong sign, a wrong unit of eps (pixels are in [0, 1]), or too few steps",
    )


def nothing_from_nothing(subject: Subject) -> None:
    """At a budget of zero it changes nothing."""
    attack, target = _ready(subject)
    norm = attack.traits.norms[0]
    threat = _threat(attack, norm, 0.0)
    if attack.traits.kind == "minimum-norm" or threat.eps:
        raise NotApplicable("it has no budget")
    batch = fixtures.batch(target)
    found = _run(attack, target, batch, threat)
    far = float(distance(found.adversarial - batch.inputs, norm).max())
    require(far <= 1e-6, f"it moves images by {far:.2g} at eps 0", "project onto the eps ball after each step")


ATTACK = (
    threat_model,
    honest,
    deterministic,
    each_sample_alone,
    leaves_no_trace,
    counts_passes,
    effective,
    nothing_from_nothing,
)


@dataclass(frozen=True)
class _Once:
    """One run, and the trace that it left."""

    attack: Attack
    target: Target
    batch: Batch
    threat: ThreatModel
    found: AttackResult
    trace: Broken | None


def _once(subject: Subject) -> _Once:
    """What it does at an ordinary budget; several properties look at it."""
    if "once" not in subject.memo:
        attack, target = _ready(subject)
        batch, threat = fixtures.batch(target), _threat(attack)
        inputs, trace = batch.inputs.clone(), None
        others = [other.module for other in attack.targets.values()]
        with generators_at(1):
            try:
                with fixtures.left_alone("it", target.module, *others):
                    found = _run(attack, target, batch, threat)
            except Broken as error:
                trace = error
        if not torch.equal(inputs, batch.inputs):
            trace = Broken("it writes into the images that it is given", "work on a copy")
        subject.memo["once"] = _Once(attack, target, batch, threat, found, trace)
    once: _Once = subject.memo["once"]
    return once


def _ready(subject: Subject) -> tuple[Attack, Target]:
    """The attack, fitted where it learns, and the first of several targets that it can be used on."""
    attack: Attack = subject.make()
    attack = attack.with_targets(fixtures.classifiers(target_references(attack.params)))
    refused: RobustkdError | None = None
    for make in _TARGETS:
        target = make()
        try:
            attack.require(target)
            _run(attack, target, fixtures.batch(target).select(torch.arange(1)), _threat(attack))
        except RobustkdError as error:
            refused = refused or error
        else:
            return attack, make()  # a fresh one: the trial may have left its trace
    assert refused is not None
    raise Broken(f"it cannot be used on an undefended network: {refused.message}", refused.fix or "see its parameters")


_TARGETS: tuple[Callable[[], Target], ...] = (fixtures.classifier, fixtures.ensemble, fixtures.pipeline, fixtures.residual)


def _threat(attack: Attack, norm: Norm | None = None, times: float = 1.0, goal: Goal = "untargeted") -> ThreatModel:
    """A threat model for it, of so many times the fixtures' budget: in pixels, by default in its first norm, or of its own space.

    It has a patch where the attack cannot do without.
    """
    norm = norm or attack.traits.norms[0]
    budget = fixtures.CHANGES.get(attack.traits.space) or PixelBudget(norm, fixtures.EPS[norm])
    threat = ThreatModel(budget=replace(budget, eps=times * budget.eps), goal=goal)
    if "chosen" in attack.traits.regions and attack.refusal(threat):
        threat = ThreatModel(norm, threat.eps, goal=goal, where=Patch(3))
    return attack.threat_for(threat)


def _fitted(attack: Attack, target: Target, threat: ThreatModel) -> Attack:
    """The attack; one that learns, fitted."""
    train = fixtures.digits().train
    if not attack.traits.learns or train is None:
        return attack
    return attack.fit(target, train, threat, SampleRng(0, torch.arange(len(train)), "fit"))


def _run(attack: Attack, target: Target, batch: Batch, threat: ThreatModel) -> AttackResult:
    return _fitted(attack, target, threat).run(target, batch, threat, SampleRng(0, batch.index))
