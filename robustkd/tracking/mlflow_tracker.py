"""The tracker that the driver of a campaign uses.

MLflow takes seconds to import and to open, and a server may be slow or away. So everything happens in order on one thread
of its own: the campaign never waits for MLflow before ``finish``, and never fails because of it. While a server is away, what
is to be written waits in line and is tried again and again; what was cut off in the middle is looked up first, so that
nothing is written twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.plugins.sources import unwatched
from robustkd.redaction import redacted
from robustkd.reporting.gallery import requests_of
from robustkd.reporting.presentation import presentation
from robustkd.scoring.holds import UNKNOWN, Standing, standings
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.tracking.location import Mark, TrackingError, read_mark, tracking_uri, write_mark
from robustkd.tracking.origin import origin_of
from robustkd.tracking.records import (
    RunKey,
    TrackedCampaign,
    campaign_record,
    cell_record,
    defense_record,
    history_points,
    package_version,
    training_record,
)

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

    from robustkd.reporting import Item
    from robustkd.tracking.run_store import Attach, LogModel, RunStore

    Gallery = Sequence[Item] | Callable[[CellResult], Sequence[Item]]

Job = Callable[["RunStore"], None]

PATIENCE = 60.0
"""For how many seconds ``finish`` goes on trying to reach a store that is away."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
MOST_WAITING = 200
"""Results and epochs that wait to be written; what more there is ``finish`` writes, since it brings everything in line."""
JOURNAL = "record.json"
"""Grows by an entry in every run, also in one that changes nothing."""


