"""The MLflow dashboard as a browser shows it: a real server, clicked through as somebody would who opens nothing else."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.campaigns import tiny_campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CAMPAIGN = tiny_campaign(
    "dashboard",
    {
        "pgd-at": "{kind: pgd-at, model: tiny-cnn, epochs: 8, inner: {steps: 2}}",
        "standard": "{kind: standard, model: tiny-cnn, epochs: 8}",
    },
    {"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 5}"},
    train=300,
    test=40,
    threat="{norm: linf, eps: 0.1, curve: [0.05]}",
    checks=None,
)
PATIENCE = 240
"""Seconds that a server may take on a busy machine."""


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The address that `robustkd ui` prints, while its server runs."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "robustkd"]
    subprocess.run([*command, "run", "campaign.yaml", "--workers", "0"], cwd=folder, env=environment, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "ui.log").open("w") as log:
        words = [*command, "ui", "campaign.yaml", "--port", str(port)]
        server = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _announced(folder / "ui.log", server)
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # a session of its own: MLflow's processes go with it, and take no time to
        server.wait()


def _announced(log: Path, server: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        if found := re.search(r"^(http\S+)   \(Ctrl-C", log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.2)
    pytest.fail(f"no address in {PATIENCE} s")


@pytest.fixture(scope="module")
def seen(node, screenshots, url):
    """What dashboard.mjs saw on its way."""
    return node("dashboard.mjs", url, screenshots)


def test_the_first_page_says_which_defense_is_best_and_whether_to_believe_it(seen):
    # The highest first, where the campaign has it last: 300 images make no defense, and this threat is a small one.
    assert seen["runs"] == ["standard · worst case · seed 0", "pgd-at · worst case · seed 0"]
    assert seen["columns"][:1] + seen["columns"][2:4] == ["Run Name", "robust_accuracy", "robustkd.verdict"]
    assert "Does this defense hold?" in seen["table"]


def test_charts_compare_the_defenses(seen):
    assert seen["plots"] >= 3
    assert "Model metrics" in seen["charts"]


def test_two_runs_stand_side_by_side(seen):
    for part in ("Comparing 2 Runs from 1 Experiment", *seen["runs"], "robust_accuracy", "defense.kind"):
        assert part in seen["compare"], part


def test_a_run_tells_its_verdict_and_belongs_to_a_campaign(seen):
    assert "credible" in seen["run"] or "suspect" in seen["run"]
    assert "95 % interval" in seen["run"]
    assert seen["campaign"].startswith("dashboard · campaign ")
    assert "robust accuracies" in seen["note"]


def test_no_page_of_a_run_is_made_of_single_bars(seen):
    assert seen["kinds"]
    assert "bar" not in seen["kinds"]


def test_the_first_page_has_the_side_bar_of_models_and_not_that_of_llm_traces(seen):
    for page in ("table", "charts", "compare", "run", "note"):
        assert "Evaluation runs" not in seen[page], page
        assert "Agent versions" not in seen[page], page


def test_a_link_of_mlflow_s_own_opens_the_same_side_bar_and_a_choice_of_the_other_one_stays(seen):
    assert "workflowType" not in seen["linked"]["address"]
    assert "Evaluation runs" not in seen["linked"]["words"]
    assert "Evaluation runs" in seen["chosen"]


def test_the_report_works_inside_mlflow(seen):
    assert seen["report"] == "80 of 80 rows; shown are 1 to 25."  # its script runs in MLflow's sandbox
