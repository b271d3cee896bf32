"""What was asked of served models, by the answers of theirs that are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from robustkd.scoring.summaries import ServedSummary
from robustkd.targets.answer_cache import AnswerCache

_COUNTED = ("prompt_tokens", "completion_tokens")


def served(answers: Path) -> list[ServedSummary]:
    """A summary of each model with answers in the folder, in the order of their addresses and names."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for request, reply in AnswerCache(answers):
        usage = reply.get("usage")
        counted = {name: int(usage.get(name) or 0) for name in _COUNTED} if isinstance(usage, dict) else {}
        found.setdefault((str(request["url"]), str(request["model"])), Counter()).update({"requests": 1, **counted})
    return [
        ServedSummary(model, url, total["requests"], *(total[name] for name in _COUNTED))
        for (url, model), total in sorted(found.items())
    ]
