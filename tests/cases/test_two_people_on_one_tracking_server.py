"""Two people track one campaign to one server. The later one overwrote the former's numbers, and the charts over time were of both."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from robustkd.contracts import UsageError
from robustkd.scoring.summaries import Environment
from robustkd.tracking import origin, promote, ui_command
from support.campaigns import tiny_campaign
from support.tracked_campaign import campaign, cell, client, defended, results, track

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch) -> None:
    """A store that everybody writes to, and nobody's continuous integration."""
    shutil.copy(empty_store, tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    for name in ("GITHUB_REPOSITORY", "CI_PROJECT_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def person(monkeypatch, tmp_path):
    """``person("alice")`` is at the keyboard from now on; returns her folder."""

    def sits_down(name: str) -> Path:
        monkeypatch.setenv("LOGNAME", name)
        folder = tmp_path / name / "out"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return sits_down


def measured(robust_accuracy: float, day: int = 9):
    outcome = results(cell(robust_accuracy=robust_accuracy), defenses=(defended(robust_accuracy=robust_accuracy),))
    return replace(outcome, environment=Environment(finished=f"2026-11-{day:02d}T08:00:00+00:00"))


def accuracies(folder: Path, kind: str) -> dict[str, list[float]]:
    """The robust accuracies of all runs of a kind by the name of their experiment: of a trend every step, else the last."""
    mlflow = client(folder)
    found: dict[str, list[float]] = {}
    for experiment in mlflow.search_experiments():
        for run in mlflow.search_runs([experiment.experiment_id], f"tags.`robustkd.kind` = '{kind}'"):
            points = mlflow.get_metric_history(run.info.run_id, "robust_accuracy")
            by_step = {point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))}
            values = list(by_step.values())
            found.setdefault(experiment.name, []).extend(values if kind == "trend" else values[-1:])
    return found


def test_each_keeps_the_own_numbers_and_the_own_trend(person):
    track(alice := person("alice"), measured(0.75))
    track(bob := person("bob"), measured(0.25))
    for kind in ("cell", "defense", "trend"):
        found = accuracies(alice, kind)
        assert sorted(found.values()) == [[0.25], [0.75]], kind
        assert [name.partition("@")[0] for name in sorted(found)] == ["quick · alice", "quick · bob"]
    assert ui_command(alice).url != ui_command(bob).url


def test_two_folders_of_one_person_are_two_executions(person):
    track(first := person("alice"), measured(0.75))
    second = first.parent / "second"
    second.mkdir()
    track(second, measured(0.5, day=10))
    assert list(map(sorted, accuracies(first, "cell").values())) == [[0.5, 0.75]]
    assert list(accuracies(first, "trend").values()) == [[0.75, 0.5]]
    (experiment,) = client(first).search_experiments(filter_string="name LIKE 'quick%'")
    view = json.loads(json.loads(experiment.tags["mlflow.sharedViewState.robustkd-cells"])["state"])
    (shown,) = client(first).search_runs([experiment.experiment_id], view["searchFilter"])
    assert shown.data.metrics["robust_accuracy"] == 0.5  # the newest folder's alone


def test_a_copied_folder_is_another_one_and_a_moved_one_the_same(person):
    track(first := person("alice"), measured(0.75))
    shutil.copytree(first, copy := first.parent / "copy")
    track(copy, measured(0.5))
    assert list(map(sorted, accuracies(first, "cell").values())) == [[0.5, 0.75]]
    copy.rename(moved := first.parent / "moved")
    track(moved, measured(0.5))
    assert list(map(sorted, accuracies(moved, "cell").values())) == [[0.5, 0.75]]
    shutil.copytree(moved, theirs := person("bob") / "copied")
    track(theirs, measured(0.25))
    assert sorted(map(sorted, accuracies(moved, "cell").values())) == [[0.25], [0.5, 0.75]]


def test_a_folder_that_cannot_be_written_to_is_still_told_apart(person, monkeypatch):
    monkeypatch.setattr(origin, "FILE", "nowhere/origin")
    for _ in range(2):
        track(alice := person("alice"), measured(0.75))
    track(person("bob"), measured(0.25))
    assert sorted(accuracies(alice, "cell").values()) == [[0.25], [0.75]]


def test_continuous_integration_has_one_trend_for_a_project(person, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_REPOSITORY", "group/project")
    for day, accuracy in ((9, 0.75), (16, 0.5), (23, 0.25)):
        folder = tmp_path / f"checkout-{day}"
        folder.mkdir()
        track(folder, measured(accuracy, day), campaign(f"plan-{min(day, 16)}"))
    assert accuracies(folder, "trend") == {"quick · group/project": [0.75, 0.5, 0.25]}


def test_a_series_that_was_named_is_remembered_by_the_folder(person):
    track(folder := person("alice"), measured(0.75), campaign(series="team"))
    track(folder, measured(0.75))
    assert accuracies(folder, "cell") == {"quick · team": [0.75]}
    track(folder, measured(0.75), campaign(series="others"))
    assert accuracies(folder, "cell") == {"quick · team": [0.75], "quick · others": [0.75]}


def test_a_model_is_promoted_from_the_own_runs(person):
    track(person("alice"), measured(0.75))
    with pytest.raises(UsageError, match="MLflow does not have the model"):
        promote(person("bob"), measured(0.25), "mtard", force=True)


PROFILE = "engine: {kind: inline}\ntracking: {series: nightly, images: 0}\n"


def test_a_profile_names_the_series(robustkd, person, only_checks, tmp_path):
    only_checks()
    person("alice")
    Path("c.yaml").write_text(tiny_campaign("quick", train=40, test=8, attacks={"fgsm": "{kind: fgsm}"}))
    Path("p.yaml").write_text(PROFILE)
    code, out, err = robustkd("run", "c.yaml", "--profile", "p.yaml", "--quiet")
    assert code == 0, out + err
    assert list(accuracies(tmp_path, "cell")) == ["quick · nightly"]
    assert robustkd("track", "c.yaml")[0] == 0
    assert list(accuracies(tmp_path, "cell")) == ["quick · nightly"]
