"""The report as Markdown: the same tables, for a README, an issue or a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from robustkd.reporting import frameworks, training_sets, weakest
from robustkd.reporting.analyses import Measures, ShownTable, measures, shown_tables
from robustkd.reporting.detection import detection_rows, detection_terms
from robustkd.reporting.formatting import MISSING, bracket, count, interval, number, percent, seconds, threat
from robustkd.reporting.grid import grid, incomplete_cells
from robustkd.reporting.pairwise import points, probability, sentences
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.queries import query_curves
from robustkd.reporting.set_up import SetUp, attack_rows, defense_rows, facts
from robustkd.reporting.summary import DefenseSummary, attack_names
from robustkd.reporting.terms import ReportTerms
from robustkd.reporting.training_sets import training_set_rows
from robustkd.reporting.verdict_text import NO_VERDICT, answer, explain
from robustkd.reporting.weakest import weakest_rows
from robustkd.scoring.holds import ANSWERS
from robustkd.scoring.results import Results

SIGNS = {"credible": "", "suspect": "⚠️ ", "not credible": "⚠️ "}
"""Of a number, not of the defense: what can be believed is no praise."""
READING = (
    "A robust accuracy is an upper bound. {} The worst case is taken per sample over the attacks. "
    "W-Robust is the mean of {} and worst-case robust accuracy, NRR their harmonic mean. "
    "Holds: against the campaign's gates and its undefended row; each defense's paragraph says why. "
    "With remedy: what is left when the stronger attacks that the checks call for are added. "
    "With several seeds, accuracies are means and an interval is the envelope of the seeds' own 95 % Wilson intervals."
)


def markdown(
    results: Results,
    summaries: Sequence[DefenseSummary],
    figures: Sequence[str] = (),
    set_up: SetUp | None = None,
) -> str:
    """The whole report; ``figures`` are file names beside it, ``set_up`` is as for ``write_report``."""
    set_up = set_up or SetUp()
    norm, terms = threat(results.threat_model), terms_of(results)
    parts = [
        f"# {escape(results.campaign)}: does this defense hold?",
        f"Threat model {norm}; data {escape(results.data.name)} ({terms.data}). {escape(answer(results, summaries))}",
        _summary(summaries, terms),
        "\n".join(f"- {escape(gate)}" for gate in set_up.gates),
        *(
            f"**{escape(row.defense)}** ({verdict_mark(row.verdict)}). {escape(explain(results, row).paragraph)}"
            for row in summaries
        ),
        _set_up(results, set_up),
        f"## Robust accuracy, defense by attack\n\n{_grid(results)}",
        _weakest(results),
        _training_sets(results),
        _detection(results),
        _by_queries(results),
        _measures(measures(results)),
        *(_analysis(shown) for shown in shown_tables(results)),
        _versus(results),
        *(f"![{name.removesuffix('.png')}]({name})" for name in figures),
        f"## Cells\n\n{_cells(results)}",
        "\n".join(f"- {escape(one.sentence)}." for one in results.served),
        _frameworks(results),
        f"## How to read this\n\n{READING.format(' '.join(terms.notes), terms.clean.lower())}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object) -> str:
    """Text that Markdown and the HTML in it leave as it is, on one line."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*\[\]|])", r"\\\1", plain.replace("&", "&amp;").replace("<", "&lt;"))


def verdict_mark(value: str | None) -> str:
    """The verdict on the number; with a sign before it where it is in doubt."""
    return f"{SIGNS[value]}number: {value}" if value else f"❔ {NO_VERDICT}"


def _summary(summaries: Sequence[DefenseSummary], terms: ReportTerms) -> str:
    certified = any(row.brackets for row in summaries)
    rows = (
        [
            escape(row.defense),
            percent(row.clean_accuracy),
            percent(row.robust_accuracy),
            *([bracket(row.certified, row.attacked, row.exact)] if certified else []),
            ANSWERS[row.holds],
            verdict_mark(row.verdict),
            percent(row.remedied) if row.remedied is not None else MISSING,
            interval(row.ci_low, row.ci_high),
            interval(row.spread_low, row.spread_high) if len(row.seeds) > 1 else MISSING,
            percent(row.w_robust),
            percent(row.nrr),
            escape(row.strongest_attack or MISSING),
        ]
        for row in summaries
    )
    head = [
        "defense", terms.clean.lower(), "robust accuracy", *["certified to attacked"] * certified, "holds", "verdict", "with remedy",
        "95 % interval", "between seeds", "W-Robust", "NRR", "strongest attack",
    ]  # fmt: skip
    return _table(head, f"lrr{'r' * certified}llrrrrrl", rows)


def _set_up(results: Results, set_up: SetUp) -> str:
    attacks = _table(
        ["attack", "plug-in, version", "parameters", "forward passes a sample", "backward passes a sample", "source"],
        "lllrrl",
        (
            [
                escape(row.name),
                escape(row.plugin or MISSING),
                escape(row.params or MISSING),
                number(row.forwards, 3),
                number(row.backwards, 3),
                escape(row.paper or MISSING),
            ]
            for row in attack_rows(results)
        ),
    )
    defenses = _table(
        ["defense", "kind", "parameters", "source"],
        "llll",
        (
            [escape(row.name), escape(row.kind), escape(row.params or MISSING), escape(row.paper or MISSING)]
            for row in defense_rows(set_up.defenses)
        ),
    )
    run = f"{escape(set_up.run.sentence)}: `{' '.join(set_up.run.command.replace('`', '').split())}`" if set_up.run else ""
    of = "\n".join(f"- {name}: {escape(text)}" for name, text in facts(results).items())
    parts = [of, attacks if attack_names(results) else "", defenses if set_up.defenses else "", run]
    return "\n\n".join(["## Set-up", *filter(None, parts)]) if any(parts) else ""


