"""Prompts that others have found for requests, from the files in which they are published.

HarmBench     {"a_behavior_id": ["prompt", ..], ..}                       test_cases.json
JailbreakBench {"jailbreaks": [{"goal": "..", "prompt": ".." or null}, ..]} an artifact
robustkd      {"request": "..", "prompt": "..", "turns": [..], ..}        transcripts.jsonl, a line for each request
any           the columns request and prompt                              CSV, JSON lines, or a JSON list of objects
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkd.contracts import DataError
from robustkd.contracts.prompts import Turn
from robustkd.data.tables import read_jsonl, read_table

_FIX = (
    'give HarmBench\'s {"a_behavior_id": ["..", ..]}, an artifact of JailbreakBench, transcripts.jsonl of robustkd, or a CSV with the '
    "columns request and prompt"
)


@dataclass(frozen=True)
class FoundPrompt:
    """What somebody has asked in the place of a request.

    Attributes:
        request: the request, or the BehaviorID that HarmBench calls it by.
        prompt: what was asked.
        turns: of the conversation before it.
    """

    request: str
    prompt: str
    turns: tuple[Turn, ...] = ()


def read_attack_prompts(file: Path) -> list[FoundPrompt]:
    """The prompts of a file, in its order. Where nothing was found for a request, and where an attack began the answer or did not get to
    an attempt, there is none.

    Raises:
        DataError: the file cannot be read, or is in none of the formats; it names the place.
    """
    kind = file.suffix.lower()
    if kind == ".jsonl":
        return [found for place, row in read_jsonl(file) for found in _of_row(row, place)]
    if kind != ".json":
        return [found for row in read_table(file, ("request", "prompt")) for found in _of_row(row, str(file))]
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", fix="correct the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {error}", fix=_FIX) from error
    if isinstance(content, dict) and isinstance(content.get("jailbreaks"), list):
        content = [row | {"request": row.get("goal")} if isinstance(row, dict) else row for row in content["jailbreaks"]]
    if isinstance(content, dict):
        return list(_of_behaviors(content, file))
    if not isinstance(content, list):
        raise DataError(f"{file} holds no prompts", fix=_FIX)
    return [found for number, row in enumerate(content, 1) for found in _of_row(row, f"{file}, entry {number}")]


def _of_behaviors(content: Mapping[str, Any], file: Path) -> Iterator[FoundPrompt]:
    for behavior, prompts in content.items():
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise DataError(f"{file}: what stands at '{behavior}' is no list of texts", fix=_FIX)
        yield from (FoundPrompt(behavior, prompt) for prompt in prompts if prompt.strip())


def _of_row(row: Any, place: str) -> Iterator[FoundPrompt]:
    if not isinstance(row, dict) or not isinstance(request := row.get("request"), str) or "prompt" not in row:
        raise DataError(f"{place} has no 'request' and 'prompt'", fix=_FIX)
    prompt = row["prompt"]
    if prompt is not None and not isinstance(prompt, str):
        raise DataError(f"{place}: the prompt is no text", fix=_FIX)
    if prompt and prompt.strip() and not row.get("prefill") and row.get("attempts") != 0:
        yield FoundPrompt(request, prompt, _turns(row.get("turns") or (), place))


def _turns(given: Any, place: str) -> tuple[Turn, ...]:
    found: list[Turn] = []
    for turn in given if isinstance(given, Sequence) and not isinstance(given, str) else [None]:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise DataError(
                f"{place}: 'turns' is no list of pairs of texts", fix='give [["what the user said", "the answer"], ..]'
            )
        found.append((turn[0], turn[1]))
    return tuple(found)
