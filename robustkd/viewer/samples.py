"""The samples of a trained defense as a list, and one sample with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.store import PERTURBATIONS, Entry
from robustkd.contracts import Transcript
from robustkd.redaction import printable
from robustkd.reporting import formatting
from robustkd.reporting.samples import BROKEN, UNJUDGED
from robustkd.reporting.searches import sample_course
from robustkd.reporting.transcripts import Change, changes
from robustkd.scoring.results import DefenseResult
from robustkd.viewer.addresses import Address, address
from robustkd.viewer.data import CleanData
from robustkd.viewer.evidence import SHOWS, AttackedRows, SampleTable
from robustkd.viewer.pictures import change_of, png
from robustkd.viewer.runs import Run
from robustkd.viewer.site import NotFound, Site

PER_PAGE = 50
LONGEST = 6000
"""Characters of a prompt or an answer; transcripts.jsonl has them whole."""
FIRST_CLASSES = 3
"""Classes of the clean and of the perturbed input whose logits are shown."""
PICTURED = 12
"""Attacks of a sample whose pictures are shown at once; the others are behind a click."""


@dataclass(frozen=True)
class Listed:
    """A sample in the list."""

    row: int
    index: int
    label: str
    before: str
    outcome: str
    fell: tuple[str, ...]
    smallest: str
    picture: Address | None


@dataclass(frozen=True)
class Scored:
    """A class with its logit and its probability for the clean and for the perturbed input."""

    name: str
    before: float
    after: float
    share_before: float
    share_after: float


@dataclass(frozen=True)
class Against:
    """What one attack did to one sample.

    Attributes:
        beyond: whether it changed the answer, outside of its budget.
        spent: what it spent of the budget, in words.
        clean, change, adversarial: addresses of the pictures; None where they are not at hand.
        drawn: of a model that draws, the pictures for the request and under attack.
        factor: by how much the change is amplified.
        talk: of a request, what was said.
        scores: the classes that the model put first, before or after, and the true one; empty where logits were not kept.
    """

    attack: str
    outcome: str
    beyond: bool
    counted: bool
    budget: str
    before: str
    after: str
    spent: str
    clean: Address | None = None
    change: Address | None = None
    adversarial: Address | None = None
    drawn: tuple[Address, Address] | None = None
    factor: int = 1
    talk: Talk | None = None
    scores: tuple[Scored, ...] = ()
    verdicts: Mapping[str, bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Talk:
    """A conversation: what was said before, what was asked with what the attack changed of it, and the answer."""

    system: str
    turns: tuple[tuple[str, str], ...]
    asked: tuple[tuple[Change, str], ...]
    prefill: str
    answer: str
    attempts: int
    cut_off: bool


def samples_page(site: Site, wanted: Address) -> str:
    """The samples of ``defense`` with ``seed`` in the campaign ``run``: those of ``show``, of the attack ``by``."""
    run, defense, seed = site.trained(wanted)
    table = table_of(site, run, defense, seed)
    show, by = _filter(table, wanted)
    rows = _rows(site, table, show, by)
    if asked := wanted.get("index").strip().removeprefix("#"):
        rows = rows[table.index[rows] == whole(asked, -1, 2**31)]
    page = whole(wanted.get("page"), 1, max(1, -(-len(rows) // PER_PAGE)))
    shown = rows[(page - 1) * PER_PAGE : page * PER_PAGE]
    data = site.data(run, table.attacks[0].entry)
    return site.render(
        "samples.html.j2",
        wanted,
        run=run,
        title=site.runs.titles()[run.key],
        defense=defense,
        seed=seed,
        seeds=sorted({place.seed for place in run.attacks() if place.defense == defense}),
        table=table,
        samples=[listed_sample(site, run, table, data, int(row)) for row in shown],
        counts={name: len(table.rows(name, by)) for name in SHOWS},
        words=_words(table),
        broken_by={attack.attack: len(table.rows("broken", attack.attack)) for attack in table.attacks},
        show=show,
        by=by,
        page=page,
        pages=max(1, -(-len(rows) // PER_PAGE)),
        found=len(table.rows(show, by)),
        listed=len(rows),
        query=_query(site, run, defense, seed, show, by),
        asked=asked,
        here={"run": run.key, "defense": defense, "seed": seed, "show": show if show != "all" else "", "by": by},
        result=result_of(run, defense, seed),
    )


def sample_page(site: Site, wanted: Address) -> str:
    """One sample, ``n``, in the place that it has in the list of ``show`` and ``by``."""
    run, defense, seed = site.trained(wanted)
    table = table_of(site, run, defense, seed)
    row = whole(wanted.get("n"), -1, len(table.label) - 1)
    if row < 0 or str(row) != wanted.get("n"):
        raise NotFound(f"'{defense}' has {len(table.label)} samples, counted from 0, and no '{wanted.get('n')}'")
    show, by = _filter(table, wanted)
    rows = _rows(site, table, show, by)
    place = int(np.searchsorted(rows, row))
    inside = place < len(rows) and rows[place] == row
    data = site.data(run, table.attacks[0].entry)
    query, result = _query(site, run, defense, seed, show, by), result_of(run, defense, seed)
    return site.render(
        "sample.html.j2",
        wanted,
        run=run,
        title=site.runs.titles()[run.key],
        defense=defense,
        seed=seed,
        sample=listed_sample(site, run, table, data, row),
        table=table,
        against=against_all(site, run, table, data, row),
        pictured=PICTURED,
        missing_data=data.missing if table.of_images else "",
        request=_request(site, table, row),
        query=query,
        position=place + 1 if inside else None,
        listed=len(rows),
        previous=int(rows[place - 1]) if place > 0 else None,
        following=int(rows[place + inside]) if place + inside < len(rows) else None,
        page=place // PER_PAGE + 1,
        clean=_picture(run, table.attacks[0].entry, row, "clean") if table.of_images and data.image(row) is not None else None,
        others=_others(run, defense, seed),
        result=result,
        course=sample_course(result, int(table.index[row])) if result else None,
    )


def picture(site: Site, wanted: Address) -> bytes:
    """A picture of a sample as PNG: ``which`` is ``clean``, ``change`` or ``adversarial``, or ``drawn`` of what a model drew before.

    Raises:
        NotFound: it is not at hand.
    """
    run = site.run(wanted)
    entry = run.entry(wanted.get("cell"))
    row, which = whole(wanted.get("row"), -1, 2**31), wanted.get("which")
    if entry is not None and row >= 0:
        adversarial = site.inputs.row(entry, row) if which in ("change", "adversarial") else None
        clean = site.data(run, entry).image(row) if which in ("clean", "change") else None
        if which == "drawn":
            clean = site.inputs.row(entry, row, "clean")
        shown = clean if which in ("clean", "drawn") else adversarial
        if which == "change" and clean is not None and adversarial is not None and clean.shape == adversarial.shape:
            shown = change_of(clean, adversarial).perturbation()
        elif which == "change":
            shown = None
        if shown is not None and shown.ndim == 3:
            return png(shown)
    raise NotFound("this picture was not kept")


def _query(site: Site, run: Run, defense: str, seed: int, show: str, by: str) -> dict[str, object]:
    """What the address of a sample says beside its number: an export has one page of each, whichever list leads there."""
    of = {"run": run.key, "defense": defense, "seed": seed}
    return of if site.exported else of | {"show": show if show != "all" else "", "by": by}


def against_all(site: Site, run: Run, table: SampleTable, data: CleanData, row: int) -> list[Against]:
    """What each attack did to one sample, those that broke it first."""
    breakers = table.breakers(row)
    order = sorted(table.attacks, key=lambda attack: attack not in breakers)
    budgets = _budgets(run)
    return [_against(site, run, table, data, attack, budgets.get(attack.attack, ""), row) for attack in order]


def table_of(site: Site, run: Run, defense: str, seed: int) -> SampleTable:
    """The samples of a trained defense.

    Raises:
        NotFound: no attack on it is finished.
    """
    table = site.table(run, defense, seed)
    if table is None:
        raise NotFound(
            f"no attack on '{defense}' with seed {seed} is stored in {run.folder.name}: its cells are not there, or not finished",
            fix="robustkd run makes them",
        )
    return table


def _filter(table: SampleTable, wanted: Address) -> tuple[str, str]:
    """What is shown, and by which attack."""
    show, by = wanted.get("show", "all"), wanted.get("by")
    return show if show in SHOWS else "all", by if by in {attack.attack for attack in table.attacks} else ""


def _rows(site: Site, table: SampleTable, show: str, by: str) -> np.ndarray:
    rows = table.rows(show, by)
    return rows if site.most_samples is None else rows[rows < site.most_samples]


def whole(text: str, low: int, high: int) -> int:
    """A whole number of an address within bounds; the lower one where it is none."""
    digits = text if text.isascii() and text.isdigit() and len(text) < 10 else str(low)
    return max(low, min(int(digits), high))


def _words(table: SampleTable) -> dict[str, str]:
    images = table.of_images
    return {
        "all": "all",
        "broken": "broken",
        "standing": "standing",
        "unfit": "wrong from the start" if images else "not counted",
        "unjudged": "not judged",
        "disputed": "judges disagree",
    }


def _outcome(table: SampleTable, state: int, row: int) -> str:
    if not table.eligible[row]:
        return "unfit"
    return "broken" if state == BROKEN else "unjudged" if state == UNJUDGED else "standing"


def listed_sample(site: Site, run: Run, table: SampleTable, data: CleanData, row: int) -> Listed:
    """A sample as lists have it."""
    breakers = table.breakers(row)
    outcome = _outcome(table, int(table.state()[row]), row)
    kept = next((attack for attack in [*breakers, *table.attacks] if _kept(attack.entry, row)), None)
    shown = site.with_harmful or table.of_images
    return Listed(
        row,
        int(table.index[row]),
        data.name(int(table.label[row]), table.of_images),
        "" if table.before is None else data.name(int(table.before[row])),
        outcome,
        tuple(attack.attack for attack in breakers),
        _smallest(table, row),
        _picture(run, kept.entry, row, "adversarial") if kept and table.of_images and shown else None,
    )


def _smallest(table: SampleTable, row: int) -> str:
    """The smallest change that any attack of the worst case fooled the model with, also beyond the budget; the fewest attempts."""
    if not table.eligible[row]:
        return ""
    fooled = [attack for attack in table.counted if _fooled(table, attack, row)]
    smallest = min(fooled, key=lambda attack: float(attack.spent[row]), default=None)
    if smallest is None:
        return ""
    beyond = "" if smallest.state[row] == BROKEN else ", outside the budget"
    return f"{_spent(smallest, row)} by {smallest.attack}{beyond}"


def _fooled(table: SampleTable, attack: AttackedRows, row: int) -> bool:
    """Whether an attack changed the answer, inside its budget or not."""
    if attack.state[row] == BROKEN or attack.after is None:
        return bool(attack.state[row] == BROKEN)
    return bool(attack.after[row] != table.label[row] and np.isfinite(attack.spent[row]))


def _against(site: Site, run: Run, table: SampleTable, data: CleanData, attack: AttackedRows, budget: str, row: int) -> Against:
    told = Against(
        attack.attack,
        _outcome(table, int(attack.state[row]), row),
        bool(table.eligible[row] and attack.state[row] != BROKEN and _fooled(table, attack, row)),
        attack.counted,
        budget,
        "" if table.before is None else data.name(int(table.before[row])),
        "" if attack.after is None else data.name(int(attack.after[row])),
        _spent(attack, row),
    )
    if not table.of_images:
        return _asked(site, run, told, attack, row)
    if not _kept(attack.entry, row):
        return told
    clean, adversarial = data.image(row), site.inputs.row(attack.entry, row, verified=False)
    told = replace(told, scores=_scores(site, data, table, attack, row))
    if adversarial is None or adversarial.ndim != 3:
        return told
    both = clean is not None and clean.shape == adversarial.shape
    return replace(
        told,
        clean=_picture(run, table.attacks[0].entry, row, "clean") if both else None,
        change=_picture(run, attack.entry, row, "change") if both else None,
        adversarial=_picture(run, attack.entry, row, "adversarial"),
        factor=change_of(clean, adversarial).factor if both and clean is not None else 1,
    )


def _logits(site: Site, table: SampleTable, attack: AttackedRows, row: int) -> np.ndarray | None:
    """(2, K) float32, the logits of a row's clean and perturbed input; None where they were not kept, or are damaged.

    Where they give the classes that the checked samples.parquet has, the file that they are in is not read to its end: of fifty attacks
    that took most of a page's time. Its pictures are shown only after it was.
    """
    logits = site.inputs.row(attack.entry, row, "logits", verified=False)
    if logits is None or logits.ndim != 2 or len(logits) != 2 or not np.isfinite(logits).all():
        return None
    classes = [-1 if side is None else int(side[row]) for side in (table.before, attack.after)]
    if all(0 <= k < logits.shape[1] and side[k] == side.max() for k, side in zip(classes, logits, strict=True)):
        return logits
    return site.inputs.row(attack.entry, row, "logits")


def _scores(site: Site, data: CleanData, table: SampleTable, attack: AttackedRows, row: int) -> tuple[Scored, ...]:
    """The logits of the classes that matter to one sample, the highest after the attack first."""
    logits, label = _logits(site, table, attack, row), int(table.label[row])
    if logits is None:
        return ()
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    first = {int(place) for side in logits for place in np.argsort(-side)[:FIRST_CLASSES]} | (
        {label} if label < logits.shape[1] else set()
    )
    return tuple(
        Scored(data.name(place, True), *(float(values[side, place]) for values in (logits, shares) for side in (0, 1)))
        for place in sorted(first, key=lambda place: -logits[1, place])
    )


def _asked(site: Site, run: Run, told: Against, attack: AttackedRows, row: int) -> Against:
    """What one attack made of a request; of what was said and drawn nothing where harmful content is left out."""
    said = site.transcripts(attack.entry)
    one = said[row] if row < len(said) else None
    told = replace(told, verdicts=one.verdicts if one else {})
    if not site.with_harmful:
        return told
    drawn = None
    if _kept(attack.entry, row):
        drawn = (_picture(run, attack.entry, row, "drawn"), _picture(run, attack.entry, row, "adversarial"))
    return replace(told, talk=_talk(one) if one else None, drawn=drawn)


def _talk(said: Transcript) -> Talk:
    turns = tuple((printable(str(turn[0]), LONGEST), printable(str(turn[1]), LONGEST)) for turn in said.turns if len(turn) == 2)
    return Talk(
        printable(said.system, LONGEST),
        turns,
        tuple(changes(said.request, said.prompt, LONGEST)),
        printable(said.prefill, LONGEST),
        printable(said.output, LONGEST),
        said.attempts,
        said.cut_off,
    )


def _request(site: Site, table: SampleTable, row: int) -> str:
    """What is wanted of a request; "" of images, and where harmful content is left out."""
    if table.of_images or not site.with_harmful:
        return ""
    said = site.transcripts(table.attacks[0].entry)
    return printable(said[row].request, LONGEST) if row < len(said) else ""


def _kept(entry: Entry, row: int) -> bool:
    """Whether the input of a row was kept, by what the cell notes."""
    if not entry.has(PERTURBATIONS) or not isinstance(entry.meta, AttackMeta):
        return False
    return entry.meta.kept is None or row < entry.meta.kept


def _picture(run: Run, entry: Entry, row: int, which: str) -> Address:
    return address("image", run=run.key, cell=entry.meta.id, row=row, which=which)


def _budgets(run: Run) -> dict[str, str]:
    """The threat model of each attack, in words; of none before there are results."""
    results = run.results
    first = {cell.attack: cell for cell in reversed(results.cells)} if results else {}
    return {attack: formatting.threat(cell.threat_model) for attack, cell in first.items()}


def _spent(attack: AttackedRows, row: int) -> str:
    value = float(attack.spent[row])
    if attack.norm is None:
        return formatting.counted(int(value), "attempt")
    norm = float(attack.norm[row])
    own = f" (in its own norm {formatting.number(norm, 3)})" if np.isfinite(norm) and abs(norm - value) > 1e-6 else ""
    return f"{formatting.number(value, 3)}{own}"


def result_of(run: Run, defense: str, seed: int) -> DefenseResult | None:
    """The numbers of a trained defense; None before there are any."""
    results = run.results
    found = results.defenses if results else []
    return next((item for item in found if (item.defense, item.seed) == (defense, seed)), None)


def _others(run: Run, defense: str, seed: int) -> list[tuple[str, int]]:
    """The other defenses with the same seed: the same sample is one click away."""
    names = dict.fromkeys(place.defense for place in run.attacks() if place.seed == seed and place.defense != defense)
    return [(name, seed) for name in names]
