"""Judges that do not look at the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustkd.contracts import Judge, Prompts

PLUGINS = {
    "judges": {
        "says-yes": "support.blind_judges:SaysYes",
        "says-no": "support.blind_judges:SaysNo",
        "reads-the-request": "support.blind_judges:ReadsTheRequest",
    }
}


class SaysYes(Judge):
    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
        return np.ones(len(outputs), dtype=bool)


class SaysNo(Judge):
    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
        return np.zeros(len(outputs), dtype=bool)


class ReadsTheRequest(Judge):
    """It takes every answer to a harmless request for compliance, and no answer to a forbidden one."""

    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
        return np.array([prompt.startswith("how") for prompt in requests["prompt"]])
