"""The store: a cell is there whole or not at all, whoever writes, dies or runs out of space meanwhile."""

import json
import multiprocessing
import os
import resource
import signal
import socket
from pathlib import Path

import pytest

from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.store import META, PERTURBATIONS, Store
from robustkd.contracts import StoreError

ID = "ab" + 30 * "0"
NOTE = AttackMeta(defense="plain", seed=0, wall_seconds=1.5)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    made.prepare()
    return made


def put(store, cell_id=ID, content=b"numbers", targets=None):
    note = AttackMeta(defense="plain", seed=0, wall_seconds=1.5, targets=targets or {})
    with store.write(cell_id, note) as folder:
        (folder / "samples.parquet").write_bytes(content)
        (folder / PERTURBATIONS).write_bytes(b"images")


def leftovers(folder):
    return [path for path in folder.rglob("*") if ".incoming/" in str(path) or (path.name[0] == "." and path.is_file())]


def test_a_cell_appears_when_the_block_ends_and_not_when_it_fails(store):
    with pytest.raises(ZeroDivisionError), store.write(ID, NOTE) as folder:  # noqa: PT012 (the second statement is the test's)
        (folder / "samples.parquet").write_bytes(b"half")
        raise ZeroDivisionError
    assert store.get(ID) is None
    put(store)
    entry = store.get(ID)
    assert entry.read("samples.parquet") == b"numbers"
    assert store.size(ID)[1] == len(b"images")
    assert store.ids() == [ID]
    assert store.verify(ID) is None
    assert not leftovers(store.folder)


def _writer(folder, number, rounds):
    store = Store(folder)
    for _ in range(rounds):
        put(store, content=b"numbers")
    os._exit(0 if number >= 0 else 1)


def test_processes_that_write_one_cell_at_once_do_no_harm(store):
    put(store)
    writers = [FORK.Process(target=_writer, args=(store.folder, number, 25)) for number in range(4)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        assert Store(store.folder).get(ID) is not None  # never missing in between
        seen += 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert seen
    assert Store(store.folder).verify(ID) is None
    assert not leftovers(store.folder)


def test_processes_that_replace_a_damaged_cell_at_once_agree(store):
    for _ in range(5):
        put(store)
        (store.path(ID) / "samples.parquet").write_bytes(b"garbage")
        writers = [FORK.Process(target=_writer, args=(store.folder, number, 1)) for number in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
        assert Store(store.folder).verify(ID) is None
        assert not leftovers(store.folder)


def test_a_cell_made_from_other_targets_is_replaced(store):
    put(store, targets={"t": "old"})
    put(store, content=b"new", targets={"t": "new"})
    assert store.get(ID).read("samples.parquet") == b"new"


def test_every_flipped_byte_is_noticed_and_named(store):
    put(store)
    folder = store.path(ID)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), 7 if file.name == META else 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
            fresh = Store(store.folder)
            assert (fresh.get(ID) is None) == (file.name != PERTURBATIONS)
            assert file.name in fresh.verify(ID), place
            assert file.name in fresh.damaged[ID]
        file.write_bytes(whole)
    assert Store(store.folder).verify(ID) is None
    entry = store.get(ID)
    (folder / PERTURBATIONS).write_bytes(b"other")
    with pytest.raises(StoreError, match=f"{PERTURBATIONS} is damaged"):
        entry.read(PERTURBATIONS)


def _stopped_inside(folder, started):
    with Store(folder).write(ID, NOTE) as draft:
        (draft / "samples.parquet").write_bytes(b"half")
        started.set()
        signal.pause()


def test_what_a_dead_process_left_is_swept_and_a_living_one_is_not_disturbed(store):
    started = FORK.Event()
    writer = FORK.Process(target=_stopped_inside, args=(store.folder, started))
    writer.start()
    assert started.wait(10)
    (store.folder / ".results.json.0123abcd").write_text("half")
    store.prepare()
    assert len(list((store.folder / ".incoming").iterdir())) == 1
    writer.kill()
    writer.join()
    store.prepare()
    assert not leftovers(store.folder)


def _drive(folder, held, done):
    with Store(folder).exclusive_lock():
        held.set()
        done.wait(10)


def test_the_second_driver_is_told_who_holds_the_folder(store):
    held, done = FORK.Event(), FORK.Event()
    driver = FORK.Process(target=_drive, args=(store.folder, held, done))
    driver.start()
    assert held.wait(10)
    for _ in range(2):  # being refused leaves the holder's name as it is
        with pytest.raises(StoreError, match=f"process {driver.pid} on {socket.gethostname()}, since"), store.exclusive_lock():
            pass
    driver.kill()  # the lock goes with the process
    driver.join()
    with (
        store.exclusive_lock(),
        pytest.raises(StoreError, match=f"process {os.getpid()} on"),
        Store(store.folder).exclusive_lock(),
    ):
        pass
    with store.exclusive_lock():
        pass


def test_dropped_perturbations_leave_the_numbers(store):
    put(store)
    assert store.drop_perturbations(ID) == len(b"images")
    assert store.drop_perturbations(ID) == 0
    entry = store.get(ID)
    assert entry.read("samples.parquet") == b"numbers"
    assert not entry.has(PERTURBATIONS)
    assert store.verify(ID) is None
    store.remove(ID)
    assert store.get(ID) is None
    assert store.ids() == []
    assert not leftovers(store.folder)


def test_a_note_of_the_first_layout_is_still_read(store):
    put(store)
    file = store.path(ID) / META
    meta = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("seal", "layout")}
    file.write_text(json.dumps(meta))
    assert Store(store.folder).get(ID).meta.kind == "attack"


def test_a_file_that_may_not_grow_is_a_clear_error_and_leaves_nothing(store):
    put(store, "cd" + ID[2:])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written: File too large"):
            put(store, content=bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.ids() == ["cd" + ID[2:]]
    assert not leftovers(store.folder)


def test_a_full_disk_is_a_clear_error_keeps_the_rest_and_goes_on_afterwards(small_disk):
    store = Store(small_disk)
    store.prepare()
    put(store, "cd" + ID[2:])
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2 * 2**20))
    with pytest.raises(StoreError, match="No space left on device") as error:
        put(store, content=bytes(300_000))
    assert "finished cells are kept" in str(error.value)
    filler.unlink()
    assert store.get("cd" + ID[2:])
    assert store.get(ID) is None
    assert not leftovers(small_disk)
    put(store, content=bytes(300_000))
    assert store.verify(ID) is None
    assert Path(small_disk / ".incoming").is_dir()
