"""What a person reads on an MLflow page: the number, the verdict beside it, and the evidence, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robustkd.contracts.check import Finding, Verdict
from robustkd.redaction import redacted
from robustkd.reporting import summary_rows
from robustkd.reporting.formatting import bracket, count, counted, epsilon, interval, percent, seconds, shortened, threat
from robustkd.reporting.markdown import escape, verdict_mark
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.transcripts import PromptItem
from robustkd.reporting.verdict_text import answer, sentence
from robustkd.scoring.results import CellResult, DefenseResult, Results

_GAP = "\N{NO-BREAK SPACE}" * 3
EXAMPLES, LONGEST_TEXT = 2, 400
MAX_NOTE = 8000
"""MLflow's longest tag."""

EXPERIMENT = """\
**Does this defense hold?** [Every defense beside its verdict]({defenses}) · [every attack]({cells}) · [means over seeds]({means}) · \
[as charts]({charts}) · [how each moved]({trend}) · [failures]({failures})

A run called *campaign* is one plan. Below it lies one run per attack (`defense × attack · seed`), and one per trained
defense (`defense · worst case · seed`): the share of samples that *no* attack broke. That is the number to quote, and
never without its verdict. A run's colour says how many withstand: green from 90 %, red up to 20 %, yellow between, grey for a higher
number that is not credible.
A run called `defense · over time` has one step for each plan that was executed: open it for its chart.

Filters: `tags."robustkd.kind" = 'defense'` for the worst cases, `params.attack = 'pgd'` for one attack.
`robust_accuracy` counts samples misclassified before the attack as not robust; `ci_low` and `ci_high` bound it (95 %, Wilson).
Of models that are asked (language models, text to image), `clean_accuracy` is usefulness: the share of harmless requests complied with.
"""


def cell(result: CellResult, verdict: Verdict | None, examples: Sequence[PromptItem] = ()) -> str:
    """The note of one attack's run; of an attack on prompts with an example or two."""
    title = f"**{escape(result.attack)}** on **{escape(result.defense)}**, {threat(result.budget)}, seed {result.seed}"
    if result.status != "done":
        return truncate(f"{title}: **{result.status}**, no number.\n\n{_quoted(result.error)}")
    lines = [
        f"{title}: **{percent(result.robust_accuracy)}** robust (95 % interval {interval(result.ci_low, result.ci_high)}) "
        f"of {_samples(result)}; {_unattacked(result)}.",
        f"Verdict on this defense: {verdict_mark(verdict)}." if verdict else "",
        f"Cost: {count(result.forward_passes)} forward and {count(result.backward_passes)} backward passes, "
        f"{seconds(result.wall_seconds)}.",
        *(f"Judge {escape(judge)} agrees on {percent(share)} of the answers." for judge, share in result.agreement.items()),
        *(_example(item) for item in examples[:EXAMPLES]),
    ]
    return truncate("\n\n".join(line for line in lines if line))


def defense(result: DefenseResult) -> str:
    """The note of a trained defense's run: worst case, verdict, evidence."""
    title = f"**{escape(result.defense)}** ({escape(result.kind)}), {threat(result.budget)}, seed {result.seed}"
    if result.robust_accuracy is None:
        return truncate(f"{title}: **{result.status}**, no number.\n\n{_quoted(result.error)}")
    curve = [[epsilon(p.eps), percent(p.robust_accuracy), interval(p.ci_low, p.ci_high)] for p in result.curve]
    others = result.other_threats.items()
    attacks = counted(len(result.attacks), "attack")
    parts = [
        f"{title}: **{percent(result.robust_accuracy)}** robust ({verdict_mark(result.verdict)}) against {attacks} together "
        f"({escape(', '.join(result.attacks))}; 95 % interval {interval(result.ci_low, result.ci_high)}) of "
        f"{_samples(result)}; {_unattacked(result)}.",
        f"{percent(result.unjudged)} of the requests could not be judged." if result.unjudged else "",
        _remedy(result),
        _certified(result),
        *_findings(result.checks),
        _quoted(result.error) if result.error else "",
        table([result.budget.unit, "robust", "95 % interval"], curve) if len(curve) > 1 else "",
        table(["other threat model", "robust"], [[escape(name), percent(share)] for name, share in others]),
    ]
    return truncate("\n\n".join(part for part in parts if part))


