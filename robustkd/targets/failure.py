"""The error message for a model that raises."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from robustkd.contracts import RobustkdError, TargetError
from robustkd.contracts.errors import out_of_memory, place_of

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor


def model_errors_explained(inputs: Tensor) -> AbstractContextManager[None]:
    """Until the end of the block, whatever the model raises on ``inputs`` becomes a ``TargetError`` that names their shape and the line.

    A lack of memory stays what it is: its remedy is another one.

    Raises:
        TargetError: the model raised.
    """
    return _Explained(inputs)


class _Explained(AbstractContextManager[None]):
    """A class, since a generator takes four times as long, in each pass of an attack."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, RobustkdError) or out_of_memory(error):
            return
        inputs, said = self.inputs, (str(error).splitlines() or [""])[0]
        fix = "see that it runs on such a batch; it has to take batches of any size, since broken samples leave them"
        if inputs.ndim == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] not in (1, 3):
            fix = "images are (N, channels, height, width), and here the channels seem to come last: x.permute(0, 3, 1, 2)"
        raise TargetError(
            f"the model raised {type(error).__name__} on a batch of shape {tuple(inputs.shape)}{place_of(error)}: {said}",
            fix=fix,
        ) from error
