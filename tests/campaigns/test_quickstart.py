"""What the quickstart promises, by running it whole (two and a half minutes on two cores of an AMD EPYC)."""

import json
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


def robustkd(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "robustkd", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    done = robustkd("run", "quickstart", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "runs/quickstart/results.json").read_text())


def test_distillation_looks_robust_and_is_not(results):
    for seed in (0, 1, 2):
        fgsm = next(c for c in results["cells"] if (c["defense"], c["attack"], c["seed"]) == ("distilled", "fgsm", seed))
        worst = next(d for d in results["defenses"] if (d["defense"], d["seed"]) == ("distilled", seed))
        assert fgsm["robust_accuracy"] >= 0.90
        assert worst["robust_accuracy"] <= 0.35
        assert worst["verdict"] == "not credible"
        fired = {check["name"] for check in worst["checks"] if check["fired"]}
        assert "loss-disagreement" in fired


@pytest.mark.parametrize("defense", ["pgd-at", "mtard"])
def test_adversarial_training_and_mtard_hold(results, defense):
    rows = [row for row in results["defenses"] if row["defense"] == defense]
    assert len(rows) == 3
    for row in rows:
        assert row["robust_accuracy"] >= 0.70
        assert row["verdict"] != "not credible"


def test_running_it_again_takes_seconds(folder, results):
    began = time.monotonic()
    again = robustkd("run", "quickstart", cwd=folder)
    assert again.returncode == 0
    assert "0 cells to do" in again.stderr
    assert time.monotonic() - began < 60
    assert json.loads((folder / "runs/quickstart/results.json").read_text())["cells"] == results["cells"]