def card(results: Results, trained: DefenseResult, gates: Sequence[str], overridden: Sequence[str]) -> str:
    """The robustness card of a trained defense: what it withstands, how that was found out, and on what.

    Args:
        gates: what each of the campaign's gates on it said.
        overridden: what spoke against promoting it.
    """
    of = f"Defense **{escape(trained.defense)}** ({escape(trained.kind)}), seed {trained.seed}, campaign {escape(results.campaign)}"
    cells = {cell.attack: cell for cell in results.cells if (cell.defense, cell.seed) == (trained.defense, trained.seed)}
    alone = [f"{escape(name)} {percent(cells[name].robust_accuracy)}" for name in trained.attacks if name in cells]
    data, environment = results.data, results.environment.to_dict()
    versions = [f"{name} {environment[name]}" for name in ("robustkd", "torch", "python") if name in environment]
    seeds = len({each.seed for each in results.defenses if each.defense == trained.defense})
    rows = [
        ["threat model", threat(trained.budget)],
        ["worst case", f"{percent(trained.robust_accuracy)} (95 % interval {interval(trained.ci_low, trained.ci_high)})"],
        [terms_of(results).clean.lower(), percent(trained.clean_accuracy)],
        ["attacks, each alone", ", ".join(alone)],
        ["verdict", verdict_mark(trained.verdict)],
        ["gates" if seeds == 1 else f"gates, which judge all {seeds} seeds", escape("; ".join(gates) or "none")],
        [
            "samples",
            f"{trained.n}, {escape(data.name)}, sha256 {data.identity[:16]}",
        ],
        ["weights", f"sha256 {trained.target_hash[:16]}" if trained.target_hash else "not known"],
        ["versions", ", ".join(versions)],
    ]
    rows += [["overridden", escape("; ".join(overridden))]] if overridden else []
    parts = (of, table(["", ""], rows), _remedy(trained), _certified(trained), *_findings(trained.checks))
    return "\n\n".join(part for part in parts if part)


def campaign(results: Results) -> str:
    """The note of the parent run: every defense with its number and its verdict."""
    rows = summary_rows(results)
    certified = any(row.brackets for row in rows)
    norm, terms = threat(results.threat_model), terms_of(results)
    lines = [
        [
            escape(row.defense),
            percent(row.clean_accuracy),
            f"**{percent(row.robust_accuracy)}**",
            verdict_mark(row.verdict),
            percent(row.remedied) if row.remedied is not None else "",
            *([bracket(row.certified, row.attacked, row.exact) if row.brackets else ""] if certified else []),
            interval(row.ci_low, row.ci_high),
            escape(row.strongest_attack or ""),
            escape(", ".join(row.fired_checks)),
        ]
        for row in rows
    ]
    head = [
        "defense",
        terms.clean_short.lower(),
        "robust",
        "verdict",
        "with remedy",
        *["certified to attacked"] * certified,
        "95 % interval",
        "strongest attack",
        "checks that fired",
    ]
    failed = [item for item in results.cells if item.status != "done"]
    parts = [
        f"{escape(answer(results, rows))} Threat model {norm}; data {escape(results.data.name)} ({terms.data}).",
        "\n".join(f"- {escape(note)}" for note in results.data.notes),
        table(head, lines),
        f"**{counted(len(failed), 'cell')} without a result:**" if failed else "",
        "\n".join(f"- {escape(c.defense)} × {escape(c.attack)}, seed {c.seed}: {c.status}" for c in failed[:20]),
        "Every cell is in the artefact `cells.json`, the whole story in `report.html`.",
    ]
    return truncate("\n\n".join(part for part in parts if part))


