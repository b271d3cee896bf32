"""A campaign as a user runs it: the plan run, followed on the terminal, tracked in MLflow and written up."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustkd import plugins
from robustkd.campaigns import plan as planning
from robustkd.campaigns import run as running
from robustkd.campaigns.cells import Cell
from robustkd.campaigns.collect import collect
from robustkd.campaigns.gallery import gallery_items
from robustkd.campaigns.plan import Plan
from robustkd.campaigns.spec import Campaign
from robustkd.campaigns.store import Store
from robustkd.cli.progress import follower
from robustkd.contracts import StoreError
from robustkd.report import ReportFiles, write_report
from robustkd.scoring.results import CellResult, Results
from robustkd.tracking import MlflowTracker, rebuild, tracking_uri


def run(campaign: Campaign, folder: Path, *, workers: int | None, device: str, track: bool, quiet: bool) -> Results:
    """Run a campaign into ``folder``, with everything around it."""
    plan = planning.build(campaign)
    engine = plugins.load("engines", "local")(workers)
    observers: list[running.Observer] = [] if quiet else [follower(sys.stderr)]
    if track:
        observers.append(_Tracking(plan, folder))
    observers.append(_Reporting(plan, folder))
    # The report is an artefact of the tracked run, so it is written first; tracking ends last.
    observers.sort(key=lambda observer: isinstance(observer, _Tracking))
    return running.run(plan, folder, engine, device=device, observers=observers)


def report(campaign: Campaign, folder: Path) -> ReportFiles:
    """Write the report of what is stored in ``folder``."""
    plan, results = _stored(campaign, folder)
    return write_report(results, folder, gallery_items(plan, Store(folder)))


def track(campaign: Campaign, folder: Path) -> str:
    """Write what is stored in ``folder`` to MLflow; returns where to."""
    plan, results = _stored(campaign, folder)
    tracking = _Tracking(plan, folder)
    rebuild(
        tracking.tracker,
        results,
        params=tracking.params,
        galleries=tracking.galleries(),
        targets=tracking.targets(),
        artifacts=tracking.artifacts(),
    )
    return tracking_uri(folder)


def _stored(campaign: Campaign, folder: Path) -> tuple[Plan, Results]:
    plan = planning.build(campaign)
    store = Store(folder)
    if not running.finished_cells(plan, store):
        raise StoreError(f"{folder} holds no finished cell of this campaign", fix="robustkd run it first, or name its folder with --out")
    return plan, collect(plan, store, {})
