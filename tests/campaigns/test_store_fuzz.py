"""Whatever the files of an output folder hold: a cell is whole or has to be done again, and nobody sees a traceback.

A few hundred inputs by default; ROBUSTKD_FUZZ=50000 tries so many.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustkd.application.gallery import gallery_items
from robustkd.campaigns.comparison import snapshot
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import changes
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.finished import finished_cells
from robustkd.campaigns.results.collect import collect
from robustkd.campaigns.results.inventory import inventory
from robustkd.campaigns.results.results_file import NOTE, RESULTS, current
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.planned import PLAN
from robustkd.campaigns.store.shards import ShardFiles
from robustkd.campaigns.store.store import META, PERTURBATIONS, Store
from robustkd.contracts import RobustkdError
from robustkd.defenses.training.checkpoint import Checkpoint, Snapshot
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.judging import ImageOutcome
from support.campaigns import tiny_campaign

TEXT = tiny_campaign("fuzzed", train=60, test=12, checks="{samples: 2}")
INPUTS = int(os.environ.get("ROBUSTKD_FUZZ", "300"))


def fuzzed(share):
    """Settings for a test that gets this share of all inputs."""
    thrifty = INPUTS < 1000
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=max(1, int(share * INPUTS)), deadline=None, database=None, derandomize=thrifty, suppress_health_check=quiet
    )


def mutations(whole):
    """Arbitrary bytes, and ``whole`` with a part flipped, cut out, doubled, moved or overwritten."""
    place = st.integers(0, len(whole))

    def changed(first, second, kind, new):
        low, high = sorted((first, second))
        part = whole[low:high]
        middle = {"cut": b"", "double": part + part, "flip": bytes(b ^ 1 for b in part[:1]) + part[1:], "new": new}[kind]
        return whole[:low] + middle + whole[high:]

    kinds = st.sampled_from(["cut", "double", "flip", "new"])
    fresh = st.binary(max_size=40) | st.sampled_from([b"null", b"[]", b"{}", b"NaN", b"-1", b'"x"', b"1e999", b"[" * 3000])
    return st.builds(changed, place, place, kinds, fresh) | st.binary(max_size=200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    plan, out = planning.build(spec.from_text(TEXT, "test.yaml", None)), tmp_path_factory.mktemp("fuzzed")
    return plan, out, run(plan, out, InlineEngine(), device="cpu")


@pytest.fixture(scope="module")
def cell_files(finished):
    plan, out, _ = finished
    files = sorted(file for cell in plan.cells for file in Store(out).path(cell.id).iterdir())
    return {file: file.read_bytes() for file in files}


def outcome_of(call):
    """What it returns, or the message of an error of ours; any other error is a failure of the test."""
    try:
        return call(), ""
    except RobustkdError as error:
        return None, str(error)


class Overwritten:
    """A file with other content, for a while."""

    def __init__(self, file, content):
        self.file, self.content = file, content

    def __enter__(self):
        self.whole = self.file.read_bytes()
        self.file.write_bytes(self.content)

    def __exit__(self, *error):
        self.file.write_bytes(self.whole)


@fuzzed(0.2)
@given(data=st.data())
def test_a_cell_is_whole_or_done_again(data, finished, cell_files):
    plan, out, results = finished
    file = data.draw(st.sampled_from(sorted(cell_files)))
    content = data.draw(mutations(cell_files[file]))
    cell_id = file.parent.name
    with Overwritten(file, content):
        store = Store(out)
        entry, said = store.get(cell_id), store.verify(cell_id)
        done = finished_cells(plan, store)
        collected = collect(plan, store, {})
        changes.reasons(plan, store, done)
        gallery_items(plan, store)
        assert len(list(inventory(store, {"fuzzed": plan}))) == 3
    same = content == cell_files[file] or _same_note(file, content, cell_files[file])
    assert (said is None) == same
    assert (entry is None) == (not same and file.name != PERTURBATIONS)
    assert (cell_id in done) == (entry is not None)
    if entry is not None:
        assert collected == results


def _same_note(file, content, whole):
    """White space and the order of keys do not count, and a note without a seal and a layout number is one of the first layout."""
    if file.name != META:
        return False
    try:
        return json.loads(content) == json.loads(whole)
    except (ValueError, RecursionError):
        return False


@fuzzed(0.2)
@given(data=st.data())
def test_what_claims_to_be_sound_and_is_not_is_an_error_of_ours(data, finished, cell_files):
    """The same with checksums that match: a fault of a writer, not of a disk."""
    plan, out, _ = finished
    names = [file for file in sorted(cell_files) if file.name in (samples.SAMPLES, PERTURBATIONS, "findings.json")]
    file = data.draw(st.sampled_from(names))
    entry = Store(out).get(file.parent.name)
    content = data.draw(mutations(cell_files[file]))

    class Trusting(type(entry)):
        def read(self, name):
            return content if name == file.name else (self.folder / name).read_bytes()

    trusting = Trusting(entry.folder, entry.meta)

    class TrustingStore(Store):
        def get(self, cell_id):
            return trusting if cell_id == file.parent.name else super().get(cell_id)

    collected, said = outcome_of(lambda: collect(plan, TrustingStore(out), {}))
    assert collected or file.name in said
    if file.name == PERTURBATIONS:
        images, said = outcome_of(lambda: samples.perturbed(trusting))
        assert images is not None or file.name in said


@fuzzed(0.2)
@given(data=st.data())
def test_the_files_beside_the_cells(data, finished):
    plan, out, results = finished
    name = data.draw(st.sampled_from([RESULTS, NOTE, PLAN, ".lock"]))
    file = out / name
    content = data.draw(mutations(file.read_bytes()))
    with Overwritten(file, content):
        store = Store(out)
        assert current(plan, store) in (None, results)
        assert isinstance(changes.reasons(plan, store, set()), list)
        with store.exclusive_lock(), pytest.raises(RobustkdError, match="another run"), Store(out).exclusive_lock():
            pass
        read, said = outcome_of(lambda: snapshot.read(str(out)))
    assert read or (said and name == RESULTS)


@fuzzed(0.4)
@given(data=st.data())
def test_checkpoints_and_shards(data, under_way):
    shards, checkpoint = under_way
    file = data.draw(st.sampled_from([*sorted(shards.folder.glob("shard-*")), checkpoint.file]))
    content = data.draw(mutations(file.read_bytes()))
    whole = file.read_bytes() == content
    with Overwritten(file, content):
        found = checkpoint.read() if file == checkpoint.file else shards.read(int(file.name.partition("-")[2]), ImageOutcome)
    assert whole or found is None or file == checkpoint.file


@pytest.fixture(scope="module")
def under_way(finished, tmp_path_factory):
    """A shard and a training's checkpoint."""
    plan, out, _ = finished
    (cell,) = plan.of("attack")
    entry = Store(out).get(cell.id)
    record = samples.read(entry)
    shards = ShardFiles(tmp_path_factory.mktemp("shards"), "own")
    shards.write(0, Evaluation(record.outcome, torch.from_numpy(samples.perturbed(entry).copy()), record.broken_at), 1.0)
    checkpoint = Checkpoint(Path(shards.folder), "own")
    checkpoint.write(Snapshot({"weight": torch.arange(3.0)}, {"epoch": 1}))
    return shards, checkpoint
