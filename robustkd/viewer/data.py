"""The clean samples of a campaign: its data set, loaded by robustkd's own code alone, and only if it is the one that was attacked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robustkd import plugins
from robustkd.campaigns.execution import record
from robustkd.campaigns.file.resolve import Resolver
from robustkd.campaigns.results.data_summary import test_digest
from robustkd.campaigns.store.store import Entry
from robustkd.contracts import Arrays, RobustkdError
from robustkd.data import Splits, load_splits
from robustkd.redaction import safe_to_show
from robustkd.reporting.formatting import class_name
from robustkd.viewer.runs import Run

OWN = "robustkd.data."


class CleanData:
    """The test samples of one campaign.

    Attributes:
        missing: why they are not at hand; "" where they are.
        classes: the names of the classes; empty where they are not known.
    """

    def __init__(self, splits: Splits[Any] | None, missing: str = "") -> None:
        self._splits, self.missing = splits, missing
        self.classes: tuple[str, ...] = splits.classes if splits else ()

    def name(self, number: int, of_images: bool = True) -> str:
        """The name of a class, or of a category of requests; `category 7` where the data are not at hand."""
        if number < len(self.classes) or of_images:
            return class_name(self.classes, number)
        return f"category {number}"

    def image(self, row: int) -> np.ndarray | None:
        """(C, H, W) float32 in [0, 1], the clean image of a test sample; None where there is none, or it is no image."""
        if self._splits is None or len(self._splits.input_shape) != 3 or not isinstance(self._splits.test, Arrays):
            return None
        image: np.ndarray = self._splits.test.select(np.array([row])).unit()[0]
        return image


def clean_data(run: Run, entry: Entry) -> CleanData:
    """The samples that the attack of ``entry`` was made on.

    A data set of a plug-in or of the user's own code is not loaded: a results folder that comes from somebody else would say which code
    runs.
    """
    document = run.document
    if document is None:
        return CleanData(None, "the folder holds no campaign file")
    name = str(document.data.get("name"))
    try:
        if not plugins.is_built_in("datasets", name) or not plugins.load("datasets", name).__module__.startswith(OWN):
            return CleanData(
                None, f"the data '{name}' are loaded by code that is not robustkd's own, which the viewer does not run"
            )
        home = Path(record.read(run.folder / record.RECORD).folder) if run.file(record.RECORD) else run.folder
        used = Resolver(home).data(document.data)
        if used is None:
            return CleanData(None, "the data block of the campaign file is not valid any more")
        splits = load_splits(used.name, used.params, used.split)
        attacked = entry.meta.identity.get("test data")
        if attacked not in (splits.test_digests[0], splits.test_digests, test_digest(splits)):
            return CleanData(None, f"the data '{name}' are other ones now than those that were attacked")
    except RobustkdError as error:
        return CleanData(None, safe_to_show(error.message, 300))
    except (OSError, ValueError, MemoryError) as error:
        return CleanData(None, safe_to_show(f"{type(error).__name__}: {error}", 300))
    return CleanData(replace(splits, train=None, validation=None))  # those are most of the memory
