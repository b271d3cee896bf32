"""What is asked of condensers: each condenses a few digits, as a campaign does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import Arrays, Defense, SoftArrays, Target, ThreatModel, target_references
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.properties.killed import resumed
from robustkd.plugin_kit.subject import NotApplicable, Subject, generators_at, require
from robustkd.targets.condensed import CondensedTarget

QUICK = {"model": "tiny-cnn", "steps": 4, "images_per_class": 2, "student_steps": 2, "max_start": 1, "batch_size": 16}
"""Parameters that many condensers have, small."""


def makes_images(subject: Subject) -> None:
    """It makes fewer images than there are, of every class, in [0, 1] and with labels; distributions sum to 1."""
    arrays, train = _condensed(subject).arrays, fixtures.digits().train
    assert train is not None
    require(len(arrays) < len(train), f"it makes {len(arrays)} images of {len(train)}", "choose or make fewer")
    absent = set(np.unique(train.labels)) - set(np.unique(arrays.labels))
    require(not absent, f"of {len(absent)} classes there is no image", "condense each class")
    if isinstance(arrays, SoftArrays):
        sums = arrays.soft.sum(1)
        require(
            arrays.soft.shape == (len(arrays), fixtures.digits().num_classes) and bool(np.allclose(sums, 1, atol=1e-4)),
            "its distributions are no (N, K) rows of sum 1",
            "give softmax(logits)",
        )


def same_set(subject: Subject) -> None:
    """One seed gives the same set, whatever else has drawn random numbers before."""
    digests = []
    for elsewhere in (1, 2):
        with generators_at(elsewhere):
            digests.append(_condensed(subject).arrays.digest())
    require(digests[0] == digests[1], "from one seed come different sets", "draw from context.seed alone")


def stored_whole(subject: Subject) -> None:
    """Stored and loaded, the set is to the last bit what the condenser returned."""
    defense, target = _defense(subject), _condensed(subject)
    with fixtures.context(targets=_others(defense)) as context:
        returned: Arrays = defense.params.condenser.make().condense(context)
    again = fixtures.saved_and_loaded(target)
    assert isinstance(again, CondensedTarget)
    require(
        again.arrays.digest() == returned.digest(),
        "stored and loaded, the set differs",
        "images are uint8 or float32, and labels whole numbers",
    )


def condensing_survives_a_kill(subject: Subject) -> None:
    """Killed after its first report and run again, it ends with the set of a run that was never killed."""
    again = resumed(lambda: _defense(subject), _others, "nothing")
    assert isinstance(again, CondensedTarget)
    require(
        again.arrays.digest() == _condensed(subject).arrays.digest(),
        "taken up again it ends with another set",
        "keep what changes from step to step in context.checkpoints; draw from the seed and the step",
    )


def leaves_targets_alone(subject: Subject) -> None:
    """The targets that it is given and the training images are left as they were."""
    defense, train = _defense(subject), fixtures.digits().train
    assert train is not None
    others, before = _others(defense), train.digest()
    with fixtures.left_alone("it", *(other.module for other in others.values())):
        _fitted(defense, others)
    require(train.digest() == before, "it changed the training images", "work on a copy")


def says_whether_it_looks_at_the_threat(subject: Subject) -> None:
    """Without uses_threat no threat model changes its set."""
    if subject.plugin.uses_threat:
        raise NotApplicable("it looks at it")
    other = _condensed(subject, ThreatModel("l2", 1.5)).arrays.digest()
    require(
        other == _condensed(subject).arrays.digest(),
        "another threat model gives another set",
        "set uses_threat = True, or its cells are not made again when the threat model changes",
    )


CONDENSER = (
    makes_images,
    same_set,
    stored_whole,
    condensing_survives_a_kill,
    leaves_targets_alone,
    says_whether_it_looks_at_the_threat,
)


def _defense(subject: Subject) -> Defense:
    values = subject.values(_fitting(subject.plugin.Params.model_fields, QUICK))
    defense: Defense = plugins.make("defenses", {"kind": "condensed-data", "condenser": {"kind": subject.name, **values}})
    return defense


def _fitting(fields: Mapping[str, Any], quick: Mapping[str, Any]) -> dict[str, Any]:
    """``quick`` with what else must be small where a condenser trains experts or a network of its own."""
    more: dict[str, Any] = {}
    if "experts" in fields:
        more["experts"] = {"count": 1, "epochs": 3, "batch_size": 32, "lr": 0.05}
        more["model"] = "tiny-cnn"
    if "first_max_start" in fields:
        more["first_max_start"] = 0
    if "squeeze" in fields:
        more["squeeze"] = {"epochs": 1, "batch_size": 32, "model_params": {"norm": "batch", "width": 4}}
    return dict(quick) | more


def _others(defense: Defense) -> dict[str, Target]:
    """Of a condenser that looks at a network: one with BatchNorm, whose statistics it may want."""
    return {name: fixtures.normalised() for name in target_references(defense.params)}


def _fitted(defense: Defense, others: Mapping[str, Target], threat: ThreatModel | None = None) -> CondensedTarget:
    with fixtures.context(targets=others, threat=threat) as context:
        target = defense.fit(context)
    assert isinstance(target, CondensedTarget)
    return target


def _condensed(subject: Subject, threat: ThreatModel | None = None) -> CondensedTarget:
    defense = _defense(subject)
    return _fitted(defense, _others(defense), threat)
