"""The attacked requests of one cell as a table that MLflow's artefact page shows."""

from __future__ import annotations

import json
from collections.abc import Sequence

from robustkd.redaction import safe_to_show
from robustkd.reporting.transcripts import PromptItem

FILE = "transcripts.json"
MOST = 200
"""Requests of a cell; the store has all."""

LONGEST_TEXT = 20_000
"""Characters that are kept of a request or an answer: more than a model writes that ends by itself."""


def table(items: Sequence[PromptItem]) -> str:
    """One row a request: what was asked, what was answered, and what each judge says."""
    judges = list(dict.fromkeys(name for item in items for name in item.verdicts))
    head = ["outcome", "category", "request", "said before", "asked", "answer begun with", "answer", "attempts", *judges]
    rows = [
        [
            item.outcome,
            safe_to_show(item.label),
            *(
                safe_to_show(text, LONGEST_TEXT)
                for text in (item.request, item.conversation, item.prompt, item.prefill, item.output)
            ),
            item.attempts,
            *(item.verdicts.get(name) for name in judges),
        ]
        for item in items[:MOST]
    ]
    return json.dumps({"columns": head, "data": rows}, ensure_ascii=False)
