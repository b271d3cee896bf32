r"""The report's tables for a paper: LaTeX with booktabs, each table to be taken alone.

``\input`` the file, or copy a table out of it; the preamble needs ``\usepackage{booktabs}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from robustkd.contracts import PixelBudget
from robustkd.contracts.json_value import JsonValue
from robustkd.reporting import formatting
from robustkd.reporting.grid import grid
from robustkd.reporting.pairwise import main_pairs
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.samples import ClassTable
from robustkd.reporting.set_up import attack_rows, defense_rows
from robustkd.reporting.summary import DefenseSummary, attack_names, seeds_of
from robustkd.reporting.verdict_text import NO_VERDICT
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
    defenses: Mapping[str, Mapping[str, JsonValue]] | None = None,
) -> str:
    """Summary, defense by attack, pairs, classes and set-up; a table that the campaign has nothing for is left out.

    Args:
        defenses: of each defense its ``kind`` and its parameters.
    """
    threat, n = _threat(results), max((item.n for item in results.defenses), default=0)
    terms = terms_of(results)
    seeds = len(seeds_of(results))
    over = f", means of {seeds} seeds, the interval their envelope" if seeds > 1 else ""
    tables = [
        _table(
            "summary",
            f"Worst-case robust accuracy in percent under {threat} (n = {n}{over}); 95\\,\\% Wilson intervals.",
            "lrrlrrll",
            ["Defense", terms.clean_short, "Robust", r"95\,\% interval", "W-Robust", "NRR", "Strongest attack", "Verdict"],
            (_summary(row) for row in summaries),
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
    tables += _set_up(results, defenses or {})
    head = f"% {' '.join(results.campaign.split())}: \\usepackage{{booktabs}} in the preamble."
    return "\n\n".join([head, *filter(None, tables)]) + "\n"


def _set_up(results: Results, defenses: Mapping[str, Mapping[str, JsonValue]]) -> list[str]:
    """What was run: the attacks with what they cost, and the defenses."""
    return [
        _table(
            "set-up-attacks",
            "The attacks; passes are means over all samples, defenses and seeds.",
            r"llp{.4\linewidth}rr",
            ["Attack", "Plug-in, version", "Parameters", "Forward", "Backward"],
            (
                [escape(row.name), escape(row.plugin or NONE), escape(row.params or NONE)]
                + [NONE if passes is None else formatting.number(passes, 3) for passes in (row.forwards, row.backwards)]
                for row in attack_rows(results)
            ),
        ),
        _table(
            "set-up-defenses",
            "The defenses.",
            r"llp{.6\linewidth}",
            ["Defense", "Kind", "Parameters"],
            ([escape(row.name), escape(row.kind), escape(row.params or NONE)] for row in defense_rows(defenses)),
        ),
    ]


def escape(text: object) -> str:
    """Text that LaTeX sets as it is, on one line."""
    plain = re.sub(r"[\r\n\t]+", " ", str(text))
    return "".join(SPECIAL.get(letter, letter) for letter in plain)


def _summary(row: DefenseSummary) -> list[str]:
    interval = NONE if row.ci_low is None else f"[{_points(row.ci_low)}, {_points(row.ci_high)}]"
    return [
        escape(row.defense),
        _points(row.clean_accuracy),
        _points(row.robust_accuracy),
        interval,
        _points(row.w_robust),
        _points(row.nrr),
        escape(row.strongest_attack or NONE),
        escape(row.verdict or NO_VERDICT),
    ]


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
