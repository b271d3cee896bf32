"""A store that is away for a while, or for good."""

from __future__ import annotations

import http.server
import threading
import time

import pytest

from robustkd.tracking import MlflowTracker, TrackingError, mlflow_tracker, rebuild
from robustkd.tracking.run_store import RunStore
from support.tracked_campaign import CELL, PARENT, WORST, campaign, cell, client, defended, results, runs


@pytest.fixture
def away(monkeypatch):
    """The next so many calls of the store fail, each after it has done its work: the answer is what gets lost."""
    monkeypatch.setattr(mlflow_tracker, "FIRST_PAUSE", 0.01)
    left = {"calls": 0, "failed": 0}

    def failing(method):
        def call(*arguments, **keywords):
            done = method(*arguments, **keywords)
            if left["calls"]:
                left["calls"] -= 1
                left["failed"] += 1
                raise ConnectionError("connection reset by peer")
            return done

        return call

    opened = RunStore.__init__

    def opening(book, *arguments):
        opened(book, *arguments)
        for name in ("create_run", "log_batch", "log_inputs", "set_terminated", "log_artifact"):
            monkeypatch.setattr(book.client, name, failing(getattr(book.client, name)))

    monkeypatch.setattr(RunStore, "__init__", opening)
    return left


def test_nothing_is_lost_and_nothing_is_twice(folder, away):
    said: list[str] = []
    outcome = results(cell(), cell(attack="cw"), defenses=(defended(),))
    tracker = MlflowTracker(folder, campaign(), warn=said.append)
    away["calls"] = 6
    for done in outcome.cells:
        tracker.log_cell(done)
    tracker.finish(outcome)
    assert tracker.problem is None
    assert away["failed"] == 6
    assert [text.split(":")[0] for text in said][::2] == ["MLflow does not answer, what is to be written waits"] * (
        len(said) // 2
    )
    assert said[-1] == "MLflow answers again"
    found = runs(folder)  # which asserts that no name is there twice
    assert set(found) == {CELL, "mtard × cw · seed 0", WORST, PARENT}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for name, metric in ((CELL, "robust_accuracy_at_eps"), (WORST, "train_loss")):
        assert len(client(folder).get_metric_history(found[name].info.run_id, metric)) == 3


def test_a_store_that_stays_away_ends_in_a_sentence(folder, away):
    said: list[str] = []
    away["calls"] = 10**9
    tracker = MlflowTracker(folder, campaign(), warn=said.append, patience=0.3)
    for number in range(50):
        tracker.log_cell(cell(attack=f"a{number}"))
    began = time.monotonic()
    tracker.finish(results(cell()))
    assert time.monotonic() - began < 10
    assert "connection reset" in tracker.problem
    assert "robustkd track CAMPAIGN" in said[-1]
    with pytest.raises(TrackingError, match="check MLFLOW_TRACKING_URI"):
        rebuild(folder, campaign(), results(cell()), patience=0.3)
    away["calls"] = 0
    rebuild(folder, campaign(), results(cell()))
    assert {CELL, PARENT} <= set(runs(folder))


def test_what_is_refused_is_not_tried_again(folder, monkeypatch):
    from mlflow.exceptions import MlflowException

    tried: list[int] = []

    def refuse(*_):
        tried.append(1)
        raise MlflowException.invalid_parameter_value("no")

    monkeypatch.setattr(RunStore, "put", refuse)
    tracker = MlflowTracker(folder, campaign(), warn=lambda text: None)
    tracker.log_cell(cell())
    tracker.finish(results(cell()))
    assert (len(tried), "no" in tracker.problem) == (1, True)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(200, "<html><body>Log in</body></html>", id="a page to log in"),
        pytest.param(401, '{"error_code": "LOGIN_REQUIRED", "message": "no ticket"}', id="a code that is not MLflow's"),
        pytest.param(403, "<html>forbidden</html>", id="a page that refuses"),
    ],
)
def test_what_answers_in_the_place_of_mlflow_is_not_asked_again(folder, status, body, monkeypatch, caplog):
    class Proxy(http.server.BaseHTTPRequestHandler):
        asked = 0

        def answer(self) -> None:
            Proxy.asked += 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    said: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        tracker = MlflowTracker(folder, campaign(), warn=said.append, patience=5)
        tracker.log_cell(cell())
        tracker.finish(results(cell()))
        server.shutdown()
    assert Proxy.asked == 1
    assert len(said) == 1
    assert body in said[0] or "LOGIN_REQUIRED: no ticket" in said[0]
    assert not [record for record in caplog.records if record.name.startswith("mlflow")]
