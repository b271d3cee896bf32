"""torch, imported when something of it is first used.

Importing torch takes 1.6 s and 290 MiB. To read a campaign file, plug-ins are imported for their parameters and for what they say of
themselves; that needs nothing of torch, and neither do the plan, the report or a comparison. So robustkd's own modules write
``from robustkd.lazy import torch`` where others write ``import torch``. Plug-ins of other packages may import torch as usual.

A module that uses torch while it is being imported (a base class, a decorator, a constant) imports it then.

``large_import`` makes this import, and those of other large packages, shorter by an eighth.
"""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

__all__ = ["F", "large_import", "nn", "torch"]

_lock = threading.Lock()
_imports = 0  # that are under way, in all threads


@contextmanager
def large_import() -> Iterator[None]:
    """Stop the garbage collector for an import: it would look at each of some hundred thousand new objects and could free none.

    Afterwards all objects count as old ones, which are seldom looked at. Where the collector was disabled before, it stays so.
    """
    global _imports
    with _lock:
        running = gc.isenabled() or _imports > 0
        _imports += running
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _imports -= running
            if running and not _imports:
                if not gc.get_freeze_count():
                    gc.freeze()
                    gc.unfreeze()  # to the oldest generation
                gc.enable()


class _WhenUsed:
    """Stands for a module until it is used; from then on it has the module's own namespace."""

    def __init__(self, name: str) -> None:
        self.__dict__["__name__"] = name

    def __getattr__(self, attribute: str) -> Any:
        with large_import():
            module = importlib.import_module(self.__name__)
        self.__dict__ = vars(module)  # the same dictionary: what is set on the module later is seen here
        return getattr(module, attribute)  # not from the dictionary: a module may make attributes when they are asked for


if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import nn
else:
    torch, nn, F = _WhenUsed("torch"), _WhenUsed("torch.nn"), _WhenUsed("torch.nn.functional")
