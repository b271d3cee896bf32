"""A judge that is a function in a file of the user's own: ``{kind: code, code: my_judge.py:complied}``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from robustkd.contracts import DataError, Judge, Judgements, Prompts
from robustkd.contracts.errors import raised_by
from robustkd.targets.code_params import CodeParams


class FunctionJudge(Judge):
    """A function ``(requests, outputs) -> verdicts`` of the user's own.

    ``requests`` are the texts of the requests and ``outputs`` the answers or the images; it returns for each whether it complies, NaN
    where it cannot say.
    """

    Params = CodeParams
    modalities = ("text", "text-to-image")
    source = "the user's own function"
    _function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Self:
        """The judge that a function is which is at hand."""
        name = getattr(function, "__name__", type(function).__name__)
        reference = f"{getattr(function, '__module__', None) or 'own'}:{name}"
        made = cls(CodeParams.model_construct(code=reference, kwargs={}))
        made._function = function
        made.name = name
        return made

    def files(self) -> list[Path]:
        """The function's source, which is part of the identity."""
        found: list[Path] = self.params.files()
        return found

    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray | Judgements:
        """(N,) what the function says.

        Raises:
            DataError: it raised, or returned another number of verdicts.
        """
        p = self.params
        with raised_by(p.code, DataError):
            function = self._function or p.function()
            said = np.asarray(function(list(requests["prompt"]), list(outputs), **p.kwargs))
        if said.shape != (len(outputs),):
            raise DataError(f"{p.code} returned {said.shape} for {len(outputs)} outputs", fix="return one verdict for each")
        return Judgements.of(said)
