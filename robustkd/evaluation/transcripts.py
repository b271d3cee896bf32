"""Transcripts of attacks on prompts as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from robustkd.contracts import Transcript


def transcript_lines(transcripts: Sequence[Transcript]) -> str:
    """Transcripts as JSON lines."""
    return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in transcripts)


def read_transcripts(content: bytes) -> tuple[Transcript, ...]:
    """The inverse of ``transcript_lines``, in UTF-8.

    Raises:
        ValueError, TypeError, RecursionError: it is something else.
    """
    # Not splitlines: an answer may hold characters that it takes for the end of a line.
    return tuple(Transcript(**json.loads(line)) for line in content.decode("utf-8").split("\n") if line)
