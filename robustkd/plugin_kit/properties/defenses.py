"""What is asked of a defense."""

from __future__ import annotations

from robustkd.contracts import BaseTarget, Defense, FitContext, Target, ThreatModel, target_references
from robustkd.lazy import torch
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.properties.killed import resumed
from robustkd.plugin_kit.subject import Broken, NotApplicable, Subject, generators_at, listed, require
from robustkd.targets import fingerprint


def trains(subject: Subject) -> None:
    """It returns a target in evaluation mode, with a finite row of logits for each image."""
    target = _fitted(subject)
    if not isinstance(target, Target):
        raise Broken(f"fit returned a {type(target).__name__}", "return a robustkd Target")
    training = [name or "the network" for name, child in target.module.named_modules() if child.training]
    require(not training, f"{training[:1]} is in training mode", "target.module.eval() before it is returned")
    data = fixtures.digits()
    with torch.no_grad():
        logits = target(torch.from_numpy(data.test.unit()))
    wanted = (len(data.test), data.num_classes + target.rejects)
    require(tuple(logits.shape) == wanted, f"its logits have shape {tuple(logits.shape)}, not {wanted}", "one row an image")
    require(bool(torch.isfinite(logits).all()), "its logits are not finite", "lower the learning rate")


def deterministic(subject: Subject) -> None:
    """One seed gives the same weights, whatever else has drawn random numbers before."""
    marks = []
    for elsewhere in (1, 2):
        with generators_at(elsewhere):
            marks.append(fingerprint(_fitted(subject)))
    require(
        marks[0] == marks[1],
        "two trainings with one seed end in different weights",
        "build networks with fresh_network(context, ..), draw with batch.rng(..) or context.seed",
    )


def survives_a_kill(subject: Subject) -> None:
    """Killed after its first epoch and run again, it ends with the weights of a training that was never killed."""
    again = resumed(lambda: _defense(subject), _others, "no epochs")
    require(
        fingerprint(again) == fingerprint(_fitted(subject)),
        "taken up again it ends in other weights",
        "name what changes from step to step in the recipe's state; draw from batch.rng, not from a generator of your own",
    )


def saved_and_loaded(subject: Subject) -> None:
    """The trained target comes back from its files as the same function."""
    target = _fitted(subject)
    x = torch.from_numpy(fixtures.digits().test.unit())
    again = fixtures.saved_and_loaded(target, _defense(subject).code())
    assert isinstance(target, Target)
    assert isinstance(again, Target)
    with generators_at(0), torch.no_grad():
        before = target(x)
    with generators_at(0), torch.no_grad():
        after = again(x)
    require(
        torch.equal(before, after),
        "saved and loaded, it answers differently",
        "everything that the network computes with is a parameter, a buffer, or in the target's card",
    )


def leaves_others_alone(subject: Subject) -> None:
    """The targets that it is given (teachers, members) and the global random generators are left as they were."""
    defense = _defense(subject)
    others = _others(defense)
    with (
        fixtures.left_alone("it", *(other.module for other in others.values())),
        fixtures.context(targets=others) as context,
    ):
        defense.fit(context)


def says_what_it_looks_at(subject: Subject) -> None:
    """Without uses_threat no threat model changes its weights, and without uses_data it needs no training data."""
    defense = _defense(subject)
    if defense.uses_threat and defense.uses_data:
        raise NotApplicable("it looks at both")
    if not defense.uses_threat:
        other = fingerprint(_fitted(subject, threat=ThreatModel("l2", 1.5)))
        require(
            other == fingerprint(_fitted(subject)),
            "another threat model gives other weights",
            "set uses_threat = True, or its cells are not trained again when the threat model changes",
        )
    if not defense.uses_data:
        with fixtures.context(targets=_others(defense)) as context:
            without = FitContext(**{**vars(context), "train": None, "validation": None})
            defense.fit(without)


def has_what_it_declares(subject: Subject) -> None:
    """Its target has the capabilities that the defense names before it is trained."""
    defense = _defense(subject)
    others = {name: target.capabilities for name, target in _others(defense).items()}
    absent = defense.target_capabilities(others) - _fitted(subject).capabilities
    require(
        not absent,
        f"it names {listed(sorted(absent))} in target_capabilities, and its target does not have it",
        "name what the target's `capabilities` have",
    )


DEFENSE = (
    trains,
    has_what_it_declares,
    deterministic,
    survives_a_kill,
    saved_and_loaded,
    leaves_others_alone,
    says_what_it_looks_at,
)


def _defense(subject: Subject) -> Defense:
    defense: Defense = subject.make(fixtures.QUICK_TRAINING)
    return defense


def _others(defense: Defense) -> dict[str, Target]:
    return dict(fixtures.classifiers(target_references(defense.params)))


def _fitted(subject: Subject, threat: ThreatModel | None = None) -> BaseTarget:
    defense = _defense(subject)
    with fixtures.context(targets=_others(defense), threat=threat) as context:
        return defense.fit(context)
