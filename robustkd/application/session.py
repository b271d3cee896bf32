"""A campaign as a user runs it: the plan run, written up and tracked in MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from robustkd.application.gallery import cell_gallery, gallery_items
from robustkd.application.samples import SampleCollector, sample_evidence
from robustkd.application.set_up import parameters, set_up
from robustkd.campaigns.execution import run as running
from robustkd.campaigns.execution.accelerators import refusal
from robustkd.campaigns.execution.live import LiveProgress
from robustkd.campaigns.execution.profile import Profile, TrackingSpec
from robustkd.campaigns.execution.record import Recorder
from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.cells import AttackCell, Cell
from robustkd.campaigns.plan.finished import finished_cells, rebuilt_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.attack_result import attack_result
from robustkd.campaigns.results.collect import collect
from robustkd.campaigns.results.data_summary import data_summary
from robustkd.campaigns.results.failure import Failure
from robustkd.campaigns.store.durable import write_text
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.store import Store
from robustkd.contracts import StoreError
from robustkd.redaction import redacted, writable
from robustkd.reporting import Item, ReportFiles, SampleEvidence, class_table, summary_rows, write_report
from robustkd.reporting.latex import latex
from robustkd.reporting.markdown import markdown
from robustkd.reporting.presentation import presentation
from robustkd.scoring.results import CellResult, Results
from robustkd.scoring.verdict import unexamined
from robustkd.tracking import MlflowTracker, TrackedCampaign, rebuild, tracking_uri
from robustkd.tracking.transcripts import MOST

REPORT_NOTE = ".report-note"
VARIABLE = "MLFLOW_TRACKING_URI"
SHOWN = 16
"""Images of an attack that are kept in MLflow."""


def run(
    campaign: Campaign,
    folder: Path,
    profile: Profile,
    *,
    redo: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    warn: Callable[[str], None] | None = None,
) -> Results:
    """Run a campaign into ``folder``, with its record, its report and its run in MLflow.

    Args:
        profile: where and how to run it.
        redo: names of what is done again though it is finished.
        observers: hear of its course, before the record and the report are written.
        warn: hears, from a thread of its own, that a tracking server does not answer; the campaign goes on without it.

    Raises:
        UsageError: there is something to do, and a device of the profile is not on this machine, where the engine runs.
    """
    with _tracked_at(profile.tracking.uri):
        return _run(campaign, folder, profile, redo, observers, warn)


def _run(
    campaign: Campaign,
    folder: Path,
    profile: Profile,
    redo: Sequence[str],
    observers: Sequence[Observer],
    warn: Callable[[str], None] | None,
) -> Results:
    engine = profile.make_engine()
    plan = planning.build(campaign)
    if engine.on_this_machine and (refused := refusal(profile.device)) and (redo or _is_left(plan, folder)):
        raise refused
    # In this order: the tracked run takes the record and the report along, so these are written first.
    live = LiveProgress(folder)
    everyone: list[Observer] = [*observers, Recorder(folder, sys.argv), live, _Reporting(plan, folder)]
    tracking = _Tracking(plan, folder, profile.tracking, warn) if profile.tracking.enabled else None
    if tracking:
        everyone.append(tracking)
    try:
        return running.run(
            plan,
            folder,
            engine,
            device=profile.device,
            precision=profile.precision,
            training_processes=profile.training_processes,
            keep_bytes=profile.keep_bytes,
            batch_size=profile.batch_size,
            redo=redo,
            observers=everyone,
        )
    finally:
        live.close()
        if tracking:
            tracking.tracker.close()


def _is_left(plan: Plan, folder: Path) -> bool:
    """Whether a cell has to be run: what is finished is shown on any machine."""
    done = finished_cells(plan, Store(folder)) - rebuilt_cells(plan)
    return not done.issuperset(cell.id for cell in plan.cells)


@contextmanager
def _tracked_at(uri: str | None) -> Iterator[None]:
    """Until the end of the block the MLflow store is the one of the profile, unless MLFLOW_TRACKING_URI names one."""
    if not uri or VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = uri
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def report(campaign: Campaign, folder: Path, *, to: Path | None = None, rejudge: bool = False) -> ReportFiles:
    """Write the report of what is stored in ``folder`` into that folder, or into ``to``; ``rejudge`` as for ``collect``.

    Raises:
        StoreError: there are no results, or the report cannot be written there.
    """
    plan, results, evidence = _stored(campaign, folder, rejudge)
    if to is None or to.resolve() == folder.resolve():
        return _write_report(plan, results, folder, evidence)
    return _written(plan, results, folder, to, evidence)


def printed(campaign: Campaign, folder: Path, form: str, *, rejudge: bool = False) -> str:
    """The report of what is stored in ``folder`` as text: ``markdown``, or the tables as ``latex``; ``rejudge`` as for ``collect``."""
    _, results, evidence = _stored(campaign, folder, rejudge)
    rows = summary_rows(results)
    if form == "markdown":
        return writable(markdown(results, rows, set_up=set_up(campaign, folder, results)))
    return writable(latex(results, rows, class_table(results, evidence), set_up(campaign, folder, results)))


def rejudged(campaign: Campaign, folder: Path) -> list[str]:
    """What becomes of each verdict in ``folder`` under the present rules, and what these cannot say without another attack."""
    (_, former, _), (_, now, _) = _stored(campaign, folder), _stored(campaign, folder, rejudge=True)
    told = []
    for before, after in zip(former.defenses, now.defenses, strict=True):
        name = f"{after.defense} (seed {after.seed})"
        if after.verdict is None:
            told.append(f"{name}: no check has been run, so there is no verdict: robustkd run")
        elif before.verdict_rules != after.verdict_rules or before.verdict != after.verdict:
            open_ = unexamined(after.checks)
            rules = f"{before.verdict} by rules {before.verdict_rules}, {after.verdict} by rules {after.verdict_rules}"
            told.append(f"{name}: {rules}" + (f"; {open_}: robustkd run runs it" if open_ else ""))
    return told


def track(campaign: Campaign, folder: Path) -> str:
    """Write what is stored in ``folder`` to MLflow; returns where to."""
    plan, results, _ = _stored(campaign, folder)
    store = Store(folder)
    rebuild(
        folder,
        _tracked(plan, folder),
        results,
        gallery=_gallery(plan, store),
        targets=_targets(plan, store),
        artifacts=_artifacts(folder),
    )
    return redacted(tracking_uri(folder))


class _Reporting(Observer):
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder

    def finished(self, results: Results) -> None:
        note = self._folder / REPORT_NOTE
        if note.is_file() and note.read_text() == _report_note(self._plan.campaign, self._folder):
            return  # the same results as when it was written
        _write_report(self._plan, results, self._folder, sample_evidence(self._plan, Store(self._folder)))


def _write_report(plan: Plan, results: Results, folder: Path, evidence: SampleEvidence) -> ReportFiles:
    files = _written(plan, results, folder, folder, evidence)
    try:
        write_text(folder / REPORT_NOTE, _report_note(plan.campaign, folder))
    except OSError as error:
        raise _no_report(folder, error) from error
    return files


def _written(plan: Plan, results: Results, folder: Path, to: Path, evidence: SampleEvidence) -> ReportFiles:
    """The report of the results in ``folder``, written into ``to``."""
    try:
        return write_report(results, to, gallery_items(plan, Store(folder)), evidence, set_up(plan.campaign, folder, results))
    except OSError as error:
        raise _no_report(to, error) from error


def _no_report(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the report cannot be written into {folder}: {error.strerror or error}",
        fix="robustkd report CAMPAIGN --out RESULTS --to ANOTHER_FOLDER writes it elsewhere; finished cells are kept",
    )


def _report_note(campaign: Campaign, folder: Path) -> str:
    """A hash of the report and of what it was made from. Files' times say nothing of that: folders are copied."""
    files = [folder / name for name in ("results.json", "report.html", "report.md")]
    return digest(
        version("robustkd"),
        campaign.text,
        [sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files],
    )


