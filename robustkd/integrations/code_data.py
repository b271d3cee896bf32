"""Data that a function in a file of the user's own loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from robustkd.contracts import Arrays, DataError, Dataset, Params, RawData
from robustkd.contracts.errors import raised_by
from robustkd.data.images import resized
from robustkd.data.multi_label import numbered
from robustkd.data.samples import arrays_of, class_names
from robustkd.targets.code import function_by_reference
from robustkd.targets.code_params import CodeReference


class CodeDataParams(Params):
    code: CodeReference = Field(
        description="package.module:function, or path/to/file.py:function beside the campaign", examples=["my_data.py:load"]
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="the function's arguments")
    classes: tuple[str, ...] | None = Field(None, description="class names; by default the data's own, or the numbers")
    resize: int | None = Field(None, ge=1, description="bring every image to this many pixels each way (bilinear)")


class CodeData(Dataset):
    """What the function returns: images and labels, a data set of torch or Hugging Face, or a loader.

    That is the test part; for others it returns ``{"train": .., "validation": .., "test": ..}``, as Hugging Face's data sets come.
    What counts for a campaign's identity is the images and labels, so a function that draws random ones is refused.
    """

    Params: ClassVar[type[Params]] = CodeDataParams
    source: ClassVar[str] = "the user's own function"

    def load(self) -> RawData:
        """Call the function.

        Raises:
            UsageError: there is no such function.
            DataError: it raised, or returned something else.
        """
        p = self.params
        function = function_by_reference(p.code)
        with raised_by(p.code, DataError):
            found = function(**p.kwargs)
        if isinstance(found, RawData):
            return found
        parts = dict(found) if isinstance(found, Mapping) else {"test": found}
        test = parts.get("test", parts.get("validation"))
        if test is None:
            raise DataError(
                f"{p.code} returned {', '.join(map(str, parts))}, and no 'test'", fix="return the test part as 'test'"
            )
        validation = parts.get("validation") if "test" in parts else None
        train, test, validation = (
            None if part is None else self._part(part) for part in (parts.get("train"), test, validation)
        )
        assert test is not None
        return RawData(train, test, self._classes(parts, [train, test, validation]), validation=validation)

    def _part(self, part: Any) -> Arrays:
        return resized(arrays_of(part, f"what {self.params.code} returned"), self.params.resize)

    def _classes(self, parts: Mapping[str, Any], arrays: list[Arrays | None]) -> tuple[str, ...]:
        named = self.params.classes or parts.get("classes") or class_names(parts.get("test"))
        if named:
            return tuple(map(str, named))
        return numbered(part.labels for part in arrays if part is not None)
