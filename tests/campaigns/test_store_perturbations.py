"""Perturbed inputs may be left out: no number changes, and what lacks them says so."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from robustkd.application.gallery import gallery_items
from robustkd.campaigns.execution import profile
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import KEPT_BYTES, PERTURBATIONS, Store
from robustkd.contracts import UsageError
from robustkd.reporting import write_report
from support.campaigns import tiny_campaign

TEXT = tiny_campaign("kept", test=300, checks="{samples: 2}")
IMAGE = 64 * 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same campaign with all perturbations, with 260 of 300, and with none."""
    plan = planning.build(spec.from_text(TEXT, "test.yaml", None))
    made = {}
    for kept in (KEPT_BYTES, 260 * IMAGE, 0):
        folder = tmp_path_factory.mktemp("kept")
        made[kept] = folder, run(plan, folder, InlineEngine(), device="cpu", keep_bytes=kept)
    return plan, made


def numbers(results):
    return [replace(cell, wall_seconds=0, perturbations=None) for cell in results.cells]


def test_no_number_depends_on_what_is_kept(runs):
    plan, made = runs
    (cell,) = plan.of("attack")
    whole, part, none = (Store(folder).get(cell.id) for folder, _ in made.values())
    assert samples.perturbed(whole).shape == (300, 1, 8, 8)
    assert np.array_equal(samples.perturbed(part), samples.perturbed(whole)[:260])  # across the border of a shard, too
    assert samples.perturbed(none) is None
    assert not (none.folder / PERTURBATIONS).exists()
    first, *others = (results for _, results in made.values())
    assert [results.cells[0].perturbations for _, results in made.values()] == [300, 260, 0]
    for results in others:
        assert numbers(results) == numbers(first)
        assert [row.verdict for row in results.defenses] == [row.verdict for row in first.defenses]


def test_the_audit_and_the_report_say_what_they_lack(runs, tmp_path):
    plan, made = runs
    for (folder, results), kept in zip(made.values(), (300, 260, 0), strict=True):
        (audit,) = [finding for finding in results.defenses[0].checks if finding.name == "threat-model-audit"]
        assert audit.evidence["perturbations_measured_again"] == {"fgsm": kept}
        items = gallery_items(plan, Store(folder))
        write_report(results, tmp_path, items)
        assert bool(items) == bool(kept)
        assert ("perturbed inputs of 1 attack cell were not kept" in (tmp_path / "report.html").read_text()) == (not kept)


def test_damaged_perturbations_cost_the_report_its_images_only(runs, tmp_path):
    plan, made = runs
    (cell,) = plan.of("attack")
    folder = shutil.copytree(made[260 * IMAGE][0], tmp_path / "damaged")
    (Store(folder).path(cell.id) / PERTURBATIONS).write_bytes(b"garbage")
    assert gallery_items(plan, Store(folder)) == []
    again = run(plan, folder, InlineEngine(), device="cpu")
    assert _plain(again) == _plain(made[260 * IMAGE][1])


def _plain(results):
    return json.loads(json.dumps(results.to_dict()))


@pytest.mark.parametrize(("asked", "kept"), [(None, KEPT_BYTES), ("none", 0), ("0", 0), ("3", 3 * 2**20)])
def test_a_profile_or_the_command_line_sets_it(asked, kept):
    assert profile.load(None).overridden(keep_perturbations=asked).keep_bytes == kept
    text = "" if asked is None else f"keep_perturbations: {asked}"
    assert profile.from_text(text, "profile.yaml", None).keep_bytes == kept


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="no number of MiB"):
        profile.load(None).overridden(keep_perturbations="-1")
    with pytest.raises(UsageError, match="keep_perturbations"):
        profile.from_text("keep_perturbations: -1", "profile.yaml", None)
