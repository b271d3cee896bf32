"""Defenses of several campaigns in one ranking, as far as they can be compared: the same samples, threat model and judge.

What is ranked is the worst case over the attacks of each campaign. A campaign with fewer or weaker attacks leaves more standing, so
their names are part of every row, it is said where attacks of one name are not the same, and a defense whose number must not be believed
has no rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from robustkd.contracts import StoreError
from robustkd.contracts.check import Verdict
from robustkd.contracts.json_value import JsonObject
from robustkd.reporting.formatting import bracket
from robustkd.reporting.summary import cells_by_pair, summary_rows
from robustkd.scoring.holds import Holds
from robustkd.scoring.results import CellStatus, Results


@dataclass(frozen=True)
class Entry:
    """A defense of a campaign; shares in [0, 1], None where there is no number.

    Attributes:
        rank: from 1, by robust accuracy, the same for equal ones; None without a number, or where the number must not be believed.
        campaign: its name, with its folder where several campaigns have that name.
        folder: where the campaign's results are.
        attacks: those behind the robust accuracy.
        settings: for each of these, digests of what it is: ``attack``, of its kind, version and parameters ("" in files that do not say),
            and what ``CellResult.conditions`` has on the first seed.
        certified: of a defense of which something is proved, what is certified and what the attacks leave, in words; else "".
        undefended: whether its campaign takes it for a model without a defense.
        holds, why: whether it holds by its own campaign's gates and undefended rows, None where it cannot be said, and why.
    """

    rank: int | None
    defense: str
    campaign: str
    folder: str
    clean_accuracy: float | None
    robust_accuracy: float | None
    ci_low: float | None
    ci_high: float | None
    attacks: tuple[str, ...]
    settings: tuple[Mapping[str, str], ...]
    verdict: Verdict | None
    status: CellStatus
    seeds: tuple[int, ...]
    certified: str = ""
    undefended: bool = False
    holds: Holds | None = None
    why: str = ""


@dataclass(frozen=True)
class Board:
    """The defenses that can be compared: the data, the threat model, and the entries, best first.

    Attributes:
        judge: the deciding judge; empty for images, and where it was not noted.
        same_attacks: whether all numbers stand behind the same attacks: the same names, and the same settings under each.
        other_settings: the attacks that are called the same for several entries and are not.
    """

    data: str
    n: int
    digest: str
    threat: str
    entries: tuple[Entry, ...]
    judge: str = ""

    @property
    def same_attacks(self) -> bool:
        """Whether all numbers are the worst case over the same attacks."""
        return len({entry.attacks for entry in self.entries}) < 2 and not self.other_settings

    @property
    def other_settings(self) -> tuple[str, ...]:
        """The names of attacks that several campaigns have and that are not the same in all of them, sorted."""
        told: dict[tuple[str, str], dict[str, set[str]]] = {}
        for entry in self.entries:
            for attack, settings in zip(entry.attacks, entry.settings, strict=True):
                for what, digest in settings.items():
                    told.setdefault((attack, what), {}).setdefault(entry.folder, set()).add(digest)
        # Within a campaign it may be another network for each defense, such as a student of the attacked one.
        return tuple(
            sorted(
                {attack for (attack, _), of in told.items() if any(a.isdisjoint(b) for a, b in combinations(of.values(), 2))}
            )
        )

    @property
    def remark(self) -> str:
        """What has to be known when numbers of other attacks are compared; "" where all were attacked alike."""
        if self.same_attacks:
            return ""
        others = self.other_settings
        which = f" ({', '.join(others)}: not the same under one name)" if others else ""
        return f"Not all were attacked alike{which}: fewer or weaker attacks leave more standing."

    @property
    def title(self) -> str:
        """What the entries have in common."""
        judged = f", judged by {self.judge}" if self.judge else ""
        return f"{self.data}, n = {self.n}, {self.threat}{judged}"


def results_in(folders: Iterable[Path]) -> dict[Path, Results]:
    """The results of the folders, and of the folders right inside them.

    Raises:
        StoreError: a folder holds none, or they cannot be read.
    """
    found: dict[Path, Results] = {}
    for folder in folders:
        files = [folder / "results.json"] if (folder / "results.json").is_file() else sorted(folder.glob("*/results.json"))
        if not files:
            raise StoreError(
                f"{folder} holds no results.json", fix="name the output folder of a campaign, or the one above several"
            )
        for file in files:
            try:
                found[file.parent] = Results.from_dict(json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{file} cannot be read: {type(error).__name__}: {error}",
                    fix="robustkd run CAMPAIGN writes it again, and computes nothing that is finished",
                ) from error
            except StoreError as error:
                raise StoreError(f"{file}: {error.message}", fix=error.fix) from error
    return found


def boards(found: dict[Path, Results]) -> list[Board]:
    """One ranking for each data, threat model and deciding judge, the largest first."""
    names = unambiguous({folder: results.campaign for folder, results in found.items()})
    groups: dict[tuple[str, int, str, str, str, str], list[Entry]] = {}
    for folder, results in found.items():
        data = results.data
        judge = results.judge
        judged = (judge.kind, json.dumps(judge.to_dict(), sort_keys=True)) if judge else ("", "")
        key = (data.name, data.n, data.digest, results.threat_model.plain, *judged)
        groups.setdefault(key, []).extend(_entries(folder, names[folder], results))
    made = [
        Board(name, n, digest, threat, _ranked(entries), judge)
        for (name, n, digest, threat, judge, _), entries in groups.items()
    ]
    return sorted(made, key=lambda board: -len(board.entries))


def unambiguous(names: Mapping[Path, str]) -> dict[Path, str]:
    """The names of campaigns by their folders; those that several have followed by as much of the folder as tells them apart."""
    folders: dict[str, list[Path]] = {}
    for folder, name in names.items():
        folders.setdefault(name, []).append(folder)
    return {
        folder: name if len(folders[name]) == 1 else f"{name} ({_apart(folder, folders[name])})"
        for folder, name in names.items()
    }


def _apart(folder: Path, others: Sequence[Path]) -> str:
    parts = folder.absolute().parts
    for length in range(1, len(parts)):
        if sum(other.absolute().parts[-length:] == parts[-length:] for other in others) == 1:
            return "/".join(parts[-length:])
    return str(folder)


def _entries(folder: Path, campaign: str, results: Results) -> list[Entry]:
    behind = {item.defense: tuple(sorted(item.attacks)) for item in results.defenses}
    first = {pair: min(cells, key=lambda cell: cell.seed) for pair, cells in cells_by_pair(results).items()}
    what = {name: _digest(attack.to_dict()) for name, attack in results.attacks.items()}

    def settings(defense: str, attack: str) -> dict[str, str]:
        cell = first.get((defense, attack))
        return {"attack": what.get(attack, ""), **(cell.conditions if cell else {})}

    return [
        Entry(
            rank=None,
            defense=row.defense,
            campaign=campaign,
            folder=str(folder),
            clean_accuracy=row.clean_accuracy,
            robust_accuracy=row.robust_accuracy,
            ci_low=row.ci_low,
            ci_high=row.ci_high,
            attacks=behind.get(row.defense, ()),
            settings=tuple(settings(row.defense, attack) for attack in behind.get(row.defense, ())),
            verdict=row.verdict,
            status=row.status,
            seeds=row.seeds,
            certified=bracket(row.certified, row.attacked, row.exact) if row.brackets else "",
            undefended=row.defense in results.undefended,
            holds=row.holds,
            why=row.standing.why,
        )
        for row in summary_rows(results)
    ]


def _digest(content: JsonObject) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _believable(entry: Entry) -> bool:
    return entry.robust_accuracy is not None and entry.verdict in ("credible", "suspect")


def _ranked(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    ordered = sorted(entries, key=lambda entry: (not _believable(entry), -(entry.robust_accuracy or 0.0)))
    ranks: dict[float | None, int] = {}
    for place, entry in enumerate(ordered, start=1):
        ranks.setdefault(entry.robust_accuracy, place)  # those that are believed come first, so a tie is among them
    return tuple(replace(entry, rank=ranks[entry.robust_accuracy] if _believable(entry) else None) for entry in ordered)
