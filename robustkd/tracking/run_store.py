"""Writing runs to an MLflow store so that writing them again changes nothing.

A run is told apart by its parent and its axes, not by its cell's id: the id of a cell that is still blocked may change
when what it waits for is there. A finished run that carries its record's digest is left alone; any other is completed
where it is: parameters and metric values it already has are not sent again, so a curve never shows a point twice.

Every call is a transaction of the store, and a transaction waits for the disk; so a new run takes four calls and no more.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.contracts import StoreError
from robustkd.contracts.extras import installation
from robustkd.lazy import large_import
from robustkd.scoring.holds import UNKNOWN, standings
from robustkd.scoring.results import Results
from robustkd.scoring.summaries import DataSummary
from robustkd.tracking import descriptions, new_database, trend, views
from robustkd.tracking.location import artifact_location, default_store, local_path
from robustkd.tracking.origin import origin_of, user
from robustkd.tracking.records import (
    Point,
    RunKey,
    RunRecord,
    TrackedCampaign,
    campaign_name,
    measured,
    package_version,
)
from robustkd.tracking.relocation import relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

PARAMS_PER_CALL, METRICS_PER_CALL = 100, 800  # the limits are 100, 1,000, and 1,000 of everything together
RUNS_PER_PAGE = 1000
DIGEST, MODEL, ORIGIN = "robustkd.digest", "robustkd.model_id", "robustkd.results"
MODEL_METRICS = ("robust_accuracy", "ci_low", "ci_high", "clean_accuracy")

Attach = Callable[["RunStore", str], None]
"""``attach(book, run_id)`` uploads a run's artefacts."""
LogModel = Callable[["RunStore", str], str]
"""``model(book, run_id)`` logs a model, or finds it, and returns its id."""


@dataclass
class OpenRun:
    """A run as the store has it, while something is written to it."""

    id: str
    started: int
    status: str = "RUNNING"
    end: int | None = None
    fresh: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    points: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing is being written to it."""
        return self.status in ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True, slots=True)
class EndedRun:
    """What is kept of a run between two times that it is written to: there are as many of them as cells.

    Attributes:
        tags: the names of its tags; equal sets are one object.
    """

    id: str
    started: int
    status: str
    end: int | None
    digest: str
    tags: frozenset[str]


def connect(uri: str) -> MlflowClient:
    """A client of the store, without MLflow's chatter. Takes seconds the first time.

    Raises:
        OSError: a database server does not answer.
        StoreError: the driver of a database is missing.
    """
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    # The tracker tries again by itself, and looks first at what came through; MLflow would send the same request once more.
    for name, value in (quiet | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "GIT_PYTHON_REFRESH": "quiet"}).items():
        os.environ.setdefault(name, value)
    with large_import():
        from mlflow import MlflowClient

    if "://" in uri and not uri.startswith(("sqlite", "http", "file:", "databricks")):
        _ping(uri)

    from mlflow.tracking._tracking_service import utils

    # Within a process MLflow remembers where a run's files are by its id alone, which a copied store has as well.
    getattr(utils, "_artifact_repos_cache", {}).clear()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Here it logs errors that it then raises, some with a traceback, and the tracker says those in a sentence.
    for name in ("mlflow.store.db.utils", "mlflow.exceptions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with large_import():  # of the store's own modules
        return MlflowClient(uri)


def _ping(uri: str) -> None:
    """Connect to a database server once: MLflow's own connecting waits minutes for one that is away."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    try:
        engine = create_engine(uri)
    except ImportError as error:
        raise StoreError(
            f"the driver of this database is not installed: {error}",
            fix=f"{installation('postgresql')}, or the driver's own",
        ) from error
    try:
        engine.connect().close()
    except OperationalError as error:
        raise ConnectionError(f"the database does not answer: {error.orig}") from error
    finally:
        engine.dispose()


