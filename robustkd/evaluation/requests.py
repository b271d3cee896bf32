"""Requests and judges as Python's calls are given them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import BaseTarget, DataError, Judge, Modality, Prompts, UsageError
from robustkd.data.behaviors import BEGINNING

JudgeLike = str | Mapping[str, Any] | Judge | Callable[..., Any]
"""``"refusal-match"``, ``{"kind": "llm-judge", ..}``, a judge of one's own, or a function ``(requests, outputs) -> verdicts``."""

Judges = JudgeLike | Sequence[JudgeLike] | Mapping[str, JudgeLike] | None
"""One judge, several, or several by name; None for the usual ones."""


def are_requests(x: Any) -> bool:
    """Whether these are texts, or rows with a text ``prompt``, and not inputs of numbers."""
    if isinstance(x, Prompts | str):
        return True
    if hasattr(x, "columns") and hasattr(x, "to_dict"):  # a data frame
        return "prompt" in x.columns
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "UO" and x.size > 0 and isinstance(x.flat[0], str)
    try:
        first = next(iter(x)) if not hasattr(x, "dtype") and isinstance(x, Sequence) else None
    except StopIteration:
        return False
    return isinstance(first, str) or (isinstance(first, Mapping) and "prompt" in first)


def requests_of(x: Any, beginnings: Any = None, *, what: str = "requests") -> Prompts:
    """The requests as a table.

    Args:
        x: ``Prompts``; N texts; or N mappings or a data frame with ``prompt`` and any columns that data of prompts have, such as
            ``target``, ``system``, ``prefill``.
        beginnings: N texts, how an answer that complies begins, which searches aim at; "Sure, here is" by default.

    Raises:
        DataError: they are nothing of this, there is none, or the numbers differ.
    """
    if isinstance(x, Prompts):
        if beginnings is not None:
            raise UsageError("beginnings of answers beside a table of requests", fix="put them into its column 'target'")
        return x.validated(what, max(1, int(x.labels.max(initial=0)) + 1))
    if hasattr(x, "columns") and hasattr(x, "to_dict"):
        x = x.to_dict("records")
    given_rows: list[Any] = [x] if isinstance(x, str) else list(x)
    rows: list[Any] = [{"prompt": row} if isinstance(row, str) else row for row in given_rows]
    if not rows or not all(isinstance(row, Mapping) and isinstance(row.get("prompt"), str) and row["prompt"] for row in rows):
        raise DataError(f"{what} are no texts", fix="give a list of texts, or of mappings such as {'prompt': .., 'target': ..}")
    if beginnings is not None:
        given = [beginnings] if isinstance(beginnings, str) else list(beginnings)
        if len(given) != len(rows) or not all(isinstance(text, str) for text in given):
            raise DataError(f"{len(rows)} {what} and {len(given)} beginnings of answers", fix="give a text for each request")
        rows = [{**row, "target": text} for row, text in zip(rows, given, strict=True)]
    names = dict.fromkeys(str(name) for row in rows for name in row)
    columns = {name: tuple(_text(row.get(name)) for row in rows) for name in (*names, *({"target"} - names.keys()))}
    columns["target"] = tuple(text or BEGINNING for text in columns["target"])
    return Prompts(columns, np.zeros(len(rows), dtype=np.int64))


def with_role(requests: Prompts, role: str) -> Prompts:
    """The same, with this ``role`` where they have no such column: by it some judges know what is to be refused."""
    if "role" in requests.columns:
        return requests
    return replace(requests, columns={**requests.columns, "role": (role,) * len(requests)})


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # an empty cell of a data frame is NaN


def judges_of(
    given: Judges,
    modality: Modality,
    others: Mapping[str, BaseTarget],
) -> dict[str, Judge]:
    """The judges by name; the first one decides.

    Args:
        given: one, several, or by name; None for those that the data set ``behaviors`` comes with.
        others: the targets that they judge with, by name.

    Raises:
        UsageError: there is none, one is no judge, or it judges no such outputs.
    """
    if given is None:
        if modality != "text":
            raise UsageError(
                "pictures without a judge", fix="give judges={'kind': 'onnx-classifier', ..}, or another (robustkd list judges)"
            )
        given = plugins.load("datasets", "behaviors").judges
    named = dict(given) if isinstance(given, Mapping) and "kind" not in given else None
    listed = list(named.values()) if named is not None else list(given) if isinstance(given, list | tuple) else [given]
    made = [_judge(each, others) for each in listed]
    if wrong := [judge.name for judge in made if modality not in judge.modalities]:
        raise UsageError(f"judge '{wrong[0]}' judges no {modality}", fix="see `robustkd list judges`")
    names = list(named) if named is not None else _all_different([judge.name for judge in made])
    if not names:
        raise UsageError("no judge was named", fix="leave 'judges' out, or give one")
    return dict(zip(names, made, strict=True))


def _judge(given: Any, others: Mapping[str, BaseTarget]) -> Judge:
    if isinstance(given, str | Mapping):
        made: Judge = plugins.make("judges", {"kind": given} if isinstance(given, str) else given)
    elif isinstance(given, Judge):
        made = given
    elif callable(given) and not isinstance(given, type):
        made = plugins.load("judges", "code").of(given)
    else:
        raise UsageError(
            f"{given!r} is no judge", fix="give a name, a mapping of 'kind' and parameters, an object or a function"
        )
    return made.with_targets(others) if made.others() else made


def _all_different(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number = sum(other.partition(" #")[0] == name for other in found)
        found.append(f"{name} #{number + 1}" if number else name)
    return found
