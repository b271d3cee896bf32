"""The error message for a model that raises."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from robustkd.contracts import RobustkdError, TargetError
from robustkd.contracts.errors import out_of_memory, place_of

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor


_OTHER_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
_OTHER_WIDTH = re.compile(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)")


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
        elif (wanted := _wanted_channels(said, inputs)) is not None:
            colours = "grey" if wanted == 1 else "colour"
            fix = f"the model takes {colours} images: channels: {wanted} in the data (image-folder and stored have it), or convert them"
        raise TargetError(
            f"the model raised {type(error).__name__} on a batch of shape {tuple(inputs.shape)}{place_of(error)}: {said}",
            fix=fix,
        ) from error


def _wanted_channels(said: str, inputs: Tensor) -> int | None:
    """1 where torch complains that images have three channels instead of one, 3 the other way round; None of any other complaint."""
    have = inputs.shape[1] if inputs.ndim == 4 else 0
    if found := _OTHER_CHANNELS.search(said):
        wanted, given = map(int, found.groups())
        return wanted if {wanted, given} == {1, 3} and given == have else None
    if found := _OTHER_WIDTH.search(said):  # of a linear layer behind a Flatten
        given, wanted = map(int, found.groups())
        if have in (1, 3) and given == inputs[0].numel() and given * (4 - have) == wanted * have:
            return int(4 - have)
    return None
