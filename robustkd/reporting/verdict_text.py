"""Words for a verdict, made from the numbers and findings of a defense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustkd.contracts.check import Finding
from robustkd.reporting.formatting import THIN, count, counted, evidence, listed, percent, words
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.summary import SEVERITY_WORST_FIRST, DefenseSummary, fired, headline_attacks, not_run
from robustkd.scoring.holds import STANDINGS, Holds
from robustkd.scoring.results import DefenseResult, Results
from robustkd.scoring.unfinished import is_headline
from robustkd.scoring.verdict import RULES, unexamined

NO_VERDICT = "no verdict"
MAX_NUMBERS = 6
MAX_NAMES = 4
HOLDS: dict[Holds | None, str] = {"yes": "Yes", "in part": "In part", "no": "No", None: "It cannot be said"}
"""The answers to "does this defense hold?", as sentences begin."""


@dataclass(frozen=True)
class Reason:
    """A check that fired, over the seeds: ``finding`` is the first seed's, ``seeds`` those it fired on."""

    finding: Finding
    seeds: tuple[int, ...]
    sentence: str

    @property
    def evidence(self) -> dict[str, str]:
        """The numbers behind it, as text."""
        return evidence_rows(self.finding)


@dataclass(frozen=True)
class CheckRow:
    """A check's outcome, with the seeds on which outcome and evidence read the same."""

    finding: Finding
    seeds: tuple[int, ...]

    @property
    def outcome(self) -> str:
        """`fired`, `quiet`, `does not apply` or `not run`."""
        return self.finding.outcome

    @property
    def text(self) -> str:
        """The check's explanation if it fired, or the reason why it does not apply or was not run."""
        if self.outcome in ("does not apply", "not run"):
            return self.finding.reason
        return self.finding.explanation if self.finding.fired else ""  # it tells of a symptom that is not there

    @property
    def evidence(self) -> dict[str, str]:
        """The numbers behind it, as text."""
        return evidence_rows(self.finding) if self.outcome in ("fired", "quiet") else {}


@dataclass(frozen=True)
class VerdictText:
    """One defense: what the attacks left standing, what fired, and what follows."""

    attacks: str
    reasons: tuple[Reason, ...]
    conclusion: str
    remedy: str = ""
    unrun: str = ""
    unjudged: str = ""
    certified: str = ""
    standing: str = ""

    @property
    def paragraph(self) -> str:
        """All of it as one paragraph."""
        told = (reason.sentence for reason in self.reasons if reason.finding.severity != "info")
        return " ".join(
            part
            for part in (
                self.standing,
                self.attacks,
                self.certified,
                self.unjudged,
                *told,
                self.conclusion,
                self.unrun,
                self.remedy,
            )
            if part
        )


def explain(results: Results, summary: DefenseSummary) -> VerdictText:
    """The verdict on one defense in words: attacks, checks that fired, conclusion, remedy."""
    trained = [item for item in results.defenses if item.defense == summary.defense]
    reasons = tuple(_reasons(trained))
    conclusion = _conclusion(results, summary, trained)
    unjudged = (
        f"Of {percent(summary.unjudged)} no answer could be judged: they do not count as robust." if summary.unjudged else ""
    )
    return VerdictText(
        _attacks(results, summary, trained),
        reasons,
        conclusion,
        remedy_text(summary, trained),
        _unrun(trained),
        unjudged,
        certified_text(summary),
        standing_text(summary),
    )


def standing_text(summary: DefenseSummary) -> str:
    """Whether a defense holds and why; empty where it has no number."""
    if summary.robust_accuracy is None:
        return ""
    told = f"It {STANDINGS[summary.holds]}" if summary.holds else "Whether it holds cannot be said"
    return f"{told}: {summary.standing.why.replace(' %', f'{THIN}%')}."


def remedy_text(summary: DefenseSummary, trained: Sequence[DefenseResult]) -> str:
    """What the attacks that the checks named left, and why they were stopped where they were."""
    if summary.remedied is None:
        return ""
    if not summary.remedies:
        return "None of the attacks that the checks call for could be used here."
    if summary.remedied == summary.robust_accuracy:
        told = f"The attacks that the checks call for ({listed(list(summary.remedies))}) break no further sample."
    else:
        steps = [f"{name} leaves {percent(left)}" for name, left in summary.remedies.items()]
        told = f"The attacks that the checks call for, one after the other: {listed(steps)}."
    stopped = {item.remedy.stopped: None for item in trained if item.remedy and item.remedy.stopped}
    return " ".join([told, *(f"They were stopped, and stronger ones might still break more: {why}." for why in stopped)])


