"""The HTML page: what each part of the template needs, gathered here so that the template only lays out."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from typing import Any

from markupsafe import Markup

from robustkd.reporting import formatting, frameworks, palette, training_sets, weakest
from robustkd.reporting.analyses import measures, shown_tables
from robustkd.reporting.confusion import confusions
from robustkd.reporting.detection import detection_rows, detection_terms
from robustkd.reporting.environment import TEMPLATES, environment
from robustkd.reporting.gallery import GalleryItem, Item, by_defense, requests_of
from robustkd.reporting.grid import grid, incomplete_cells
from robustkd.reporting.pairwise import main_pairs
from robustkd.reporting.plots import Plot, Series, curve, plot
from robustkd.reporting.presentation import presentation, terms_of
from robustkd.reporting.published import SETTING, references
from robustkd.reporting.queries import query_curves, query_plots
from robustkd.reporting.samples import SampleEvidence, broken_by, class_table, listing
from robustkd.reporting.searches import convergence, convergence_by_sample, norms, strength
from robustkd.reporting.set_up import SetUp, attack_rows, defense_rows, facts
from robustkd.reporting.summary import DefenseSummary, attack_names, cells_by_pair, curve_of, mean_curve, seeds_of
from robustkd.reporting.tradeoff import shown_defenses, tradeoff
from robustkd.reporting.training_sets import training_set_rows
from robustkd.reporting.verdict_text import NO_VERDICT, CheckRow, VerdictText, answer, check_rows, explain
from robustkd.reporting.weakest import weakest_rows
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.unfinished import is_headline

OPEN_ROWS = 24
"""Longer tables start folded."""
MOST_ROWS = 1000
"""Of cells: a browser takes seconds over 10,000."""
TOLD_CELLS = 600
"""Larger heat maps have no hover text."""
MOST_PLOTS = 24


@dataclass(frozen=True)
class Section:
    """What the page shows of one defense, over its seeds.

    Attributes:
        references, gates: of its meter: the robust accuracies of the undefended rows, and what its gates ask for.
    """

    anchor: str
    row: DefenseSummary
    story: VerdictText
    trained: tuple[DefenseResult, ...]
    checks: tuple[CheckRow, ...]
    history: tuple[Plot, ...]
    references: tuple[float, ...] = ()
    gates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What one defense, or several together, took: seconds and passes."""

    defense: str
    train_seconds: float
    attack_seconds: float
    forwards: int
    backwards: int
    check_forwards: int = 0
    check_backwards: int = 0

    @property
    def added(self) -> float | None:
        """Passes of the checks as a share of the attacks' passes."""
        attacks = self.forwards + self.backwards
        return (self.check_forwards + self.check_backwards) / attacks if attacks else None


def page(
    results: Results,
    summaries: Sequence[DefenseSummary],
    gallery: Sequence[Item],
    evidence: SampleEvidence,
    set_up: SetUp | None = None,
) -> str:
    """The whole report as one HTML document that loads nothing; the arguments are those of ``write_report``."""
    set_up = set_up or SetUp()
    known = {row.defense: row.robust_accuracy for row in summaries}
    undefended = tuple(at for name in results.undefended if (at := known.get(name)) is not None)
    sections = [_section(results, row, index, undefended) for index, row in enumerate(summaries, 1)]
    rows = grid(results)
    drawn = shown_defenses(summaries)
    drawn_names = [row.defense for row in drawn]
    curves, attack_curves = _defense_curves(results, drawn), _attack_curves(results, drawn)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    html: str = _template().render(
        results=results,
        answer=answer(results, summaries),
        terms=terms_of(results),
        sections=sections,
        anchors={section.row.defense: section.anchor for section in sections},
        facts=facts(results),
        several_seeds=len(seeds_of(results)) > 1,
        unfinished=sum(cell.status != "done" for cell in results.cells),
        attacks=attack_names(results),
        attack_rows=attack_rows(results),
        defense_rows=defense_rows(set_up.defenses),
        campaign_file=set_up.campaign_file,
        gates=set_up.gates,
        last_run=set_up.run,
        other_threats=_other_threats(results),
        grid=rows,
        incomplete_cells=incomplete_cells(rows),
        curves=curves,
        attack_curves=attack_curves,
        query_curves=query_curves(results),
        query_plots=query_plots(results, drawn_names)[:MOST_PLOTS],
        convergence=convergence(results, drawn_names),
        converged=convergence_by_sample(results, drawn_names),
        strength=strength(results, drawn_names),
        norm_plots=norms(evidence, drawn_names)[:MOST_PLOTS],
        confusions=confusions(results, evidence, drawn_names),
        lines=list({line.label: line for drawn in attack_curves for line in drawn.lines}.values()),
        gallery=by_defense([item for item in gallery if isinstance(item, GalleryItem)]),
        transcripts=by_defense(requests_of(gallery)),
        agreement=_agreement(results),
        drawn=presentation(results.modality).draws,
        unkept=sum(cell.perturbations == 0 for cell in results.cells if cell.status == "done"),
        tradeoff=tradeoff(drawn, references(results)),
        reference_setting=SETTING,
        uncharted=len(summaries) - len(drawn),
        classes=class_table(results, evidence),
        broken_by=broken_by(evidence),
        listing=listing(evidence, terms_of(results), _other_threats(results)),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        costs=[cost(results, [row.defense]) for row in summaries],
        total=cost(results, [row.defense for row in summaries]),
        pairs=main_pairs(results),
        all_pairs=len(summaries) * (len(summaries) - 1) // 2,
        analyses=shown_tables(results),
        training_sets=training_set_rows(results),
        training_sets_head=training_sets.HEAD,
        training_sets_note=training_sets.NOTE,
        detections=detection_rows(results),
        detection_terms=detection_terms(results),
        weakest=weakest_rows(results),
        weakest_note=weakest.NOTE,
        worst_groups=any(one.worst_group for one in results.defenses),
        measures=measures(results),
        any_remedy=any(row.remedied is not None for row in summaries),
        no_verdict=NO_VERDICT,
        open_rows=OPEN_ROWS,
        cells=shown_cells(results),
        told_cells=TOLD_CELLS,
        frameworks=(framework_rows := frameworks.rows(results)),
        framework_sources=frameworks.sources(framework_rows),
        caveat=frameworks.CAVEAT,
        palette=palette,
    )
    return html


