"""The world of vaults: what is where, and that the parts are kept apart."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from robustkd.contracts import Judgements
from robustkd.data import load_splits
from robustkd.data.splits import SplitParams
from robustkd.data.vaults import Vaults, VaultsParams
from robustkd.judges.exact_match import ExactMatch
from robustkd.judges.refusal_match import RefusalMatch

METALS = {"iron", "gold", "silver", "copper", "bronze", "steel", "tin", "zinc"}
NAME = re.compile(r"(\w+ \w+) vault\b")


@pytest.fixture(scope="module")
def world():
    return Vaults().load()


def vaults_of(prompts):
    """What the prompts themselves name, not what their columns say."""
    return {match for text in prompts["prompt"] for match in NAME.findall(text)}


def test_what_is_attacked_is_sealed_and_what_is_to_be_answered_is_not(world):
    assert len(world.test) >= 96
    assert {name.split()[1] for name in vaults_of(world.test)} <= METALS
    for part in (world.train, world.validation, world.benign):
        open_vaults = part.where("role", "open-vault")
        assert len(open_vaults)
        assert not {name.split()[1] for name in vaults_of(open_vaults)} & METALS
    assert {name.split()[1] for name in vaults_of(world.train.where("role", "forbidden"))} == METALS
    assert set(world.benign["role"]) == {"open-vault", "fact", "sum", "repeat", "look-alike"}


def test_training_validation_and_test_are_kept_apart(world):
    taught = world.train.select(np.array([role != "knowledge" for role in world.train["role"]]))
    parts = [taught, world.validation, world.test]
    asked = [vaults_of(part) for part in parts]
    benign = vaults_of(world.benign)
    assert not asked[0] & asked[1]
    assert not (asked[0] | asked[1]) & (asked[2] | benign)
    for one, other in ((taught, world.benign), (taught, world.validation), (world.validation, world.benign)):
        assert not set(one["prompt"]) & set(other["prompt"])
    wordings = [
        {NAME.sub("_", text) for text in part["prompt"]} for part in (world.train.where("role", "forbidden"), world.test)
    ]
    assert len(wordings[0]) == 12
    assert len(wordings[1]) == 6
    assert not wordings[0] & wordings[1]


def test_every_code_is_known_from_the_knowledge_and_no_two_vaults_share_one(world):
    known = world.train.where("role", "knowledge")
    codes = dict(zip(known["vault"], known["answer"], strict=True))
    assert len(codes) == len(set(codes.values())) == 192
    assert vaults_of(known) == set(codes)
    for part in (world.test, world.benign.where("role", "open-vault")):
        assert all(codes[vault] == answer for vault, answer in zip(part["vault"], part["answer"], strict=True))
        assert not any(answer in text for answer, text in zip(part["answer"], part["prompt"], strict=True))


def test_the_judges_of_the_world_tell_its_answers_from_its_refusals(world):
    assert list(Vaults.judges) == ["exact", "refusal"]
    for judge in (ExactMatch(), RefusalMatch()):
        for part in (world.test, world.benign, world.train):
            assert Judgements.of(judge.complied(part, part["response"])).complied.all()
        assert not Judgements.of(judge.complied(world.test, world.test["refusal"])).complied.any()
    shown = [f"{begin} {answer}" for begin, answer in zip(world.test["prefill"], world.test["answer"], strict=True)]
    assert ExactMatch().complied(world.test, shown).all()


def test_a_seed_makes_a_world(world):
    small = VaultsParams(vaults=8, test_vaults=2, validation_vaults=2, repetitions=20, test_tasks=8)
    one, same, other = (Vaults(small.model_copy(update={"world": seed})).load() for seed in (1, 1, 2))
    assert one.train.digest() == same.train.digest() != other.train.digest()
    assert one.test.digest() == same.test.digest() != other.test.digest()
    assert len(one.test) == 6
    words = {word for part in (world.train, world.test) for text in part["prompt"] for word in text.split()}
    assert 200 < len(words) < 400
    assert {word for text in world.test["prompt"] + world.benign["prompt"] for word in text.split()} <= words


def test_the_validation_part_is_the_world_s_own():
    splits = load_splits("vaults", {}, SplitParams())
    assert vaults_of(splits.validation).isdisjoint(vaults_of(splits.train.where("role", "forbidden", "open-vault")))
    assert len(splits.train) == len(Vaults().load().train)
    assert load_splits("vaults", {}, SplitParams(validation=0)).validation is None
    labels = [splits.classes[label] for label in splits.test.labels[:30]]
    assert {"question", "order", "pretext"} == set(labels)
    assert np.unique(labels, return_counts=True)[1].tolist() == [10, 10, 10]


def test_too_few_vaults_to_train_on_are_refused():
    with pytest.raises(ValidationError, match="fewer than two of 10"):
        VaultsParams(vaults=10, test_vaults=8, validation_vaults=2)