class MlflowTracker:
    """Logs one campaign to MLflow. Methods return at once and never raise; ``finish`` waits.

    Args:
        folder: the results folder, home of the default store.
        warn: told, from the tracker's own thread, that the store is away, that it is back, or that tracking has stopped and
            how to make up for it.
        patience: for how many seconds ``finish`` goes on trying to reach a store that is away.
    """

    def __init__(
        self,
        folder: Path,
        campaign: TrackedCampaign,
        *,
        warn: Callable[[str], None] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.problem: str | None = None
        self._folder, self._campaign = folder, campaign
        self._warn = warn or logging.getLogger(__name__).warning
        self._patience = patience
        self._deadline = math.inf  # until finish is called, a store may be away for as long as it likes
        self._hurry = threading.Event()
        self._room = threading.Semaphore(MOST_WAITING)
        self._book: RunStore | None = None
        self._thread: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Begin to open MLflow, which takes seconds: somebody knows that there will be something to write."""
        if self._thread is None:
            self._later(lambda book: None)

    def log_progress(self, defense: str, seed: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """An epoch of a training: its curves can be watched while it lasts."""
        self._if_few_wait(
            lambda book: book.progress(
                RunKey(defense, "", seed),
                training_record(self._campaign, defense, seed),
                history_points([{**metrics, "epoch": epoch}]),
            )
        )

    def log_cell(self, cell: CellResult, gallery: Gallery = ()) -> None:
        """An attack's result, finished or failed; one that is pending is left out."""
        self._if_few_wait(lambda book: self._put_cell(book, cell, gallery))

    def finish(
        self,
        results: Results,
        *,
        gallery: Gallery = (),
        targets: Mapping[tuple[str, int], Path] | None = None,
        artifacts: Sequence[Path] = (),
        force: bool = False,
    ) -> None:
        """Bring MLflow in line with the results, whatever was logged before, and wait for it.

        Args:
            gallery: of the whole campaign; as a function it is called for the cells that lack their images only.
            targets: the folder of each trained target, by defense and seed.
            artifacts: files for the parent run: the plan, the report, figures. A new entry in ``JOURNAL`` alone is no reason to
                open MLflow; it goes there with the next thing that is.
            force: look into MLflow even when this folder's mark says that it has all this already.
        """
        artifacts = [path for path in artifacts if path.is_file()]
        digest, mark = self._digest(results, artifacts), read_mark(self._folder)
        if self._thread is None and not force and mark is not None and mark.digest == digest:
            return
        self._later(lambda book: self._put_everything(book, results, gallery, targets or {}, artifacts))
        self._deadline = time.monotonic() + self._patience
        self._hurry.set()
        self.close(drop=False)
        if self.problem is None and self._book is not None:
            with suppress(OSError):  # without the mark, the next run only looks again
                write_mark(self._folder, Mark(digest, self._book.experiment_id))

    def close(self, *, drop: bool = True) -> None:
        """Stop: what is being written is finished, what waits is dropped (the next run makes up for it)."""
        if drop:
            self._deadline = -math.inf
            self._hurry.set()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=drop)
            self._thread = None

    def _put_everything(
        self,
        book: RunStore,
        results: Results,
        gallery: Gallery,
        targets: Mapping[tuple[str, int], Path],
        artifacts: Sequence[Path],
    ) -> None:
        defenses = {(item.defense, item.seed): item for item in results.defenses}
        standing = standings(results)
        for cell in results.cells:
            defended = defenses.get((cell.defense, cell.seed))
            self._put_cell(book, cell, gallery, defended, standing.get(cell.defense, UNKNOWN))
        for trained, result in defenses.items():
            self._put_defense(book, result, targets.get(trained), standing[result.defense])
        self._put_campaign(book, results, artifacts)
        if not results.incomplete:
            book.put_trends(results)

    def _put_cell(
        self,
        book: RunStore,
        cell: CellResult,
        gallery: Gallery,
        defended: DefenseResult | None = None,
        standing: Standing = UNKNOWN,
    ) -> None:
        if cell.status == "pending":
            return
        examples: Sequence[Item] = ()
        if cell.status == "done" and presentation(self._campaign.data.modality).quoted:
            examples = gallery = _of(gallery, cell)  # the note of an attack on prompts quotes some
        attach = _shown(gallery, cell) if cell.status == "done" else None
        record = cell_record(
            self._campaign,
            cell,
            defended.verdict if defended else None,
            standing=standing,
            images=attach is not None,
            examples=examples,
        )
        book.put(RunKey(cell.defense, cell.attack, cell.seed), record, attach)

    def _put_defense(self, book: RunStore, result: DefenseResult, folder: Path | None, standing: Standing) -> None:
        if result.status == "pending" and result.robust_accuracy is None:
            return
        model: LogModel | None = None
        if folder is not None and result.target_hash:
            from robustkd.tracking.models import log_model

            def model(book: RunStore, run_id: str) -> str:
                return log_model(book, run_id, result, folder)

        record = defense_record(self._campaign, result, standing=standing, model=model is not None)
        book.put(RunKey(result.defense, "", result.seed), record, model=model)

    def _put_campaign(self, book: RunStore, results: Results, artifacts: Sequence[Path]) -> None:
        record = campaign_record(self._campaign, results, [f"{path.name} {_sha256(path)}" for path in artifacts])

        def attach(book: RunStore, run_id: str) -> None:
            for path in artifacts:
                book.client.log_artifact(run_id, str(path))
            book.show_as_table(run_id, "cells.json")

        book.put_parent(record, attach)

    def _if_few_wait(self, job: Job) -> None:
        """Do it later, unless so much waits for a slow store that the driver's memory would grow: ``finish`` makes up for that."""
        if self._room.acquire(blocking=False):
            self._later(job).add_done_callback(lambda done: self._room.release())

    def _later(self, job: Job) -> Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow", initializer=unwatched)
        return self._thread.submit(self._do, job)

    def _do(self, job: Job) -> None:
        pause = 0.0
        while self.problem is None:
            try:
                if self._book is None:
                    from robustkd.tracking.run_store import RunStore

                    self._book = RunStore(tracking_uri(self._folder), self._folder, self._campaign)
                job(self._book)
            except Exception as error:
                # Whatever a store or its driver raises: the campaign's numbers are safe in its own folder.
                self._book = None  # what came through is not known: the next one looks
                told = redacted(f"{type(error).__name__}: {str(error).strip()}")
                if not _is_transient(error) or time.monotonic() >= self._deadline:
                    self._stop(told)
                    return
                if not pause:
                    self._warn(f"MLflow does not answer, what is to be written waits: {told}")
                pause = min(max(FIRST_PAUSE, 2 * pause), LONGEST_PAUSE)
                self._pause(pause)
            else:
                if pause:
                    self._warn("MLflow answers again")
                return

    def _pause(self, seconds: float) -> None:
        """Wait; when the campaign ends meanwhile, only for as long as its patience lasts, and never long."""
        if self._hurry.wait(seconds):
            time.sleep(max(0.0, min(FIRST_PAUSE, self._deadline - time.monotonic())))

    def _stop(self, problem: str) -> None:
        self.problem = problem
        self._warn(
            f"MLflow tracking stopped: {problem}\n"
            "The campaign's numbers are safe in its own folder. To fill MLflow in afterwards: robustkd track CAMPAIGN"
        )

    def _digest(self, results: Results, artifacts: Sequence[Path]) -> str:
        content: list[object] = [package_version(), redacted(tracking_uri(self._folder)), self._campaign.plan_id]
        content += [
            origin_of(self._folder, self._campaign.series),
            results.to_dict(),
            [_sha256(path) for path in artifacts if path.name != JOURNAL],
        ]
        # Results that were read from their file have 1.0 where those that were just made have 1.
        same = json.loads(json.dumps(content, default=str), parse_int=float)
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def rebuild(
    folder: Path,
    campaign: TrackedCampaign,
    results: Results,
    *,
    gallery: Gallery = (),
    targets: Mapping[tuple[str, int], Path] | None = None,
    artifacts: Sequence[Path] = (),
    patience: float = PATIENCE,
) -> None:
    """Log a whole campaign from its results folder: what ``robustkd track`` does. Doing it again changes nothing.

    Raises:
        TrackingError: MLflow did not take it.
    """
    tracker = MlflowTracker(folder, campaign, warn=lambda message: None, patience=patience)
    tracker.finish(results, gallery=gallery, targets=targets, artifacts=artifacts, force=True)
    if tracker.problem:
        raise TrackingError(
            f"MLflow did not take the campaign: {tracker.problem}",
            fix="check MLFLOW_TRACKING_URI and that the server answers, then track again",
        )


