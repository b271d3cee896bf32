"""Cards: plain JSON with a typed form, from this release or another, from this package or another."""

from __future__ import annotations

import json

import pytest

from robustkd.contracts import Card, TargetError
from robustkd.targets import ClassifierTarget, EnsembleTarget, PipelineTarget, TransformSpec
from robustkd.targets.cards import target_from_card

WRITTEN_BEFORE = {
    "target": "pipeline",
    "transforms": [{"kind": "bit-depth", "bits": 4}],
    "base": {
        "target": "classifier",
        "origin": {"model": "tiny-cnn", "params": {"mean": None, "std": None, "width": 16}},
        "num_classes": 10,
        "input_shape": [1, 8, 8],
        "bounds": [0.0, 1.0],
    },
}
"""As robustkd wrote it when cards were dictionaries."""


def network() -> ClassifierTarget:
    return ClassifierTarget.from_model("tiny-cnn", {}, input_shape=(1, 8, 8), num_classes=10)


def test_a_card_of_a_former_release_loads_and_is_written_as_it_was() -> None:
    again = target_from_card(WRITTEN_BEFORE).card()
    assert json.dumps(again, sort_keys=True) == json.dumps(WRITTEN_BEFORE, sort_keys=True)


@pytest.mark.parametrize(
    "target", [network(), EnsembleTarget([network()] * 2), PipelineTarget(network(), [TransformSpec(kind="bit-depth", bits=4)])]
)
def test_a_card_comes_back_from_its_json(target: ClassifierTarget) -> None:
    card = json.loads(json.dumps(target.card()))
    assert target_from_card(card).card() == target.card()


def test_keys_of_others_are_kept() -> None:
    card = Card.read({"target": "theirs", "answers": ["yes", {"no": 1}]})
    assert card.to_json() == {"target": "theirs", "answers": ["yes", {"no": 1}]}


def test_a_card_of_a_later_release_is_refused() -> None:
    with pytest.raises(TargetError, match="version 2, this release knows 1"):
        target_from_card({**network().card(), "version": 2})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"num_classes": None}, "num_classes"), ({"origin": "os:system"}, "origin"), ({"origin": {}}, "neither a model nor code")],
)
def test_a_card_that_describes_nothing_is_one_sentence(change: dict[str, object], said: str) -> None:
    with pytest.raises(TargetError, match=said):
        target_from_card({**WRITTEN_BEFORE["base"], **change})


def test_code_in_a_card_does_not_run() -> None:
    with pytest.raises(TargetError, match="does not run because a file says so"):
        target_from_card({**WRITTEN_BEFORE["base"], "origin": {"code": "os:getcwd"}})
