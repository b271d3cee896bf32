"""Campaigns from Python: run one, load its results, write its report, compare two. The command line is not needed for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from robustkd.application import session
from robustkd.application.gallery import gallery_items
from robustkd.application.progress import Progress, progress_observer
from robustkd.application.samples import sample_evidence
from robustkd.application.set_up import set_up
from robustkd.campaigns.comparison import compare as comparing
from robustkd.campaigns.comparison import snapshot
from robustkd.campaigns.comparison.compare import ComparedCampaigns
from robustkd.campaigns.execution import profile as profiles
from robustkd.campaigns.execution import record
from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.file import presets, spec
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.results import results_file
from robustkd.campaigns.results.inventory import sample_tables
from robustkd.campaigns.store.store import Store
from robustkd.contracts import DataError, PluginError, Precision, StoreError, UsageError
from robustkd.reporting import ReportFiles, write_report
from robustkd.scoring.results import Results
from robustkd.scoring.tabular import dataframe


def run(
    campaign: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    profile: str | Path | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    batch_size: int | None = None,
    max_hours: float | None = None,
    redo: str | Sequence[str] = (),
    track: bool | None = None,
    progress: Callable[[Progress], object] | Observer | None = None,
) -> Results:
    """Run a campaign, or what is left of it, as ``robustkd run`` does: train, attack, judge, report.

    What is finished in the folder already is not done again. A cell that fails is told in the results, it raises nothing
    (``Results.incomplete``). Stopped by ``KeyboardInterrupt``, or by an error that ``progress`` raises, the run keeps what is
    finished, and goes on from there when it is called again.

    Args:
        campaign: a campaign file, a preset's name (``quickstart``), the text of a campaign file (more than one line), or its keys as
            a mapping. Paths in a text or a mapping are relative to the working directory.
        out: the results folder; by default ``runs/<name of the campaign>``.
        profile: a profile's file: where and how to run. The arguments below win over it.
        workers: child processes; by default one a core, or one a GPU; 0 runs everything in this process.
        device: ``cpu``, ``cuda:1`` or any other that torch knows, several as ``cuda:0,cuda:1``; by default an accelerator.
        precision: in which attacks take gradients: ``full``, or ``bf16``.
        batch_size: the most samples that a model is attacked on at once; by default the campaign's, else 256. No number depends on it,
            except that a model that draws random numbers draws others.
        max_hours: stops after so long.
        redo: names of defenses, attacks or analyses that are done again though they are finished, with what stands on them.
        track: whether MLflow is written to; by default what the profile says, which is yes without one.
        progress: is called with each event (``print`` shows them), or an observer.

    Raises:
        UsageError: with every problem of the campaign, each with its place and its fix.
        StoreError: the folder cannot be written, or another run is using it.
    """
    loaded = _campaign(campaign)
    folder = Path(out) if out is not None else loaded.default_folder
    how = profiles.load(Path(profile) if profile is not None else None).overridden(
        workers=workers, device=device, precision=precision, batch_size=batch_size, max_hours=max_hours, track=track
    )
    observers = [] if progress is None else [progress if isinstance(progress, Observer) else progress_observer(progress)]
    names = [redo] if isinstance(redo, str) else redo
    results = session.run(loaded, folder, how, redo=names, observers=observers, warn=_warn)
    return replace(results, folder=folder)


def load(folder: str | Path) -> Results:
    """The results of a campaign that was run.

    Args:
        folder: its results folder or the name of one below ``runs``, the results.json in it, or the campaign (a file, a preset), whose
            folder is ``runs/<name>``.

    Raises:
        UsageError: there is no such thing.
        StoreError: it holds no results, or they cannot be read.
    """
    path = Path(folder)
    if (named := snapshot.folder_named(str(folder))) is not None:
        return results_file.read(named / results_file.RESULTS)
    if path.suffix == ".json":
        return results_file.read(path)
    return results_file.read(_campaign(folder).default_folder / results_file.RESULTS)


def samples(results: str | Path | Results) -> Any:
    """What became of each sample: a ``pandas.DataFrame`` with a row for each sample, attack, defense and seed.

    Its columns are those of ``robustkd store export``.

    Args:
        results: what ``run`` or ``load`` returned, or what ``load`` takes.

    Raises:
        StoreError: the cells that the numbers are made of are not there.
    """
    loaded = _results(results)
    tables = list(sample_tables(loaded, Store(loaded.folder))) if loaded.folder else []
    if not tables:
        raise StoreError(
            f"the cells behind the numbers of '{loaded.campaign}' are not there, so nothing is known of its samples",
            fix="load() a results folder that has its 'cells', or run() the campaign again",
        )
    return dataframe(pa.concat_tables(tables).to_pydict())


def report(results: str | Path | Results, out: str | Path | None = None) -> ReportFiles:
    """Write report.html, report.md, report.tex and the figures.

    Args:
        results: what ``run`` or ``load`` returned, or what ``load`` takes. Where the samples behind the numbers cannot be read, the
            report is without them, and a warning says why.
        out: the folder that is written to; by default the results folder.

    Raises:
        UsageError: the results are stored nowhere, and no folder is given.
    """
    loaded = _results(results)
    if loaded.folder is None:
        if out is None:
            raise UsageError("these results are stored nowhere", fix="say where the report goes: report(results, out)")
        return write_report(loaded, Path(out))
    try:
        plan, store = planning.build(run_before(loaded.folder)), Store(loaded.folder)
        gallery, evidence = gallery_items(plan, store), sample_evidence(plan, store)
        said = set_up(plan.campaign, loaded.folder, loaded)
    except (DataError, PluginError, StoreError, UsageError) as error:
        warnings.warn(f"the report is without its samples: {error.message}", stacklevel=2)
        return write_report(loaded, Path(out or loaded.folder))
    return write_report(loaded, Path(out or loaded.folder), gallery, evidence, said)


def compare(a: str | Path | Results, b: str | Path | Results, *, match: Mapping[str, str] | None = None) -> ComparedCampaigns:
    """What changed from campaign A to B, tested on the samples that both were attacked on.

    Args:
        a, b: what ``run`` or ``load`` returned, a results folder, its results.json, a baseline file, or a campaign.
        match: from a defense's name in A to its name in B; by default those that are called the same.

    Raises:
        UsageError: there is no such thing, or they have no defense in common.
        StoreError: it cannot be read.
    """
    return comparing.compare(_snapshot(a), _snapshot(b), match)


def _campaign(given: str | Path | Mapping[str, Any]) -> Campaign:
    if isinstance(given, Mapping):
        try:
            text = yaml.dump(dict(given), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        except yaml.representer.RepresenterError as error:
            what = type(error.args[1]).__name__ if len(error.args) > 1 else "a value"
            raise UsageError(f"the campaign holds a {what}", fix="use numbers, texts, lists, mappings and paths") from error
        return spec.from_text(text, "the campaign", Path.cwd())
    if isinstance(given, str) and "\n" in given:
        return spec.from_text(given, "the campaign", Path.cwd())
    return spec.load(given)


class _Dumper(yaml.SafeDumper):
    """YAML of what people put into a mapping: paths, and numbers of NumPy."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))