def certified_text(summary: DefenseSummary) -> str:
    """What is proved of a defense; empty where no analysis proves anything."""
    if not summary.brackets:
        return ""
    names = listed(list(dict.fromkeys(name for one in summary.brackets for name in one.analyses)))
    error = max(one.error for one in summary.brackets)
    sure = f", each with an error of at most {error:g}," if error else ""
    if summary.exact:
        told = f"{percent(summary.certified)} is the exact robust accuracy on these samples: {names} decides every one."
    else:
        told = f"{names} certifies {percent(summary.certified)}{sure} and {percent(summary.attacked)} are not known to be breakable."
    spent = sum(one.passes_on_certified for one in summary.brackets)
    if saved := sum(one.passes_saved for one in summary.brackets):
        return (
            f"{told} The attacks left certified samples alone, which saved about {count(saved)} passes; they spent {count(spent)} on "
            "some of them, to put the certificates to the test."
        )
    return f"{told} The attacks spent {count(spent)} passes on samples that are certified." if spent else told


def answer(results: Results, summaries: Sequence[DefenseSummary]) -> str:
    """The campaign's answer to "does this defense hold?": in a word for each, and how far to believe it."""
    samples = terms_of(results).samples
    tally = [
        (sum(row.verdict == verdict for row in summaries), verdict or "without a verdict")
        for verdict in ("credible", "suspect", "not credible", None)
    ]
    parts = [f"{n} {'is' if n == 1 else 'are'} {verdict}" for n, verdict in tally if n]
    if not parts:
        return "This campaign has no defense."
    if len(summaries) == 1:
        return _single(summaries[0], samples)
    told = f"{which_hold(results, summaries)} Of {len(summaries)} robust accuracies, {listed(parts)}."
    believed = [row for row in summaries if row.verdict == "credible" and row.robust_accuracy is not None]
    if not believed:
        return told
    best = max(believed, key=lambda row: row.robust_accuracy or 0.0)
    return f"{told} The highest credible one is {best.defense}: {percent(best.robust_accuracy)} of the {samples} withstand every attack."


def which_hold(results: Results, summaries: Sequence[DefenseSummary]) -> str:
    """Which defenses of a campaign hold: by name, or how many where they are many."""
    rows = (
        (f"{row.defense} (undefended)" if row.defense in results.undefended else row.defense, row.holds) for row in summaries
    )
    return names_that_hold(rows, MAX_NAMES)


def names_that_hold(defenses: Iterable[tuple[str, Holds | None]], most: int | None = None) -> str:
    """`Yes: a and b. No: c (undefended).`, with the names of at most ``most`` for each answer, and else their number."""
    found: dict[Holds | None, list[str]] = {}
    for name, holds in defenses:
        found.setdefault(holds, []).append(name)
    return " ".join(
        f"{word}: {listed(names) if most is None or len(names) <= most else counted(len(names), 'defense')}."
        for standing, word in HOLDS.items()
        if (names := found.get(standing))
    )


def _single(row: DefenseSummary, samples: str) -> str:
    if row.robust_accuracy is None:
        return f"{row.defense} has no robust accuracy yet."
    told = f"{HOLDS[row.holds]}: {percent(row.robust_accuracy)} of the {samples} withstand every attack on {row.defense}"
    return f"{told}; that number is {row.verdict}." if row.verdict else f"{told} so far; {NO_VERDICT}."


def evidence_rows(finding: Finding) -> dict[str, str]:
    """A finding's numbers as text, without the sentence that tells them."""
    return {_told(key): evidence(value) for key, value in finding.evidence.items() if key != "explanation"}


def _told(key: str) -> str:
    """The key of a piece of evidence in words."""
    told = words(key)
    for short, whole in (("ci low", "95 % from"), ("ci high", "to"), ("dead share", "no gradient,")):
        told = told.replace(short, whole)
    return told


def check_rows(trained: Sequence[DefenseResult]) -> list[CheckRow]:
    """Every check, one after the other; seeds that say the same share a row."""
    rows: dict[tuple[object, ...], CheckRow] = {}
    for name in dict.fromkeys(finding.name for item in trained for finding in item.checks):
        for item in trained:
            for finding in (finding for finding in item.checks if finding.name == name):
                key = (name, finding.outcome, *evidence_rows(finding).items())
                seeds = rows[key].seeds if key in rows else ()
                rows[key] = CheckRow(finding, (*seeds, item.seed))
    return list(rows.values())


def sentence(finding: Finding) -> str:
    """What a check that fired has to say: its own explanation, or else its numbers."""
    told = finding.explanation
    if told:
        return told[0].upper() + told[1:] + ("" if told[-1] in ".!?" else ".")
    numbers = list(evidence_rows(finding).items())[:MAX_NUMBERS]
    detail = ", ".join(f"{key} {value}" for key, value in numbers)
    return f"The check {finding.name} fired" + (f" ({detail})." if detail else ".")