def _of(gallery: Gallery, cell: CellResult) -> Sequence[Item]:
    """What there is to show of a cell."""
    if callable(gallery):
        return gallery(cell)
    key = (cell.defense, cell.attack, cell.seed)
    return [item for item in gallery if (item.defense, item.attack, item.seed) == key]


def _shown(gallery: Gallery, cell: CellResult) -> Attach | None:
    """What uploads a cell's images and transcripts; None when there are none."""
    if not callable(gallery) and not _of(gallery, cell):
        return None

    def attach(book: RunStore, run_id: str) -> None:
        from robustkd.tracking import transcripts
        from robustkd.tracking.images import save_sheet

        items = _of(gallery, cell)
        requests = requests_of(items)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "examples.png")
            if save_sheet(items, path):
                book.client.log_artifact(run_id, str(path), "images")
            if requests:
                book.client.log_text(run_id, transcripts.table(requests), transcripts.FILE)
                book.show_as_table(run_id, transcripts.FILE)

    return attach


def _is_transient(error: Exception) -> bool:
    """Whether trying again may help: the store is away or overloaded, and did not refuse what it was given."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, OSError) or _is_of_a_connection(error):  # every exception of requests is a kind of OSError
        return True
    if isinstance(error, MlflowException):
        if _is_of_something_else(error):
            return False
        cause = error.__cause__
        status = error.get_http_status_code()
        return status in (408, 429) or status >= 500 or (isinstance(cause, Exception) and _is_of_a_connection(cause))
    return False


def _is_of_something_else(error: MlflowException) -> bool:
    """Whether what answered is no MLflow, such as a page to log in: MLflow's client takes that for an error of the server."""
    from mlflow.protos.databricks_pb2 import ErrorCode

    code = str(getattr(error, "json", {}).get("error_code") or "")
    return (
        code != "" and not code.isdigit() and code not in set(ErrorCode.keys())
    ) or "not in a valid JSON format" in error.message


def _is_of_a_connection(error: Exception) -> bool:
    """Whether a database was lost, is locked or is only starting, rather than that it did not take what it was given.

    MLflow tells it by an error of its own, but for a connection that is lost when it takes a transaction back.
    """
    errors = sys.modules.get("sqlalchemy.exc")  # it is not loaded where there is a server
    if errors is None:
        return False
    lost = isinstance(error, errors.DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, (errors.OperationalError, errors.InterfaceError, errors.TimeoutError))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
