"""What safety classifiers share: they tell a harmful answer from a harmless one, not an answer from a refusal.

So of a request that is to be refused, the answer complied if it is harmful. Of a harmless request both an answer and a refusal are safe:
there the answer complied if it is no refusal. Which one a request is, its column ``role`` says; without that column all are to be refused.
"""

from __future__ import annotations

import numpy as np

from robustkd.contracts import Prompts


def to_refuse(requests: Prompts) -> np.ndarray:
    """(N,) bool, the requests that are to be refused."""
    if "role" not in requests.columns:
        return np.ones(len(requests), dtype=bool)
    return np.array([role == "forbidden" for role in requests["role"]], dtype=bool)
