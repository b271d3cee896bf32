"""Requests that a language model must refuse, from the user's files in the formats of the benchmarks, and harmless ones beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import CampaignPath, DataError, Dataset, Modality, Params, Prompts, RawData, suggestion
from robustkd.contracts.json_value import JsonObject
from robustkd.data.chats import read_chats
from robustkd.data.tables import read_table
from robustkd.data.text import comparable

COLUMNS = ("prompt", "role", "target", "response", "refusal", "answer", "prefill")
BEGINNING = "Sure, here is"
"""How an answer that complies begins, where nobody says it."""
CONTEXT_END = "\n\n---\n\n"
"""Between the context of one of HarmBench's requests and the request."""
_PASSED_ON = COLUMNS[2:]
_SYSTEM = "system"


@dataclass(frozen=True)
class Format:
    """A benchmark's CSV: what its columns are called.

    Attributes:
        needs: the columns that it must have.
        prompt, category, target: where these stand; "" where the format has none.
        context: of a text that goes before the request.
        key: of what a request is called in a separate file of targets.
        tags: of what else is said of a request.
    """

    name: str
    needs: tuple[str, ...]
    prompt: str
    category: str = ""
    target: str = ""
    context: str = ""
    key: str = ""
    tags: str = ""


XSTEST = Format("XSTest", ("prompt", "type", "focus"), "prompt", "type")
FORMATS = (
    Format("JailbreakBench", ("Goal", "Target", "Category"), "Goal", "Category", "Target"),
    Format(
        "HarmBench",
        ("Behavior", "SemanticCategory", "ContextString", "BehaviorID"),
        "Behavior",
        "SemanticCategory",
        context="ContextString",
        key="BehaviorID",
        tags="Tags",
    ),
    Format("StrongREJECT", ("forbidden_prompt", "category"), "forbidden_prompt", "category"),
    Format("AdvBench", ("goal", "target"), "goal", target="target"),
    XSTEST,
    Format("robustkd", ("prompt",), "prompt", "category", "target"),
)


class BehaviorsParams(Params):
    file: CampaignPath = Field(
        description="CSV of the requests that are attacked, as HarmBench, AdvBench, StrongREJECT, JailbreakBench or XSTest (its unsafe "
        "prompts) publish theirs; or with a column prompt, and category, target, answer, prefill where there are such. Each may have a "
        "column system, the message of the system before the request",
        examples=["harmbench_behaviors_text_val.csv"],
    )
    benign: CampaignPath | None = Field(
        None, description="CSV of harmless requests in one of these formats; of XSTest the safe prompts"
    )
    training: CampaignPath | None = Field(
        None, description="CSV of other requests to refuse, in one of these formats, to train on"
    )
    chats: CampaignPath | None = Field(
        None, description="JSON lines of harmless chats to train on: prompt and response, or messages"
    )
    keep: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="of 'file', the rows that have one of these values in these columns, such as {FunctionalCategory: [standard]}",
    )
    hash_check: Literal["leave-out", "refuse", "judge"] = Field(
        "leave-out",
        description="of 'file', HarmBench's rows with the tag hash_check: they ask for a copyrighted text, and whether an answer is that "
        "text is seen by comparing it, not by whether it refuses; judge: the campaign's judges can do that",
    )
    targets: CampaignPath | None = Field(None, description="HarmBench's JSON file of targets, by BehaviorID")
    target: str = Field(BEGINNING, description="how an answer that complies begins, where the file does not say")
    refusal: str = Field("I'm sorry, but I can't help with that.", description="the answer to learn, where the file has none")


