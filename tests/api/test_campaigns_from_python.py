"""A campaign that is run, loaded, reported and compared from Python is the one that the command runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import robustkd
from robustkd.cli import cli
from robustkd.contracts import StoreError, UsageError

CAMPAIGN = {
    "version": 1,
    "name": "tiny",
    "data": {"name": "digits", "train": 200, "test": 30},
    "threat": {"norm": "linf", "eps": 0.1},
    "defenses": {"plain": {"kind": "standard", "model": "tiny-cnn", "epochs": 1}},
    "attacks": {"fgsm": {"kind": "fgsm"}, "pgd": {"kind": "pgd", "steps": 2}},
    "checks": "none",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The results of the campaign, the events of its run, and its folder."""
    folder, events = tmp_path_factory.mktemp("python") / "out", []
    results = robustkd.run(CAMPAIGN, folder, workers=0, track=False, progress=events.append)
    return results, events, folder


def test_results_are_loaded_by_the_name_of_a_folder_below_runs(ran, tmp_path, monkeypatch):
    results, _, folder = ran
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "results.json").write_bytes((folder / "results.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert robustkd.load("mine") == robustkd.load("runs/mine") == results


def without_times(results: dict) -> dict:
    """Results without what depends on the clock."""
    text = json.dumps(results)
    kept = json.loads(text)
    for one in (*kept["cells"], *kept["defenses"]):
        for key in ("wall_seconds", "train_seconds", "history"):
            one.pop(key, None)
    kept["environment"].pop("finished")
    return kept


def test_it_is_what_the_command_gives(ran, tmp_path):
    results, _, folder = ran
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    done = CliRunner().invoke(
        cli, ["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--workers", "0", "--no-track", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    there = json.loads((tmp_path / "out" / "results.json").read_text())
    assert without_times(there) == without_times(results.to_dict())
    assert json.loads((folder / "results.json").read_text()) == json.loads(results.to_json())
    assert (folder / "report.html").is_file()


def test_events_tell_the_course(ran):
    results, events, _ = ran
    assert [event.event for event in events] == ["planned", *["started", "epoch", "done"], *["started", "done"] * 2, "finished"]
    assert [(event.done, event.total) for event in (events[0], events[-1])] == [(0, 3), (3, 3)]
    assert events[5].robust_accuracy == results.cells[0].robust_accuracy
    assert str(events[5]).startswith("[2/3] plain × fgsm")


def test_what_is_finished_is_not_done_again(ran):
    results, _, folder = ran
    events = []
    again = robustkd.run(folder / "campaign.yaml", folder, workers=0, track=False, progress=events.append)
    assert again == results
    assert [event.event for event in events] == ["planned", "finished"]


def test_a_run_that_is_interrupted_goes_on(tmp_path):
    def stop(event: robustkd.Progress) -> None:
        if event.event == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        robustkd.run(CAMPAIGN, tmp_path / "out", workers=0, track=False, progress=stop)
    events = []
    results = robustkd.run(CAMPAIGN, tmp_path / "out", workers=0, track=False, progress=events.append)
    assert "1 finished before" in events[0].text
    assert not results.incomplete
    robustkd.run(CAMPAIGN, tmp_path / "out", workers=0, track=False, redo="pgd", progress=events.append)
    assert [event.attack for event in events if event.event == "done"][-1] == "pgd"
    assert events[-3].event == "started"


def test_a_text_and_a_mapping_are_campaigns(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, _, folder = ran
    by_text = robustkd.run((folder / "campaign.yaml").read_text(), folder, workers=0, track=False)
    assert by_text == results
    numbers = {
        **CAMPAIGN,
        "name": "of-numpy",
        "threat": {"norm": "linf", "eps": np.float32(0.125)},
        "attacks": {"a": {"kind": "fgsm"}},
    }
    assert robustkd.run(numbers, workers=0, track=False).folder == Path("runs") / "of-numpy"
    assert robustkd.load("runs/of-numpy").threat.eps == 0.125
    with pytest.raises(UsageError, match="the campaign holds a object"):
        robustkd.run({**CAMPAIGN, "threat": object()})
    with pytest.raises(UsageError, match="neither a campaign file nor a preset"):
        robustkd.run("no-such-campaign")


def test_results_are_loaded_with_their_samples(ran, tmp_path):
    results, _, folder = ran
    loaded = robustkd.load(folder)
    assert loaded == results == robustkd.load(folder / "results.json")
    samples = robustkd.samples(loaded)
    assert len(samples) == 60
    standing = samples[(samples.attack == "pgd") & samples.correct & ~samples.success]
    assert len(standing) / 30 == results.cells[1].robust_accuracy
    (tmp_path / "results.json").write_text(results.to_json())
    with pytest.raises(StoreError, match="nothing is known of its samples"):
        robustkd.samples(tmp_path)
    with pytest.raises(StoreError, match="holds no results"):
        robustkd.load(tmp_path.parent)


def test_results_tell_themselves(ran):
    results, _, _ = ran
    assert len(repr(results)) < 200
    assert "not checked" in results._repr_html_()
    table = results.to_dataframe()
    assert list(table.attack) == ["worst case", "fgsm", "pgd"]
    assert table.robust_accuracy[0] == results.defenses[0].robust_accuracy


def test_a_report_is_written_elsewhere(ran, tmp_path):
    results, _, folder = ran
    written = robustkd.report(results, tmp_path / "with")
    assert "data-sample" in written.html.read_text() or "Sample by sample" in written.html.read_text()
    assert robustkd.report(folder, tmp_path / "same").markdown.read_text() == written.markdown.read_text()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "results.json").write_text(results.to_json())
    with pytest.warns(UserWarning, match="without its samples"):
        assert robustkd.report(tmp_path / "alone").html.parent == tmp_path / "alone"


def test_two_campaigns_are_compared(ran):
    results, _, folder = ran
    compared = robustkd.compare(results, folder)
    assert {change.difference for item in compared.movements for change in item.changes} == {0.0}
    assert compared.to_dict() == robustkd.compare(folder, folder / "results.json").to_dict() | {
        "a": str(folder),
        "b": str(folder),
    }
    assert len(compared.to_dataframe()) == len(compared.movements) == 4
    assert "1 not told apart" in repr(compared)
    assert "<td>not told apart</td>" in compared._repr_html_()


def test_a_profile_s_store_is_not_left_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = f"sqlite:///{tmp_path}/other.db"
    (tmp_path / "profile.yaml").write_text(f"tracking: {{enabled: false, uri: '{store}'}}\nengine: {{kind: inline}}\n")
    robustkd.run(CAMPAIGN, tmp_path / "out", profile=tmp_path / "profile.yaml")
    assert "MLFLOW_TRACKING_URI" not in os.environ