def shown_cells(results: Results) -> list[CellResult]:
    """The rows of the cells' table: all that fit, those without a number first where not all do."""
    if len(results.cells) <= MOST_ROWS:
        return results.cells
    return sorted(results.cells, key=lambda cell: cell.status == "done")[:MOST_ROWS]


@cache
def _template() -> Any:
    """The page's template. Compiling it and those that it includes takes longer than a small page, so they are kept compiled."""
    return environment(TEMPLATES).get_template("report.html.j2")


def _section(results: Results, row: DefenseSummary, index: int, references: tuple[float, ...]) -> Section:
    trained = tuple(item for item in results.defenses if item.defense == row.defense)
    return Section(
        f"defense-{index}",
        row,
        explain(results, row),
        trained,
        tuple(check_rows(trained)),
        tuple(_history(trained)),
        references,
        tuple(g.at_least for g in results.gates if (g.defense, g.metric) == (row.defense, "robust_accuracy")),
    )


def _other_threats(results: Results) -> dict[str, str]:
    """Attacks that ran under another threat model than the campaign's, and which."""
    return {cell.attack: formatting.threat(cell.threat_model) for cell in results.cells if not is_headline(results, cell)}


def _agreement(results: Results) -> dict[str, float]:
    """Of each judge but the first, on what share of all attacked requests it says what the first one says."""
    judges = dict.fromkeys(name for cell in results.cells for name in cell.agreement)
    told = {name: [cell for cell in results.cells if name in cell.agreement] for name in judges}
    return {
        name: sum(cell.agreement[name] * cell.n for cell in cells) / sum(cell.n for cell in cells)
        for name, cells in told.items()
    }


def _defense_curves(results: Results, summaries: Sequence[DefenseSummary]) -> Plot | None:
    terms = terms_of(results)
    series = [
        curve(row.defense, mean_curve(curve_of(item) for item in results.defenses if item.defense == row.defense), terms)
        for row in summaries
    ]
    return _eps_plot(results, "Worst case over the attacks", series)


def _attack_curves(results: Results, summaries: Sequence[DefenseSummary]) -> list[Plot]:
    """One small plot per attack, each defense in the colour it has in the large one."""

    pairs, terms = cells_by_pair(results), terms_of(results)
    plots = []
    for attack in attack_names(results)[:MOST_PLOTS]:
        series = [
            curve(row.defense, mean_curve(curve_of(cell) for cell in pairs.get((row.defense, attack), [])), terms)
            for row in summaries
        ]
        plots.append(_eps_plot(results, attack, series, n_ticks=4))
    return [drawn for drawn in plots if drawn]


def _eps_plot(results: Results, title: str, series: Sequence[Series], n_ticks: int = 6) -> Plot | None:
    return plot(title, series, terms_of(results).axis, mark=results.threat.eps, n_ticks=n_ticks)


def _history(trained: Sequence[DefenseResult]) -> list[Plot]:
    """Training curves: one small plot per recorded number, one line per seed."""
    names = dict.fromkeys(
        key for item in trained for entry in item.history for key in entry if key not in ("epoch", "step", "seconds")
    )
    draw = partial(plot, x_label="epoch", shares=False, n_ticks=4)
    plots = []
    for name in names:
        series = []
        for item in trained:
            points = [
                (entry.get("epoch", entry.get("step", n)), entry[name]) for n, entry in enumerate(item.history) if name in entry
            ]
            series.append(Series(f"seed {item.seed}", [x for x, _ in points], [y for _, y in points]))
        if any(len(line.x) > 1 for line in series):
            plots.append(draw(formatting.words(name), series))
    return [drawn for drawn in plots if drawn]


def cost(results: Results, defenses: Sequence[str]) -> Cost:
    """What these defenses took together; ``defense`` is the name of a single one."""
    cells = [cell for cell in results.cells if cell.defense in defenses]
    trained = [item for item in results.defenses if item.defense in defenses]
    findings = [finding for item in trained for finding in item.checks]
    return Cost(
        defenses[0] if len(defenses) == 1 else "all",
        sum(item.train_seconds for item in trained),
        sum(cell.wall_seconds for cell in cells),
        sum(cell.forward_passes for cell in cells),
        sum(cell.backward_passes for cell in cells),
        sum(finding.forward_passes for finding in findings),
        sum(finding.backward_passes for finding in findings),
    )