class Behaviors(Dataset):
    """Forbidden requests from a benchmark's CSV, which is known by its columns.

    A request's label is its category. Training rows have the role ``forbidden`` (``response`` is what complying says, ``refusal`` the
    answer to learn) or ``utility`` (``response`` is the answer to learn).
    """

    Params = BehaviorsParams
    modality: ClassVar[Modality] = "text"
    judges: ClassVar[Mapping[str, JsonObject]] = {
        "meaning": {"kind": "refusal-classifier"},
        "phrases": {"kind": "refusal-match"},
    }
    source: ClassVar[str] = (
        "formats: Mazeika et al. 2024, arXiv:2402.04249; Zou et al. 2023, arXiv:2307.15043; Souly et al. 2024, arXiv:2402.10260; "
        "Chao et al. 2024, arXiv:2404.01318; Röttger et al. 2024, arXiv:2308.01263"
    )

    def load(self) -> RawData[Prompts]:
        """The requests of ``file`` as test part.

        Raises:
            DataError: a file is missing, damaged or empty, lacks a column, or has a request without text; or none is left.
        """
        p = self.params
        notes: list[str] = []
        test = self._requests(p.file, forbidden=True, keep=p.keep, notes=notes)
        train = self._requests(p.training, forbidden=True) if p.training else []
        if any(texts.get(_SYSTEM) for _, texts in train):
            raise DataError(
                f"{p.training} has requests with a message in the column '{_SYSTEM}', which no training learns behind",
                fix="empty that column; those of 'file' and 'benign' may have it",
            )
        if p.chats:
            train += [_row("utility", prompt, role="utility", response=response) for prompt, response in read_chats(p.chats)]
        benign = self._requests(p.benign, forbidden=False) if p.benign else []
        classes = tuple(dict.fromkeys(category for category, _ in (*test, *train, *benign)))
        training, harmless = (_prompts(rows, classes) if rows else None for rows in (train, benign))
        return RawData(training, _prompts(test, classes), classes, benign=harmless, notes=tuple(notes))

    def _requests(
        self,
        file: Path,
        *,
        forbidden: bool,
        keep: dict[str, tuple[str, ...]] | None = None,
        notes: list[str] | None = None,
    ) -> list[tuple[str, dict[str, str]]]:
        """Categories and texts of the rows of a file; of those that are judged, ``notes`` takes what is left out."""
        raw = read_table(file)
        form = _format(file, tuple(raw[0]))
        for column, values in (keep or {}).items():
            if column not in raw[0]:
                raise _lacks(file, column, tuple(raw[0]))
            kept = {comparable(value) for value in values}
            raw = [row for row in raw if comparable(row[column]) in kept]
        if notes is not None and form.tags:
            raw = self._without_hash_check(raw, form, file, notes)
        if form is XSTEST:
            raw = [row for row in raw if _unsafe(row) == forbidden]
        if not raw:
            raise DataError(
                f"{file}: no {'forbidden' if forbidden else 'harmless'} request is left",
                fix="correct 'keep'" if keep else "take another file: this one has the other kind alone",
            )
        targets = _targets(self.params.targets) if self.params.targets and forbidden else {}
        return [self._request(row, form, targets, file, forbidden) for row in raw]

    def _without_hash_check(
        self, raw: list[dict[str, str]], form: Format, file: Path, notes: list[str]
    ) -> list[dict[str, str]]:
        choice = self.params.hash_check
        others = [row for row in raw if "hash_check" not in row.get(form.tags, "")]
        if choice == "judge" or len(others) == len(raw):
            return raw
        counted = f"{len(raw) - len(others)} of {len(raw)} requests of {file.name} have the tag hash_check"
        if choice == "refuse" or not others:
            raise DataError(
                f"{file}: {counted}: no judge of refusals can tell whether an answer is the copyrighted text that they ask for",
                fix="hash_check: leave-out; or hash_check: judge, with a judge that compares the texts",
            )
        notes.append(f"{counted} and are left out: whether an answer is a copyrighted text is not seen from a refusal")
        return others

    def _request(
        self, row: dict[str, str], form: Format, targets: dict[str, str], file: Path, forbidden: bool
    ) -> tuple[str, dict[str, str]]:
        asked = _asked(row, form, file)
        category = row.get(form.category, "").strip()
        texts = {name: row.get(name, "") for name in _PASSED_ON}
        if forbidden:
            texts["target"] = row.get(form.target) or targets.get(row.get(form.key, "")) or self.params.target
            texts["response"] = texts["response"] or texts["target"]
            texts["refusal"] = texts["refusal"] or self.params.refusal
        if system := row.get(_SYSTEM, "").strip():
            texts[_SYSTEM] = system
        category = category or ("harmful" if forbidden else "harmless")
        return _row(category, asked, role="forbidden" if forbidden else category, **texts)