class RunStore:
    """The runs of one plan in one results folder: a parent, and its children by ``RunKey``."""

    def __init__(self, uri: str, folder: Path, campaign: TrackedCampaign) -> None:
        database = default_store(folder)
        tables_missing = database is not None and new_database.begin(database)
        if database:
            relocate(folder)
        self.client = connect(uri)
        if database and tables_missing:
            new_database.keep(database)
        self.campaign = campaign
        self.origin = origin_of(folder, campaign.series)
        self.experiment_id = self._experiment(folder, uri)
        self._dataset = _dataset_input(campaign.data)
        runs = list(self._search(f"tags.`robustkd.plan_id` = '{campaign.plan_id}'"))
        parents = [
            run
            for run in runs
            if run.data.tags.get("robustkd.kind") == "campaign" and run.data.tags.get(ORIGIN, "") == self.origin.results
        ]
        self._parent = _known(parents[0]) if parents else self._new_parent()
        children = (run for run in runs if run.data.tags.get("mlflow.parentRunId") == self._parent.id)
        self._tag_names: dict[frozenset[str], frozenset[str]] = {}
        self._children = {_key(run.data.tags): self._kept(_known(run)) for run in children}
        if self._parent.ended and self._parent.tags.get("robustkd.status") != "done":
            self.client.update_run(self._parent.id, status="RUNNING")
            self._parent.status = "RUNNING"

    def put(self, key: RunKey, record: RunRecord, attach: Attach | None = None, model: LogModel | None = None) -> None:
        """Make the child run what the record says."""
        known = self._children.get(key)
        if isinstance(known, EndedRun):
            if known.digest == record.digest:
                return
            known = self._reopened(known, record, alone=model is None)
        run = self._children[key] = known or self._new_child(record)
        self._complete(run, record, attach, model)
        self._children[key] = self._kept(run)

    def put_parent(self, record: RunRecord, attach: Attach | None = None) -> None:
        """Make the parent run what the record says."""
        self._complete(self._parent, record, attach, ended=_now())

    def show_as_table(self, run_id: str, file: str) -> None:
        """Have MLflow's artefact page show a JSON file as a table. Its own log_table appends to what a former run left."""
        self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": file, "type": "table"}]))

    def put_trends(self, results: Results) -> None:
        """Add this execution to the run of each defense that follows it over time."""
        found = self._search("tags.`robustkd.kind` = 'trend'")
        known = {run.data.tags["robustkd.defense"]: _known(run) for run in found}
        tags = {name: run.tags.get(trend.TAG, "") for name, run in known.items()}
        histories = trend.steps(results, self.campaign.plan_id, self.origin.results, tags)
        standing = standings(results)
        for defense, history in histories.items():
            record = trend.trend_record(defense, history, standing.get(defense, UNKNOWN))
            run = known.get(defense) or self._create(record.name, record.tags, history[0].milliseconds)
            self._complete(run, record, None, ended=history[-1].milliseconds, times={s.step: s.milliseconds for s in history})

    def progress(self, key: RunKey, started: RunRecord, points: Sequence[Point]) -> None:
        """Add points to a child that is under way; the first call opens it."""
        run = self._children.get(key)
        if run is None:
            run = self._children[key] = self._new_child(started)
        elif isinstance(run, EndedRun):
            run = self._children[key] = _known(self.client.get_run(run.id))
        self._batch(run, {}, points, {}, None)

    def _kept(self, run: OpenRun) -> OpenRun | EndedRun:
        """A run with no more of it than is needed until it is written to again."""
        if not run.ended:
            return run
        names = frozenset(run.tags)
        names = self._tag_names.setdefault(names, names)
        return EndedRun(run.id, run.started, run.status, run.end, run.tags.get(DIGEST, ""), names)

    def _reopened(self, run: EndedRun, record: RunRecord, *, alone: bool) -> OpenRun:
        """An ended run as the store has it, read again where it does not have the record's parameters and metrics.

        Args:
            alone: whether no model goes with the record.
        """
        if not alone or measured(run.digest) != measured(record.digest):
            return _known(self.client.get_run(run.id))
        points: dict[str, dict[int, float]] = {}
        for point in record.metrics:
            points.setdefault(point.metric, {})[point.step] = point.value
        tags = dict.fromkeys(run.tags, "\0") | {DIGEST: run.digest}  # no tag has that value, so all are written
        return OpenRun(run.id, run.started, run.status, run.end, tags=tags, params=set(record.params), points=points)

    def _complete(
        self,
        run: OpenRun,
        record: RunRecord,
        attach: Attach | None,
        model: LogModel | None = None,
        ended: int | None = None,
        times: Mapping[int, int] | None = None,
    ) -> None:
        digest = record.digest
        if run.ended and run.tags.get(DIGEST) == digest:
            return
        # A run counts as written when it carries the digest and has ended: its end comes last.
        if not run.ended or run.tags.get(DIGEST, "").partition("-")[0] != digest.partition("-")[0]:
            self._upload(run.id, record.files)
            if self._dataset is not None:
                self.client.log_inputs(run.id, [self._dataset])
            if attach:
                attach(self, run.id)
        model_id = model(self, run.id) if model else None
        for name in [
            name for name in run.tags if name.startswith("robustkd.") and name not in (*record.tags, DIGEST, MODEL, ORIGIN)
        ]:
            self.client.delete_tag(run.id, name)
            del run.tags[name]
        tags = record.tags | {DIGEST: digest} | ({MODEL: model_id} if model_id else {})
        self._batch(run, record.params, record.metrics, tags, model_id, times)
        end = ended or run.started + round(1000 * record.seconds)
        if (run.status, run.end) != (record.status, end):
            self.client.set_terminated(run.id, record.status, end)
            run.status, run.end = record.status, end

    def _upload(self, run_id: str, texts: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for target, text in texts.items():
                folder, _, name = target.rpartition("/")
                path = Path(scratch, name)
                path.write_text(text, encoding="utf-8")
                self.client.log_artifact(run_id, str(path), folder or None)

    def _batch(
        self,
        run: OpenRun,
        params: Mapping[str, str],
        points: Sequence[Point],
        tags: Mapping[str, str],
        model_id: str | None,
        times: Mapping[int, int] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now, about = _now(), self._about(model_id)
        # A value that is there already says nothing of a model that was logged after it.
        again = MODEL_METRICS if model_id and run.tags.get(MODEL) != model_id else ()
        news = [
            point
            for point in points
            if point.metric in again or self._recorded(run, point.metric).get(point.step) != point.value
        ]
        metrics = [
            Metric(
                point.metric,
                point.value,
                (times or {}).get(point.step, now),
                point.step,
                **(about if point.metric in MODEL_METRICS else {}),
            )
            for point in news
        ]
        # A parameter cannot be changed once it is there, and sending another value for it fails the whole batch.
        settings = [Param(key, value) for key, value in params.items() if key not in run.params]
        changed = [RunTag(key, value) for key, value in tags.items() if run.tags.get(key) != value]
        if not (metrics or settings or changed):
            return
        rounds = max(-(-len(metrics) // METRICS_PER_CALL), -(-len(settings) // PARAMS_PER_CALL), 1)
        for turn in range(rounds):
            self.client.log_batch(
                run.id,
                metrics[turn * METRICS_PER_CALL : (turn + 1) * METRICS_PER_CALL],
                settings[turn * PARAMS_PER_CALL : (turn + 1) * PARAMS_PER_CALL],
                changed if turn == rounds - 1 else [],
            )
        run.params |= params.keys()
        run.tags |= tags
        for point in news:
            self._recorded(run, point.metric)[point.step] = point.value

    def _about(self, model_id: str | None) -> dict[str, str]:
        """What a metric says of the model and the data it was measured on."""
        if model_id is None:
            return {}
        data = self._dataset.dataset if self._dataset else None
        return {"model_id": model_id} | ({"dataset_name": data.name, "dataset_digest": data.digest} if data else {})

    def _recorded(self, run: OpenRun, metric: str) -> dict[int, float]:
        """The values of a metric that the run has already, by step: the newest of each."""
        if metric not in run.points:
            history = [] if run.fresh else self.client.get_metric_history(run.id, metric)
            run.points[metric] = {entry.step: entry.value for entry in sorted(history, key=lambda entry: entry.timestamp)}
        return run.points[metric]

    def _experiment(self, folder: Path, uri: str) -> str:
        name, location = self.origin.experiment(self.campaign.name), artifact_location(folder, uri)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            if location and (home := local_path(location)):
                home.mkdir(parents=True, exist_ok=True)
            identifier = str(
                self.client.create_experiment(name, location, {"mlflow.experimentKind": "custom_model_development"})
            )
            pages = {view: views.page(identifier, key) for view, key in views.KEYS.items()}
            self.client.set_experiment_tag(identifier, "mlflow.note.content", descriptions.EXPERIMENT.format(**pages))
            return identifier
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        home = local_path(str(found.artifact_location))
        if home is not None and not home.is_dir():
            raise StoreError(
                f"the MLflow experiment '{name}' keeps its files in {home}, which is gone (was the folder moved?)",
                fix="move it back, or delete the folder's mlflow.db and run: robustkd track CAMPAIGN",
            )
        return str(found.experiment_id)

    def _search(self, query: str) -> Iterable[Run]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, max_results=RUNS_PER_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    @property
    def _origin_tag(self) -> dict[str, str]:
        return {ORIGIN: self.origin.results} if self.origin.results else {}

    def _new_parent(self) -> OpenRun:
        tags = {"robustkd.kind": "campaign", "robustkd.plan_id": self.campaign.plan_id, "robustkd.status": "running"}
        # MLflow's saved views show the newest plan: numbers of different plans do not belong in one table.
        for name, view in views.experiment_tags(self.campaign.plan_id, self.origin.results).items():
            self.client.set_experiment_tag(self.experiment_id, name, view)
        tags |= self._origin_tag | {"robustkd.version": package_version()}
        return self._create(campaign_name(self.campaign), tags, _now())

    def _new_child(self, record: RunRecord) -> OpenRun:
        # Begun as long ago as it took, so that MLflow's own duration is the cell's.
        tags = record.tags | self._origin_tag | {DIGEST: record.digest, "mlflow.parentRunId": self._parent.id}
        return self._create(record.name, tags, _now() - round(1000 * record.seconds))

    def _create(self, name: str, tags: dict[str, str], started: int) -> OpenRun:
        tags = tags | {"mlflow.source.name": "robustkd", "mlflow.source.type": "LOCAL", "mlflow.user": user()}
        run = self.client.create_run(self.experiment_id, started, tags, name)
        return OpenRun(run.info.run_id, started, fresh=True, tags=tags)


def _known(run: Run) -> OpenRun:
    status, tags, params = run.info.status, dict(run.data.tags), set(run.data.params)
    return OpenRun(run.info.run_id, run.info.start_time, status, run.info.end_time, tags=tags, params=params)


def _key(tags: Mapping[str, str]) -> RunKey:
    attack = "" if tags.get("robustkd.kind") == "defense" else tags.get("robustkd.attack", "")
    return RunKey(tags.get("robustkd.defense", ""), attack, int(tags.get("robustkd.seed", -1)))


def _dataset_input(data: DataSummary) -> DatasetInput | None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not data.digest:
        return None
    source = json.dumps({"name": data.name, "sha256": data.digest})
    profile = json.dumps({"test_samples": data.n})
    # MLflow keeps at most 36 characters of a digest and shows them all; the tag has it whole.
    dataset = Dataset(data.name, data.digest[:16], "robustkd", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation"), InputTag("robustkd.digest", data.digest)])


def _now() -> int:
    return int(time.time() * 1000)