_Dumper.add_multi_representer(np.floating, lambda dumper, number: dumper.represent_float(float(number)))
_Dumper.add_multi_representer(np.integer, lambda dumper, number: dumper.represent_int(int(number)))


def _results(given: str | Path | Results) -> Results:
    return given if isinstance(given, Results) else load(given)


def _snapshot(given: str | Path | Results) -> snapshot.Snapshot:
    if not isinstance(given, Results):
        return snapshot.read(str(given))
    if given.folder is None:
        raise UsageError(
            "these results are stored nowhere, so their samples cannot be compared", fix="load() them from a folder"
        )
    return snapshot.read(str(given.folder))


def folder_of(reference: str) -> Path:
    """The folder that a person names: itself, one below ``runs`` by its name, or the results folder of a campaign (file or preset).

    Raises:
        UsageError: there is no such folder.
    """
    folder = snapshot.folder_named(reference)
    if folder is None and (Path(reference).is_file() or reference in presets.names()):
        folder = spec.load(reference).default_folder
    if folder is None or not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder or reference}",
            fix=(None if folder else presets.meant(reference)) or "name the folder that campaigns were run into, or run one",
        )
    return folder


def campaign_named(reference: str, out: Path | None = None) -> tuple[Campaign, Path]:
    """The campaign that a person names, and its results folder: ``out``, else the one that is named, else ``runs/<name>``.

    Args:
        reference: a campaign file, a preset, a results folder, or the name of one below ``runs``.

    Raises:
        UsageError: there is no such campaign.
    """
    folder = snapshot.folder_named(reference)
    if folder is None:
        campaign = spec.load(reference)
        return campaign, out or campaign.default_folder
    if not (folder / snapshot.CAMPAIGN).is_file():
        raise UsageError(
            f"{folder} holds no {snapshot.CAMPAIGN}",
            fix="name the output folder of one campaign, or a campaign file",
        )
    return run_before(folder), out or folder


def run_before(folder: Path) -> Campaign:
    """The campaign that a results folder is of; the files that it names are where they were when it was run."""
    text = folder / snapshot.CAMPAIGN
    if not text.is_file():
        raise StoreError(f"{folder} holds no {snapshot.CAMPAIGN}")
    noted = folder / record.RECORD
    home = Path(record.read(noted).folder) if noted.is_file() else folder
    return spec.from_text(text.read_text(encoding="utf-8"), str(text), home)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
