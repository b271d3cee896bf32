"""What became of each test sample in a finished campaign, for comparing it with another: from its store, or a baseline file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustkd.campaigns.comparison import baseline
from robustkd.campaigns.execution.record import changed_since
from robustkd.campaigns.file import presets, spec, yaml_source
from robustkd.campaigns.file.document.document import GateSpec
from robustkd.campaigns.results.attack_result import clean_shares
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.contracts import StoreError, UsageError
from robustkd.contracts.check import Verdict
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.contracts.threat import Goal, ThreatModel
from robustkd.scoring.intervals import count_of
from robustkd.scoring.results import Results
from robustkd.scoring.summaries import AttackSummary, JudgeSummary
from robustkd.scoring.worst_case import worst_case

CLEAN, WORST = "clean accuracy", "worst case"
"""What stands in the place of an attack's name; no attack can be called so, for the blank."""

RESULTS, CAMPAIGN = "results.json", "campaign.yaml"


@dataclass(frozen=True)
class Row:
    """One share of a trained defense, and the samples behind it.

    Attributes:
        attack: an attack's name, ``CLEAN`` or ``WORST``.
        norm, eps: the threat model; those of ``CLEAN`` say nothing.
        n, held: samples, and how many of them count as held: no whole number, if the defense draws random numbers.
        samples: (n,) bool, which, or shares in [0, 1] if the defense draws random numbers; None where only the numbers are known.
        conditions: as in ``CellResult``.
    """

    defense: str
    attack: str
    seed: int
    norm: str
    eps: float
    n: int
    held: float
    samples: np.ndarray | None = None
    goal: Goal = "untargeted"
    where: Mapping[str, Any] | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of samples that held, in [0, 1]."""
        return self.held / self.n if self.n else 0.0

    @property
    def threat(self) -> str:
        """The threat model that it was measured under, in words."""
        return ThreatModel.stored(self.norm, self.eps, self.goal, self.where).plain

    def under(self, other: Row) -> bool:
        """Whether both were measured under one threat model."""
        own, others = ((row.norm, row.eps, row.goal, row.where) for row in (self, other))
        return self.attack == CLEAN or own == others


@dataclass(frozen=True)
class Snapshot:
    """A campaign's outcome, sample by sample.

    Attributes:
        origin: where it was read from.
        index: (n,) positions of the samples in their data set; None where no sample is known.
        rows: by defense, attack and seed.
        headline: by defense and seed, the attacks that its worst case is taken over.
        verdicts, targets: by defense and seed; of the latter the hash.
        settings, judges: what each attack and judge is, by its name, the deciding judge first; older files do not say.
        results: of a campaign's output; None for a baseline file.
        folder: of a campaign's output.
        changed: files that the run read and that are other ones now, so that its numbers may not be those of today's model.
    """

    origin: str
    campaign: str
    data: baseline.TestSamples
    index: np.ndarray | None
    rows: dict[tuple[str, str, int], Row]
    headline: dict[tuple[str, int], tuple[str, ...]]
    verdicts: dict[tuple[str, int], Verdict | None] = field(default_factory=dict)
    targets: dict[tuple[str, int], str | None] = field(default_factory=dict)
    settings: Mapping[str, AttackSummary] = field(default_factory=dict)
    results: Results | None = None
    folder: Path | None = None
    changed: tuple[str, ...] = ()
    judges: Mapping[str, JudgeSummary] = field(default_factory=dict)

    @property
    def gates(self) -> tuple[GateSpec, ...]:
        """The gates of the campaign file that lies beside the results."""
        file = self.folder / CAMPAIGN if self.folder else None
        return spec.load(file).gates if file is not None and file.is_file() else ()

    @property
    def source(self) -> yaml_source.Source:
        """The campaign file with its lines: the one that was run, if it was not edited since, else its copy beside the results."""
        copy = self.folder / CAMPAIGN if self.folder else None
        if copy is None or not copy.is_file():
            return yaml_source.Source(self.origin, {})
        text, named = yaml_source.read(copy), Path(self.origin)
        same = named.suffix in (".yaml", ".yml") and named.is_file() and yaml_source.read(named) == text
        return yaml_source.parse(text, str(named if same else copy))

    @property
    def outdated(self) -> str:
        """Why the numbers may not be those of the models that are there now; empty where nothing speaks for it."""
        return f"{' and '.join(self.changed)} changed since {self.origin} was run: run it again" if self.changed else ""

    @property
    def defenses(self) -> list[str]:
        """Their names, in the campaign's order."""
        return list(dict.fromkeys(defense for defense, _ in self.headline))

    def seeds(self, defense: str) -> list[int]:
        """The seeds with which a defense was trained, in the campaign's order."""
        return [seed for name, seed in self.headline if name == defense]

    def attacks(self, defense: str, seed: int) -> list[str]:
        """The attacks that have a number on a trained defense."""
        return [
            attack for name, attack, known in self.rows if (name, known) == (defense, seed) and attack not in (CLEAN, WORST)
        ]

    def worst(self, defense: str, seed: int, attacks: Sequence[str]) -> Row | None:
        """The worst case over ``attacks``: None when one of them is missing, or the samples that it takes are not known."""
        known = self.rows.get((defense, WORST, seed))
        if known is not None and set(attacks) == set(self.headline[defense, seed]):
            return known
        parts = [self.rows.get((defense, attack, seed)) for attack in attacks]
        bits = [part.samples for part in parts if part is not None and part.samples is not None]
        if not parts or len(bits) < len(parts) or parts[0] is None:
            return None
        return _held(replace(parts[0], attack=WORST), worst_case(bits))


