"""How a cell can end without a result, beside the errors that its plug-ins foresee."""

from __future__ import annotations

import traceback

from robustkd.contracts import RobustkdError
from robustkd.contracts.errors import lacks_memory, place_of, show_traceback


class CellCrash(RobustkdError):
    """A cell ended by something nobody foresaw, such as a bug in a plug-in. Another try would end alike."""


class CellLost(CellCrash):
    """A cell's process died or had no memory left. Another try, in a process of its own, may succeed."""


class WorkerUnfit(CellCrash):
    """A worker cannot do a cell as it was planned: it lacks a plug-in, data, or the results folder. Another worker may."""


class EngineLost(RobustkdError):
    """What runs the cells is gone, such as the scheduler of a cluster. What is finished is in the store."""


class CellTimeout(CellCrash):
    """A cell took longer than it may."""


def error_of(error: Exception) -> RobustkdError:
    """What the driver is told of an exception that ended a cell. Whoever wrapped it, a lack of memory is told as such."""
    show_traceback(error)  # it does not travel to the driver
    if lacks_memory(error):
        return CellLost(f"out of memory: {_line(error)}", fix="use fewer workers, a smaller model or smaller data")
    if isinstance(error, RobustkdError):
        return error
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error} ({place_of(error).removeprefix(' in ') or f'{where.filename}:{where.lineno}'})"
    return CellCrash(text, fix="this is a bug in that plug-in or model, or in robustkd")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
