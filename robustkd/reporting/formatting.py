"""The formats of numbers in reports and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from robustkd.contracts.evidence import Evidence, Share
from robustkd.contracts.threat import Budget, EmbeddingRadius, PixelBudget, ThreatModel

MISSING = "—"
THIN = "\N{NARROW NO-BREAK SPACE}"
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
MAX_ITEMS = 8


def class_name(classes: Sequence[str], number: int) -> str:
    """The name of class ``number`` among the data's ``classes``; `class 7` where the model knows more classes than the data."""
    return classes[number] if number < len(classes) else f"class {number}"


def percent(share: float | None, digits: int = 1) -> str:
    """``0.2034`` as `20.3 %`."""
    if share is None or not math.isfinite(share):
        return MISSING
    return f"{100 * share:.{digits}f}{THIN}%"


def interval(low: float | None, high: float | None) -> str:
    """Two shares as `17.0 to 24.1 %`, or as one number where they read the same."""
    if low is None or high is None:
        return MISSING
    first, last = f"{100 * low:.1f}", percent(high)
    return last if last.startswith(f"{first}{THIN}") else f"{first} to {last}"


def bracket(certified: float | None, attacked: float | None, exact: bool) -> str:
    """Two ends of a robust accuracy as `17.0 to 24.1 %`; as `20.3 % exact` where they meet by proof."""
    return f"{percent(certified)} exact" if exact else interval(certified, attacked)


def number(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}g}"


def count(value: int) -> str:
    """``1234567`` as `1 234 567`."""
    return f"{value:,}".replace(",", THIN)


def seconds(value: float) -> str:
    """`0.42 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(written: str) -> str:
    """A time in ISO 8601, as `2026-11-30 04:59 UTC`; any other as it is written."""
    return f"{written[:10]} {written[11:16]} UTC" if written.endswith("+00:00") else written


def epsilon(eps: float) -> str:
    """`8/255` where eps is a whole number of grey levels and no short number (0.2 is both), else the plain number."""
    levels = eps * 255
    if 0 < levels < 64 and abs(levels - round(levels)) < 1e-6 and f"{eps:.2g}" != f"{eps:.6g}":
        return f"{round(levels)}/255"
    return number(eps)


def threat(model: ThreatModel | Budget) -> str:
    """`L∞ ≤ 8/255`; `L∞ ≤ 8/255, targeted`; `any wording, 20 attempts`; `corruptions`."""
    if isinstance(model, ThreatModel):
        return threat(model.budget) + model.aim
    budget = model
    if isinstance(budget, PixelBudget | EmbeddingRadius):
        norm, eps = budget.stored
        return f"{NORMS.get(norm, norm)} ≤ {epsilon(eps)}{budget.within if isinstance(budget, PixelBudget) else ''}"
    return str(budget)


def words(key: str) -> str:
    """An identifier with blanks in the place of underscores."""
    return key.replace("_", " ")


def shortened(text: str, most: int) -> str:
    """A text on one line, of at most so many characters, without those that are not to be seen."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def counted(n: int, noun: str) -> str:
    """`1 check`, `3 checks`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def evidence(value: Evidence) -> str:
    """One piece of a check's evidence as its type says: a share as a percentage, an int as a count, a float as a number."""
    if value is None:
        return MISSING
    if isinstance(value, (str, Mapping, list, tuple)) and not value:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return count(int(value))
    if isinstance(value, Share):
        return percent(value)
    if isinstance(value, Real):
        return number(float(value))
    if isinstance(value, Mapping):
        return _shortened([f"{words(str(name))} {evidence(item)}" for name, item in value.items()])
    if isinstance(value, (list, tuple)):
        return _shortened([evidence(item) for item in value])
    return str(value)


def _shortened(items: list[str]) -> str:
    shown = ", ".join(items[:MAX_ITEMS])
    return shown if len(items) <= MAX_ITEMS else f"{shown}, … ({len(items)} in all)"
