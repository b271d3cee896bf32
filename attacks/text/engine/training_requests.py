"""Which training requests an attacker has: the forbidden ones, or the harmless ones, each with an answer."""

from __future__ import annotations

from typing import Literal

from robustkd.contracts import Prompts

Kind = Literal["forbidden", "harmless"]


def answered(requests: Prompts, kind: Kind) -> list[int]:
    """The rows of this kind with a ``response``; where the data have no roles, every request is forbidden."""
    roles, responses = requests.get("role"), requests.get("response")
    if kind == "forbidden":
        wanted = [role == "forbidden" for role in roles] if "role" in requests.columns else [True] * len(requests)
    else:
        wanted = [role not in ("", "forbidden", "knowledge") for role in roles]
    return [row for row, response in enumerate(responses) if wanted[row] and response]
