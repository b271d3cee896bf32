"""``robustkd store`` as a user types it."""

import json

import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import PERTURBATIONS, Store
from support.campaigns import tiny_campaign

TEXT = tiny_campaign("stored", attacks={"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 2}"}, matrix="{seeds: [0, 1]}")
OTHER = TEXT.replace("name: stored", "name: other").replace("steps: 2", "steps: 3")


@pytest.fixture
def robustkd(robustkd, capsys, monkeypatch, tmp_path):
    """The command beside a finished campaign."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stored.yaml").write_text(TEXT)
    (tmp_path / "other.yaml").write_text(OTHER)
    robustkd.store = Store(tmp_path / "runs/stored")
    robustkd.plan = planning.build(spec.load("stored.yaml"))
    run(robustkd.plan, robustkd.store.folder, InlineEngine(), device="cpu")
    capsys.readouterr()
    return robustkd


def test_list_tells_what_each_cell_is_and_who_needs_it(robustkd):
    code, out, _ = robustkd("store", "list", "stored.yaml", "--json")
    assert code == 0
    cells = json.loads(out)
    assert {cell["id"] for cell in cells} == {cell.id for cell in robustkd.plan.cells}
    assert all(cell["used_by"] == ["stored"] and cell["seconds"] > 0 and cell["bytes"] > 0 for cell in cells)
    assert sorted((cell["kind"], cell["attack"], cell["seed"]) for cell in cells)[:2] == [
        ("attack", "fgsm", 0),
        ("attack", "fgsm", 1),
    ]
    code, out, _ = robustkd("store", "list", "other.yaml", "--out", "runs/stored")
    assert out.splitlines()[-1].startswith("6 cells, ")
    assert "; 2 that no campaign needs" in out
    code, _, err = robustkd("store", "list", "other.yaml", "stored.yaml")
    assert code == 2
    assert "--out" in err


def test_verify_names_the_damage_and_remove_lets_it_be_done_again(robustkd):
    assert robustkd("store", "verify", "stored.yaml") == (0, "6 cells verified, 0 damaged\n", "")
    first, second = robustkd.plan.of("attack")[:2]
    (robustkd.store.path(first.id) / samples.SAMPLES).write_bytes(b"garbage")
    (robustkd.store.path(second.id) / PERTURBATIONS).unlink()
    code, out, _ = robustkd("store", "verify", "stored.yaml")
    assert code == 1
    assert f"{first.id}/{samples.SAMPLES} is damaged: its checksum differs" in out
    assert f"{second.id}/{PERTURBATIONS} is damaged" in out
    code, out, _ = robustkd("store", "list", "stored.yaml")
    assert code == 0
    assert "damaged: " in out
    code, out, _ = robustkd("store", "verify", "stored.yaml", "--remove", "--json")
    assert code == 1
    assert set(json.loads(out)["damaged"]) == {first.id, second.id}
    assert robustkd("store", "verify", "stored.yaml") == (0, "4 cells verified, 0 damaged\n", "")
    assert not run(robustkd.plan, robustkd.store.folder, InlineEngine(), device="cpu").incomplete


def test_prune_removes_what_nobody_needs_and_only_when_told(robustkd):
    everything = set(robustkd.store.ids())
    mine = {cell.id for cell in robustkd.plan.of("attack") if cell.attack == "pgd"}
    robustkd.store.checkpoints("0" * 32)
    code, out, _ = robustkd("store", "prune", "other.yaml", "--out", "runs/stored")
    assert (code, set(robustkd.store.ids())) == (0, everything)
    assert "would remove 2 cells" in out
    code, out, _ = robustkd("store", "prune", "other.yaml", "stored.yaml", "--out", "runs/stored", "--yes")
    assert set(robustkd.store.ids()) == everything
    assert not robustkd.store.with_checkpoints()
    code, out, _ = robustkd("store", "prune", "other.yaml", "--out", "runs/stored", "--yes", "--json")
    assert {cell["id"] for cell in json.loads(out)["cells"]} == mine
    assert set(robustkd.store.ids()) == everything - mine
    with robustkd.store.exclusive_lock():
        code, _, err = robustkd("store", "prune", "other.yaml", "--out", "runs/stored", "--yes")
    assert code == 1
    assert "another run is using" in err


def test_pruned_perturbations_leave_every_number(robustkd):
    before = robustkd("store", "export", "stored.yaml", "before.csv")
    code, out, _ = robustkd("store", "prune", "stored.yaml", "--perturbations", "--yes")
    assert code == 0
    assert "removed the perturbations of 4 cells" in out
    assert not list(robustkd.store.folder.rglob(PERTURBATIONS))
    assert robustkd("store", "verify", "stored.yaml")[0] == 0
    assert robustkd("store", "export", "stored.yaml", "before.csv") == before
    assert robustkd("report", "stored.yaml")[0] == 0
    assert robustkd("store", "prune", "stored.yaml", "--perturbations")[1].startswith(
        "would remove the perturbations of 0 cells"
    )


@pytest.mark.parametrize(("ending", "read"), [("csv", pc.read_csv), ("parquet", pq.read_table)])
def test_export_has_a_row_for_each_sample_attack_defense_and_seed(robustkd, ending, read):
    code, out, _ = robustkd("store", "export", "stored.yaml", f"samples.{ending}")
    assert (code, out) == (0, f"samples.{ending}: 80 rows of 4 attacks\n")
    rows = read(f"samples.{ending}").to_pylist()
    assert {(row["defense"], row["attack"], row["seed"]) for row in rows} == {
        ("plain", a, s) for a in ("fgsm", "pgd") for s in (0, 1)
    }
    results = json.loads((robustkd.store.folder / "results.json").read_text())
    for cell in results["cells"]:
        mine = [row for row in rows if row["cell_id"] == cell["cell_id"]]
        assert sum(row["correct"] and not row["success"] for row in mine) / len(mine) == pytest.approx(cell["robust_accuracy"])
        assert {(row["threat_norm"], row["threat_eps"]) for row in mine} == {("linf", 0.1)}
    code, _, err = robustkd("store", "export", "stored.yaml", "samples.txt")
    assert code == 2
    assert ".parquet" in err
    code, _, err = robustkd("store", "export", "stored.yaml", "gone/samples.csv")
    assert code == 1
    assert "cannot be written" in err