def truncate(text: str, limit: int = MAX_NOTE) -> str:
    """At most ``limit`` characters, cut at a line's end."""
    if len(text) <= limit:
        return text
    ending = "\n\n… (cut here: MLflow keeps no longer notes)"
    kept = text[: limit - len(ending)]
    return (kept.rpartition("\n")[0] or kept) + ending


def _samples(result: CellResult | DefenseResult) -> str:
    return counted(result.n, "forbidden request" if _asked(result) else "sample")


def _unattacked(result: CellResult | DefenseResult) -> str:
    if result.clean_accuracy is None:
        return "the data have no harmless requests, so usefulness is not known"
    share = percent(result.clean_accuracy)
    return f"{share} of the harmless requests are complied with" if _asked(result) else f"{share} are right without an attack"


def _asked(result: CellResult | DefenseResult) -> bool:
    return not result.budget.of_images


def _example(item: PromptItem) -> str:
    """One request with its answer, as a quotation: its line breaks would be Markdown's."""
    told = [
        f"**{escape(item.outcome)}**: {escape(shortened(redacted(item.request), LONGEST_TEXT))}",
        f"asked: {escape(shortened(redacted(item.prompt), LONGEST_TEXT))}" if item.prompt != item.request else "",
        f"said before it: {escape(shortened(redacted(item.conversation), LONGEST_TEXT))}" if item.conversation else "",
        f"the answer was begun with: {escape(shortened(redacted(item.prefill), LONGEST_TEXT))}" if item.prefill else "",
        f"answer: {escape(shortened(redacted(item.output), LONGEST_TEXT))}" if item.output else "",
    ]
    return "\n>\n".join(f"> {line}" for line in told if line)


def _findings(checks: Sequence[Finding]) -> list[str]:
    fired = [finding for finding in checks if finding.fired]
    lines = [
        f"- **{escape(finding.name)}** ({finding.severity}): {escape(sentence(finding))}"
        + (f" *Fix:* {escape(finding.fix)}" if finding.fix else "")
        for finding in fired
    ]
    lines += [
        f"- **{escape(finding.name)}** (not run): {escape(finding.reason)}"
        for finding in checks
        if finding.outcome == "not run"
    ]
    quiet = [finding.name for finding in checks if finding.outcome == "quiet"]
    away = [finding.name for finding in checks if finding.outcome == "does not apply"]
    told = f"Did not fire: {escape(', '.join(quiet))}." if quiet else ""
    told += f" Did not apply: {escape(', '.join(away))}." if away else ""
    return ["\n".join(lines), told.strip()]


def _remedy(result: DefenseResult) -> str:
    if result.remedy is None:
        return ""
    named = escape(", ".join(result.remedy.names) or "none of which could be used here")
    return (
        f"With the attacks that the checks call for ({named}): **{percent(result.remedy.robust_accuracy)}** "
        f"(95 % interval {interval(result.remedy.ci_low, result.remedy.ci_high)})."
    )


def _certified(result: DefenseResult) -> str:
    """What is proved of a trained defense; empty where nothing is."""
    found = result.bracket
    if found is None:
        return ""
    between = bracket(found.certified, found.attacked, found.exact)
    wrong = (
        f" **{counted(found.contradicted, 'sample')} certified and broken: one of the two is wrong.**"
        if found.contradicted
        else ""
    )
    return (
        f"Certified to attacked, by {escape(', '.join(found.analyses))}: **{between}**; {found.open} of {found.n} open.{wrong}"
    )


def _quoted(error: str | None) -> str:
    text = redacted(error or "no reason was given")
    return "\n".join(f"    {line}" for line in text.splitlines())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as MLflow draws it; empty without rows."""
    # MLflow draws tables without any padding; these spaces are kept where plain ones are trimmed.
    lines = ["| " + " | ".join(f"{cell}{_GAP}" for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]]) if len(lines) > 1 else ""
