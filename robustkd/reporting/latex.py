r"""The report's tables for a paper: LaTeX with booktabs, each table to be taken alone.

``\input`` the file, or copy a table out of it; the preamble needs ``\usepackage{booktabs}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from robustkd.contracts import PixelBudget
from robustkd.reporting import formatting
from robustkd.reporting.grid import grid
from robustkd.reporting.pairwise import main_pairs
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.samples import ClassTable
from robustkd.reporting.set_up import SetUp, attack_rows, defense_rows, facts
from robustkd.reporting.summary import DefenseSummary, attack_names, seeds_of
from robustkd.reporting.verdict_text import NO_VERDICT
from robustkd.scoring.holds import ANSWERS
from robustkd.scoring.results import Results

NONE = "--"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}
NORMS = {"linf": r"L_\infty", "l2": "L_2", "l1": "L_1", "l0": "L_0"}


def latex(
    results: Results,
    summaries: Sequence[DefenseSummary],
    classes: ClassTable | None = None,
    set_up: SetUp | None = None,
) -> str:
    """Summary, defense by attack, pairs, classes and set-up; a table that the campaign has nothing for is left out.

    Args:
        set_up: as for ``write_report``.
    """
    set_up = set_up or SetUp()
    threat, n = _threat(results), max((item.n for item in results.defenses), default=0)
    terms = terms_of(results)
    seeds, certified = len(seeds_of(results)), any(row.brackets for row in summaries)
    over = f", means of {seeds} seeds, the interval their envelope" if seeds > 1 else ""
    tables = [
        _table(
            "summary",
            f"Worst-case robust accuracy in percent under {threat} (n = {n}{over}); 95\\,\\% Wilson intervals.",
            f"lrr{'r' * certified}lrrlll",
            [
                *("Defense", terms.clean_short, "Robust"),
                *["Certified to attacked"] * certified,
                *(r"95\,\% interval", "W-Robust", "NRR", "Strongest attack", "Holds", "Verdict"),
            ],
            (_summary(row, certified=certified) for row in summaries),
        ),
        _table(
            "holds",
            "Whether each defense holds, against the gates of the campaign and its undefended row.",
            r"llp{.6\linewidth}",
            ["Defense", "Holds", "Why"],
            ([escape(row.defense), ANSWERS[row.holds], escape(row.standing.why)] for row in summaries),
        ),
        _table(
            "attacks",
            f"Robust accuracy in percent, defense by attack, under {threat}; the last column is the worst case per sample.",
            "l" + "r" * (len(attack_names(results)) + 1),
            ["Defense", *map(escape, attack_names(results)), "Worst case"],
            (
                [escape(row.defense), *(_points(cell.value) for cell in cells), _points(row.robust_accuracy)]
                for cells, row in zip(grid(results), summaries, strict=True)
            ),
        ),
        _table(
            "pairs",
            "Differences of robust accuracy in percentage points on the same samples, with Tango's 95\\,\\% interval "
            "and McNemar's exact p, as it is and adjusted for all pairs and seeds (Holm); they are about these networks.",
            "lrrrr",
            ["Pair", "Difference", r"95\,\% interval", "$p$", "adjusted $p$"],
            (
                [
                    f"{escape(pair.a)} $-$ {escape(pair.b)}",
                    _signed(pair.difference),
                    f"[{_signed(pair.ci_low)}, {_signed(pair.ci_high)}]",
                    *("$<$ 0.001" if p < 0.001 else f"{p:.3f}" for p in (pair.p, pair.p_adjusted)),
                ]
                for pair in main_pairs(results)
            ),
        ),
    ]
    if classes:
        kept = f" The {len(classes.columns)} weakest." if classes.left_out else ""
        tables.append(
            _table(
                "classes",
                f"Worst-case robust accuracy in percent by {terms.label.lower()}, under {threat}.{kept}",
                "l" + "r" * len(classes.columns),
                ["Defense", *map(escape, classes.columns)],
                ([escape(name), *(_points(cell.robust) for cell in cells)] for name, cells in classes.cells.items()),
            )
        )
    tables += _set_up(results, set_up)
    head = f"% {' '.join(results.campaign.split())}: \\usepackage{{booktabs}} in the preamble."
    return "\n\n".join([head, *filter(None, tables)]) + "\n"


def _set_up(results: Results, set_up: SetUp) -> list[str]:
    """What was run: the attacks with what they cost, the defenses, the gates, and the commit and the command."""
    known = [[escape(name), escape(text)] for name, text in facts(results).items()]
    if set_up.run is not None:
        known += [["Run", escape(set_up.run.sentence)], ["Command", rf"\texttt{{{escape(set_up.run.command)}}}"]]
    return [
        _table("set-up", "What the numbers are of, and how the campaign was run.", r"lp{.7\linewidth}", ["", ""], known),
        _table(
            "set-up-attacks",
            "The attacks; passes are means over all samples, defenses and seeds.",
            r"llp{.3\linewidth}rrp{.25\linewidth}",
            ["Attack", "Plug-in, version", "Parameters", "Forward", "Backward", "Source"],
            (
                [
                    escape(row.name),
                    escape(row.plugin or NONE),
                    escape(row.params or NONE),
                    *(NONE if passes is None else formatting.number(passes, 3) for passes in (row.forwards, row.backwards)),
                    escape(row.paper or NONE),
                ]
                for row in attack_rows(results)
            ),
        ),
        _table(
            "set-up-defenses",
            "The defenses.",
            r"llp{.4\linewidth}p{.25\linewidth}",
            ["Defense", "Kind", "Parameters", "Source"],
            (
                [escape(row.name), escape(row.kind), escape(row.params or NONE), escape(row.paper or NONE)]
                for row in defense_rows(set_up.defenses)
            ),
        ),
        _table("gates", "The gates.", r"p{.9\linewidth}", ["Gate"], ([escape(gate)] for gate in set_up.gates)),
    ]


def escape(text: object) -> str:
    """Text that LaTeX sets as it is, on one line."""
    plain = re.sub(r"[\r\n\t]+", " ", str(text))
    return "".join(SPECIAL.get(letter, letter) for letter in plain)


def _summary(row: DefenseSummary, *, certified: bool) -> list[str]:
    interval = NONE if row.ci_low is None else f"[{_points(row.ci_low)}, {_points(row.ci_high)}]"
    return [
        escape(row.defense),
        _points(row.clean_accuracy),
        _points(row.robust_accuracy),
        *([_bracket(row)] if certified else []),
        interval,
        _points(row.w_robust),
        _points(row.nrr),
        escape(row.strongest_attack or NONE),
        ANSWERS[row.holds],
        escape(row.verdict or NO_VERDICT),
    ]


def _bracket(row: DefenseSummary) -> str:
    """What is certified and what the attacks leave, in percent."""
    if not row.brackets:
        return NONE
    return f"{_points(row.certified)} exact" if row.exact else f"{_points(row.certified)} to {_points(row.attacked)}"


def _table(label: str, caption: str, columns: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One table, or nothing without rows."""
    body = [f"{' & '.join(row)} \\\\" for row in rows]
    if not body:
        return ""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        f"{' & '.join(head)} \\\\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _threat(results: Results) -> str:
    budget = results.budget
    if isinstance(budget, PixelBudget):
        return f"${NORMS[budget.norm]}$ $\\leq$ {escape(formatting.epsilon(budget.eps))}"
    return escape(formatting.threat(budget))


def _points(share: float | None) -> str:
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.1f}"


def _signed(difference: float) -> str:
    return f"${100 * difference:.1f}$"