def folder_named(reference: str) -> Path | None:
    """The output folder that a person names: itself, or ``runs/<name>`` where no file and no preset has that name; else None."""
    path = Path(reference)
    if path.is_dir():
        return path
    beside = Path("runs", reference)
    plain = len(path.parts) == 1 and not path.exists() and reference not in presets.names()
    return beside if plain and beside.is_dir() else None


def read(reference: str, out: Path | None = None) -> Snapshot:
    """The snapshot that a person names: a campaign (file or preset; its output is ``out`` or ``runs/<name>``), an output folder
    or its name below ``runs``, its ``results.json``, or a baseline file.

    Raises:
        UsageError: there is no such thing.
        StoreError: it cannot be read.
    """
    if (named := folder_named(reference)) is not None:
        return _of_folder(named, reference)
    path = Path(reference)
    if path.suffix == ".json":
        content = _json(path)
        return _of_baseline(content, reference) if baseline.VERSION_KEY in content else _of_folder(path.parent, reference, path)
    campaign = spec.load(reference)
    folder = out or campaign.default_folder
    if not (folder / RESULTS).is_file():
        raise UsageError(
            f"{folder} holds no {RESULTS} of '{campaign.name}'", fix="robustkd run it first, or name its folder with --out"
        )
    return _of_folder(folder, reference)


def to_baseline(snapshot: Snapshot) -> dict[str, JsonValue]:
    """What a baseline file of it holds.

    Raises:
        StoreError: its samples are not known.
    """
    if snapshot.results is None or snapshot.index is None:
        raise StoreError(
            f"{snapshot.origin}: the cells behind its numbers are gone, and a baseline needs every sample",
            fix="name the output folder that still has its 'cells', or run the campaign again",
        )
    bits = {key: row.samples for key, row in snapshot.rows.items() if row.samples is not None and row.attack != WORST}
    return baseline.content(snapshot.results, snapshot.data, snapshot.index, bits)


def _of_folder(folder: Path, origin: str, file: Path | None = None) -> Snapshot:
    raw = _json(file or folder / RESULTS)
    try:
        results = Results.from_dict(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{file or folder / RESULTS} is no results file of robustkd: {error}",
            fix="name an output folder, its results.json or a baseline file",
        ) from error
    store, index = Store(folder), None
    rows: dict[tuple[str, str, int], Row] = {}
    for cell in results.cells:
        if cell.status != "done" or cell.robust_accuracy is None:
            continue
        held = count_of(cell.robust_accuracy, cell.n)
        row = Row(
            cell.defense,
            cell.attack,
            cell.seed,
            cell.norm,
            cell.eps,
            cell.n,
            held,
            goal=cell.goal,
            where=cell.where,
            conditions=cell.conditions,
        )
        n = cell.n if results.n_clean is None else results.n_clean
        clean = replace(row, attack=CLEAN, n=n, held=count_of(cell.clean_accuracy or 0.0, n))
        if entry := store.get(cell.cell_id):
            outcome = samples.read(entry).outcome
            index = outcome.index
            row = _held(row, outcome.robust_share)
            clean = _held(clean, clean_shares(entry, outcome.clean_share, results.modality))
        rows[cell.defense, cell.attack, cell.seed] = row
        if clean.n and cell.clean_accuracy is not None:
            rows.setdefault((cell.defense, CLEAN, cell.seed), clean)
    headline: dict[tuple[str, int], tuple[str, ...]] = {}
    verdicts: dict[tuple[str, int], Verdict | None] = {}
    targets: dict[tuple[str, int], str | None] = {}
    for item in results.defenses:
        key = (item.defense, item.seed)
        headline[key], verdicts[key], targets[key] = tuple(item.attacks), item.verdict, item.target_hash
        if item.robust_accuracy is None:
            continue
        held, goal = count_of(item.robust_accuracy, item.n), results.threat.goal
        worst = Row(item.defense, WORST, item.seed, item.norm, item.eps, item.n, held, goal=goal, where=item.where)
        parts = [rows.get((item.defense, attack, item.seed)) for attack in item.attacks]
        known = [part.samples for part in parts if part is not None and part.samples is not None]
        whole = known and len(known) == len(parts)
        rows[item.defense, WORST, item.seed] = _held(worst, worst_case(known)) if whole else worst
    data = baseline.TestSamples(results.data.name, results.data.n, results.data.identity)
    return Snapshot(
        origin,
        results.campaign,
        data,
        index,
        rows,
        headline,
        verdicts,
        targets,
        results.attacks,
        results,
        folder,
        tuple(changed_since(folder)),
        results.judges,
    )


def _of_baseline(content: JsonObject, origin: str) -> Snapshot:
    known = baseline.parse(content, origin)
    rows: dict[tuple[str, str, int], Row] = {}
    for (defense, attack, seed), bits in known.samples.items():
        norm, eps, goal, where = known.threats.get(attack, ("", 0.0, "untargeted", None))
        noted = known.conditions.get((defense, attack, seed), {})
        row = Row(defense, attack, seed, norm, eps, len(bits), 0, goal=goal, where=where, conditions=noted)
        rows[defense, attack, seed] = _held(row, bits)
    snapshot = Snapshot(
        origin,
        known.campaign,
        known.data,
        known.index,
        rows,
        known.headline,
        known.verdicts,
        known.targets,
        known.attacks,
        judges=known.judges,
    )
    for (defense, seed), attacks in known.headline.items():
        if worst := snapshot.worst(defense, seed, attacks):
            rows[defense, WORST, seed] = worst
    return snapshot


def _held(row: Row, bits: np.ndarray) -> Row:
    return replace(row, n=len(bits), held=float(bits.sum()), samples=bits)


def _json(path: Path) -> JsonObject:
    fix = "name a campaign, an output folder, its results.json or a baseline file"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise UsageError(f"{path} cannot be read: {told}", fix=fix) from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no results", fix=fix)
    return content
