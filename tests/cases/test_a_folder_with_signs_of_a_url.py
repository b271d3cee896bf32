"""A results folder called as CI servers call them, ``feature%2Fx``: tracked as any other."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from robustkd.cli import cli
from robustkd.tracking.location import tracking_uri
from support.campaigns import tiny_campaign


@pytest.mark.parametrize("name", ["feature%2Fx", "what?mode=ro", "a#b [1]"])
def test_a_campaign_is_tracked_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "1")
    home = tmp_path / name
    home.mkdir()
    (home / "tiny.yaml").write_text(tiny_campaign())
    out = home / "out"
    done = CliRunner().invoke(cli, ["run", str(home / "tiny.yaml"), "--out", str(out), "-q", "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert (out / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    client = mlflow.MlflowClient(tracking_uri(out))
    (experiment,) = [item for item in client.search_experiments() if item.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    assert any(run.data.metrics.get("robust_accuracy") is not None for run in runs)
    files = [item for run in runs for item in client.list_artifacts(run.info.run_id)]
    assert files