def _frameworks(results: Results) -> str:
    found = frameworks.rows(results)
    if not found:
        return ""
    lines = (
        [
            escape(f"{row.ran} ({', '.join(row.attacks)})" if row.attacks else row.ran),
            f"**{escape(row.item)}** ({escape(row.source.short)}): {escape(row.about)}",
            escape(row.beyond),
        ]
        for row in found
    )
    table = _table(["run here", "evidence for", "not evidence for"], "lll", lines)
    listed = "\n".join(f"- {escape(source.title)}, <{source.url}>" for source in frameworks.sources(found))
    return f"## What this is evidence for\n\n{frameworks.CAVEAT}\n\n{table}\n\n{listed}"


def _measures(found: Measures) -> str:
    if not found.rows:
        return ""
    lines = ([escape(defense), *values] for defense, values in found.rows)
    table = _table(["defense", *map(escape, found.names)], "l" + "r" * len(found.names), lines)
    spread = " In brackets: the 95 % interval of the mean over the seeds (Student's t)." if found.intervals else ""
    return f"## What the analyses found\n\n{table}\n\nAccuracies and other shares in percent.{spread}"


def _analysis(shown: ShownTable) -> str:
    table = shown.table
    lines = ([escape(name), *(shown.text(value) for value in row)] for name, row in zip(table.rows, table.values, strict=True))
    drawn = _table(["", *map(escape, table.columns)], "l" + "r" * len(table.columns), lines)
    unit = "In percent: " if shown.in_percent else ""
    return f"## {escape(shown.defense)}: {escape(shown.analysis)}\n\n{drawn}\n\n{unit}{escape(table.caption)}."


def _versus(results: Results) -> str:
    rows = (
        [
            f"{escape(pair.a)} − {escape(pair.b)}",
            points(pair.difference),
            f"{100 * pair.ci_low:.1f} to {points(pair.ci_high)}",
            probability(pair.p),
            probability(pair.p_adjusted),
            escape(" ".join(sentences(pair))),
        ]
        for pair in results.claims
    )
    table = _table(["pair", "difference", "95 % interval", "p", "adjusted p", "what these samples can say"], "lrrrrl", rows)
    return f"## Which is better?\n\n{table}" if results.comparisons else ""


def _grid(results: Results) -> str:
    attacks, rows = attack_names(results), grid(results)
    lines = (
        [escape(cells[0].defense), *(percent(cell.value) if cell.value is not None else cell.status for cell in cells)]
        for cells in rows
        if cells
    )
    notes = [
        f"- {escape(cell.defense)}, {escape(cell.attack)}: {cell.status}, {escape(cell.reason)}"
        for cell in incomplete_cells(rows)
    ]
    return "\n\n".join(
        part for part in (_table(["defense", *map(escape, attacks)], "l" + "r" * len(attacks), lines), "\n".join(notes)) if part
    )


def _by_queries(results: Results) -> str:
    curves = query_curves(results)
    asked = sorted({int(point.eps) for curve in curves for point in curve.points})
    if not curves:
        return ""
    lines = []
    for curve in curves:
        at = {int(p.eps): f"{percent(p.robust_accuracy)} ({interval(p.ci_low, p.ci_high)})" for p in curve.points}
        lines.append([escape(curve.defense), escape(curve.attack), *(at.get(queries, MISSING) for queries in asked)])
    table = _table(["defense", "attack", *map(count, asked)], "ll" + "r" * len(asked), lines)
    return (
        f"## Robust accuracy by queries\n\nWhat stands after so many queries on each sample, with its 95 % interval.\n\n{table}"
    )


def _weakest(results: Results) -> str:
    if not (rows := weakest_rows(results)):
        return ""
    table = _table(
        ["defense", "seed", "worst class", "worst group", "groups, clean and attacked"],
        "lrlll",
        (
            [escape(row.defense), str(row.seed), escape(row.worst_class), escape(row.worst_group), escape(row.groups)]
            for row in rows
        ),
    )
    return f"## Worst class\n\n{table}\n\n{weakest.NOTE}"


def _training_sets(results: Results) -> str:
    if not (rows := training_set_rows(results)):
        return ""
    table = _table(list(training_sets.HEAD), "lrrr", ([escape(row.defense), *row.values] for row in rows))
    return f"## Condensed data\n\n{table}\n\n{training_sets.NOTE}"


def _detection(results: Results) -> str:
    if not (rows := detection_rows(results)):
        return ""
    terms = detection_terms(results)
    table = _table(
        ["defense", "attack", *terms.head],
        "ll" + "r" * len(terms.head),
        ([escape(row.defense), escape(row.attack), *row.values] for row in rows),
    )
    return f"## Detectors\n\n{table}\n\n{terms.note}"


def _cells(results: Results) -> str:
    head = [
        "defense", "attack", "seed", "status", "threat", "n", "robust accuracy", "95 % interval", "success rate",
        "median norm", "forward", "backward", "time", "error",
    ]  # fmt: skip
    rows = (
        [
            escape(cell.defense),
            escape(cell.attack),
            str(cell.seed),
            cell.status,
            threat(cell.budget),
            count(cell.n),
            percent(cell.robust_accuracy),
            interval(cell.ci_low, cell.ci_high),
            percent(cell.attack_success_rate),
            number(cell.median_norm, 3),
            count(cell.forward_passes),
            count(cell.backward_passes),
            seconds(cell.wall_seconds),
            escape(cell.error or ""),
        ]
        for cell in results.cells
    )
    return _table(head, "llrllrrrrrrrrl", rows)


def _table(head: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> str:
    rule = ("---:" if side == "r" else "---" for side in align)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, list(rule), *rows))
