"""What is noted about a cell: the keys on disk stay those of earlier versions, and what a later one adds does no harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.meta import AttackMeta, Built, ChecksMeta, TrainMeta, meta_from_json
from robustkd.campaigns.store.store import META, PERTURBATIONS, Store
from robustkd.contracts import StoreError

ID = "ab" + 30 * "0"
ATTACK = AttackMeta(defense="plain", seed=0, wall_seconds=1.5, identity={"threat": None}, attack="pgd", passes=[3, 2])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.prepare()
    with made.write(ID, ATTACK) as folder:
        (folder / PERTURBATIONS).write_bytes(b"images")
    return made


def test_the_keys_on_disk(store: Store) -> None:
    note = json.loads((store.path(ID) / META).read_text())
    expected = {"id": ID, "kind": "attack", "attack": "pgd", "analysis": None, "identity": {"threat": None}, "passes": [3, 2]}
    assert {key: note[key] for key in expected} == expected
    assert not {"benign", "seen", "not run", "built", "history"} & set(note)
    checks = ChecksMeta(defense="plain", seed=0, wall_seconds=1.0, seen=["pgd"], not_run=["landscape"]).to_json()
    assert (checks["not run"], checks["seen"], checks["attack"]) == (["landscape"], ["pgd"], None)


def test_a_note_with_less_and_one_with_more_are_read() -> None:
    least = {"kind": "checks", "defense": "plain", "seed": 0, "wall_seconds": 2, "files": {}, "id": ID}
    read = meta_from_json(least | {"said by a later version": 1})
    assert isinstance(read, ChecksMeta)
    assert (read.seen, read.not_run, read.targets, read.complete) == (None, None, {}, True)


def test_a_train_note_is_the_same_after_it_was_written() -> None:
    built = Built(fingerprint="f", files={"net.py": "0"})
    note = TrainMeta(
        defense="plain", seed=0, wall_seconds=1.0, fingerprint="f", history=[{"epoch": 1, "loss": 0.5}], built=built
    )
    assert meta_from_json(json.loads(json.dumps(note.to_json()))) == note
    assert type(meta_from_json(note.to_json()).to_json()["history"][0]["epoch"]) is int


def test_dropping_perturbations_keeps_what_a_later_version_noted(store: Store) -> None:
    file = store.path(ID) / META
    note = {key: value for key, value in json.loads(file.read_text()).items() if key != "seal"} | {"later": 1}
    file.write_text(json.dumps(note | {"seal": digest(note)}))
    store = Store(store.folder)
    assert store.drop_perturbations(ID) == len(b"images")
    assert json.loads(file.read_text())["later"] == 1
    assert store.verify(ID) is None


def test_the_note_of_another_kind_of_cell_is_a_clear_error(store: Store) -> None:
    entry = store.get(ID)
    assert entry is not None
    assert entry.noted(AttackMeta).attack == "pgd"
    with pytest.raises(StoreError, match="another kind of cell"):
        entry.noted(TrainMeta)