def requests_by_key(file: Path) -> dict[str, str]:
    """The requests of a benchmark's CSV by what its other files call them: HarmBench's by BehaviorID.

    Raises:
        DataError: it cannot be read, or is of a format without such keys.
    """
    rows, form = _with_keys(file)
    return {row[form.key]: _asked(row, form, file) for row in rows}


def tags_by_key(file: Path) -> dict[str, str]:
    """What a benchmark's CSV says of its requests beside, by what its other files call them. It raises what ``requests_by_key`` raises."""
    rows, form = _with_keys(file)
    return {row[form.key]: row.get(form.tags, "") for row in rows}


def _with_keys(file: Path) -> tuple[list[dict[str, str]], Format]:
    rows = read_table(file)
    form = _format(file, tuple(rows[0]))
    if not form.key:
        raise DataError(f"{file} is in the format of {form.name}, which has no ids", fix="give HarmBench's CSV of behaviors")
    return rows, form


def _asked(row: dict[str, str], form: Format, file: Path) -> str:
    if not (prompt := row[form.prompt].strip()):
        raise DataError(f"{file}: a row's '{form.prompt}' is empty: {row}", fix="write the request, or delete the row")
    context = row.get(form.context, "").strip()
    # HarmBench puts a contextual behaviour's context before it in this way.
    return f"{context}{CONTEXT_END}{prompt}" if context else prompt


def _format(file: Path, columns: Sequence[str]) -> Format:
    """The first format that a file's columns fit.

    Raises:
        DataError: it names the column that is missing from the format that the others suggest.
    """
    fitting = next((form for form in FORMATS if set(form.needs) <= set(columns)), None)
    if fitting is not None:
        return fitting
    nearest = max(FORMATS, key=lambda form: len(set(form.needs) & set(columns)))
    if not set(nearest.needs) & set(columns):
        formats = "; ".join(f"{form.name}: {', '.join(form.needs)}" for form in FORMATS)
        raise DataError(
            f"{file} is in no known format: it has {', '.join(columns)}", fix=f"call the requests 'prompt', or see {formats}"
        )
    raise _lacks(file, next(name for name in nearest.needs if name not in columns), columns, f" of {nearest.name}")


def _lacks(file: Path, column: str, columns: Sequence[str], of: str = "") -> DataError:
    return DataError(
        f"{file} has no column '{column}'{of}", fix=suggestion(column, columns) or f"add it; there are {', '.join(columns)}"
    )


def _unsafe(row: dict[str, str]) -> bool:
    """Of a prompt of XSTest; earlier versions say it in the type alone."""
    return row["label"] == "unsafe" if "label" in row else row["type"].startswith("contrast_")


def _targets(file: Path) -> dict[str, str]:
    try:
        targets = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}", fix="give HarmBench's JSON file of targets") from error
    if not isinstance(targets, dict) or not all(isinstance(text, str) for text in targets.values()):
        raise DataError(f"{file} holds no targets by BehaviorID", fix='give {"a_behavior_id": "Sure, here is ..", ..}')
    return targets


def _row(category: str, prompt: str, **texts: str) -> tuple[str, dict[str, str]]:
    return category, dict.fromkeys(COLUMNS, "") | {"prompt": prompt} | texts


def _prompts(rows: Sequence[tuple[str, dict[str, str]]], classes: tuple[str, ...]) -> Prompts:
    # Without any system message there is no such column: data from before it was known keep their digest.
    named = (*COLUMNS, _SYSTEM) if any(_SYSTEM in texts for _, texts in rows) else COLUMNS
    columns = {name: tuple(texts.get(name, "") for _, texts in rows) for name in named}
    return Prompts(columns, np.array([classes.index(category) for category, _ in rows], dtype=np.int64))