class _Tracking(Observer):
    def __init__(self, plan: Plan, folder: Path, spec: TrackingSpec, warn: Callable[[str], None] | None) -> None:
        self._plan, self._folder = plan, folder
        # Asked by the tracker when it writes: what waits for a server that is away holds no images.
        self._gallery = _gallery(plan, Store(folder), spec.images)
        self.tracker = MlflowTracker(folder, _tracked(plan, folder, spec.series), warn=warn)

    def started(self, cell: Cell) -> None:
        if cell.kind == "attack":  # there will be a result; a network that is built anew in each run need not bring any
            self.tracker.open()

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        self.tracker.log_progress(cell.defense, cell.seed, epoch, metrics)

    def succeeded(self, cell: Cell, result: CellResult | None) -> None:
        if isinstance(cell, AttackCell) and result is not None:
            self.tracker.log_cell(result, self._gallery)

    def failed(self, cell: Cell, failure: Failure) -> None:
        if isinstance(cell, AttackCell):
            self.tracker.log_cell(attack_result(self._plan, cell, None, None, failure))

    def finished(self, results: Results) -> None:
        self.tracker.finish(
            results,
            gallery=self._gallery,
            targets=_targets(self._plan, Store(self._folder)),
            artifacts=_artifacts(self._folder),
        )


def _tracked(plan: Plan, folder: Path, series: str | None = None) -> TrackedCampaign:
    campaign = plan.campaign
    return TrackedCampaign(
        name=campaign.name,
        plan_id=plan.id,
        text=campaign.text,
        data=data_summary(plan),
        defenses=parameters(campaign.defenses),
        attacks=parameters(campaign.attacks),
        series=series,
        key=folder.resolve().name,
    )


def _gallery(plan: Plan, store: Store, images: int = SHOWN) -> Callable[[CellResult], Sequence[Item]]:
    """What is shown of a cell."""
    cells = {(cell.defense, cell.attack, cell.seed): cell for cell in plan.of("attack")}
    count = _count(plan, images)
    return lambda result: cell_gallery(plan, store, cells[result.defense, result.attack, result.seed], count)


def _count(plan: Plan, images: int) -> int:
    """How many samples of a cell go to MLflow: of requests a whole table, unless nothing is to be shown."""
    return presentation(plan.data.modality).tracked(images, MOST)


def _targets(plan: Plan, store: Store) -> dict[tuple[str, int], Path]:
    return {(cell.defense, cell.seed): store.path(cell.id) for cell in plan.of("train") if store.path(cell.id).is_dir()}


def _artifacts(folder: Path) -> list[Path]:
    figures = ("curves.png", "heatmap.png", "gallery.png", "analyses.png")
    names = ("record.json", "results.json", "report.html", "report.md", "report.tex", *figures)
    return [folder / name for name in names if (folder / name).is_file()]


def _stored(campaign: Campaign, folder: Path, rejudge: bool = False) -> tuple[Plan, Results, SampleEvidence]:
    plan = planning.build(campaign)
    store = Store(folder)
    if not finished_cells(plan, store):
        raise StoreError(
            f"{folder} holds no finished cell of this campaign", fix="robustkd run it first, or name its folder with --out"
        )
    collector = SampleCollector(plan)
    return plan, collect(plan, store, {}, collector.add, rejudge=rejudge), collector.evidence
