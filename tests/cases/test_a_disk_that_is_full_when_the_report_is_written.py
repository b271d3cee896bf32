"""All cells are done, and then there is no space for the record or the report: the table is shown and MLflow has it all the same."""

import errno
from pathlib import Path

import pytest

from robustkd.application import session
from robustkd.campaigns.execution.record import Recorder
from robustkd.tracking.location import read_mark
from support.campaigns import tiny_campaign


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (session, "write_report", "the report cannot be written into runs/full: No space left on device"),
        (Recorder, "finished", "the output folder runs/full cannot be written: No space left on device"),
    ],
)
def test_the_table_is_shown_and_tracked_and_the_error_said_last(robustkd, tmp_path, monkeypatch, owner, name, said):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full.yaml").write_text(tiny_campaign("full", train=40, test=8))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        code, out, err = robustkd("run", "full.yaml", "--workers", "0", "--device", "cpu")
    assert code == 1
    assert said in err.strip().splitlines()[-2]
    assert "Traceback" not in err
    assert "plain" in out
    assert ("runs/full/report.html" in out) == (tmp_path / "runs/full/report.html").exists()
    assert read_mark(Path("runs/full")) is not None
    code, out, _ = robustkd("run", "full.yaml", "--workers", "0", "--device", "cpu")
    assert code == 0
    assert Path("runs/full/report.html").exists()
    assert "runs/full/report.html" in out