def _attacks(results: Results, summary: DefenseSummary, trained: Sequence[DefenseResult]) -> str:
    cells = [cell for cell in results.cells if cell.defense == summary.defense]
    counted_in = headline_attacks(results, trained, cells)
    known = sorted(
        ((value, attack) for attack, value in summary.per_attack.items() if value is not None and attack in counted_in),
        reverse=True,
    )
    if not known:
        return ""
    samples = terms_of(results).samples
    if len(known) == 1:
        return f"{known[0][1]} is the only attack with a result: it leaves {percent(known[0][0])} of the {samples} standing."
    (most, weakest), strongest = known[0], summary.strongest_attack
    least = known[-1][0]
    if most == least:
        told = f"Each of the {len(known)} attacks leaves {percent(most)} of the {samples} standing"
    else:
        told = (
            f"The weakest attack ({weakest}) leaves {percent(most)} of the {samples} standing, "
            f"the strongest ({strongest}) {percent(least)}"
        )
    if summary.robust_accuracy is None:
        return told + "."
    return f"{told}; counted per sample, all {len(known)} together leave {percent(summary.robust_accuracy)}."


def _reasons(trained: Sequence[DefenseResult]) -> list[Reason]:
    reasons = []
    for name in dict.fromkeys(finding.name for finding in fired(trained)):
        hits = [(item.seed, finding) for item in trained for finding in item.checks if finding.fired and finding.name == name]
        seeds = tuple(seed for seed, _ in hits)
        told = sentence(hits[0][1])
        if len(seeds) < len(trained):
            told = f"{told[:-1]} (on {len(seeds)} of {len(trained)} seeds)."
        reasons.append(Reason(hits[0][1], seeds, told))
    # Stable: severe ones stay first, and among equals one that explains itself leads.
    return sorted(reasons, key=lambda r: (SEVERITY_WORST_FIRST.index(r.finding.severity), not r.finding.explanation))


def _conclusion(results: Results, summary: DefenseSummary, trained: Sequence[DefenseResult]) -> str:
    worst = percent(summary.robust_accuracy)
    if summary.verdict is None:
        return _unjudged(results, summary, trained)
    if summary.verdict == "credible":
        return _quiet(trained)
    doubting = [finding for finding in fired(trained) if finding.severity != "info"]
    if not doubting and not_run(trained):
        return f"So the number is {summary.verdict}: nothing that was run speaks against it, but not every check that could was run."
    if summary.robust_accuracy == 0:
        return f"So the evaluation is {summary.verdict}, though its number cannot fall below {worst}."
    if not doubting and (why := _unexamined(trained)):
        return f"So the number is {summary.verdict}: it was not examined ({why})."
    if {finding.doubts for finding in doubting} == {"use"}:
        return f"So the number is {summary.verdict}: it may be right, and may be that of a model of less use."
    below = "far below" if summary.verdict == "not credible" else "below"
    return f"So the number is {summary.verdict}: the true robust accuracy may be {below} {worst}."


def _unexamined(trained: Sequence[DefenseResult]) -> str:
    judged = [item for item in trained if item.verdict_rules == RULES]
    return next((why for item in judged if (why := unexamined(item.checks))), "")


def _former_rules(trained: Sequence[DefenseResult]) -> str:
    former = sorted({item.verdict_rules for item in trained if item.verdict_rules and item.verdict_rules < RULES})
    if not former:
        return ""
    return f"The verdict is by former rules ({former[0]}); 'robustkd report --rejudge' judges by the present ones ({RULES})."


def _quiet(trained: Sequence[DefenseResult]) -> str:
    """How many checks found nothing, and how many never looked."""
    every = {finding.name for item in trained for finding in item.checks}
    ran = {finding.name for item in trained for finding in item.checks if finding.outcome in ("fired", "quiet")}
    if not ran:
        return "No check ran, so nothing but the attacks speaks for the number."
    told = f"{counted(len(ran), 'check')} ran and found no reason to doubt the number"
    if away := every - ran - {finding.name for finding in not_run(trained)}:
        told += f"; {len(away)} did not apply"
    return f"{told}. It stands as an upper bound."


def _unrun(trained: Sequence[DefenseResult]) -> str:
    names = list(dict.fromkeys(finding.name for finding in not_run(trained)))
    unrun = f"{counted(len(names), 'check')} could not be run: {listed(names)}." if names else ""
    return " ".join(part for part in (unrun, _former_rules(trained)) if part)


def _unjudged(results: Results, summary: DefenseSummary, trained: Sequence[DefenseResult]) -> str:
    """What keeps the verdict away: the cells that are missing, or that nothing was asked to look."""
    away = [cell for cell in results.cells if cell.defense == summary.defense and cell.status != "done"]
    headline = [cell for cell in away if is_headline(results, cell)] or away
    named = list(dict.fromkeys(f"{cell.attack} {cell.status}" for cell in headline))
    if not named:
        named = list(dict.fromkeys(f"the defense itself {item.status}" for item in trained if item.status != "done"))
    if named or summary.status != "done":
        return f"There is {NO_VERDICT}: cells missing" + (f" ({', '.join(named[:MAX_NUMBERS])})." if named else ".")
    return f"There is {NO_VERDICT}: no check looked for reasons to doubt the number."
