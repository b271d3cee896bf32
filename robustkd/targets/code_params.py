"""Parameters that name a function of the user's own: what an attack, a judge or a data set in a file is made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationInfo, field_serializer

from robustkd import plugins
from robustkd.contracts import CampaignPath, Params
from robustkd.plugins.sources import source_files
from robustkd.targets.code import function_by_reference, source_file


def _placed(reference: str, info: ValidationInfo) -> str:
    """The reference with its file's place resolved, relative to the campaign file."""
    file = source_file(reference)
    if file is None:
        return reference
    place = TypeAdapter(CampaignPath).validate_python(file, context=info.context)
    return f"{place}:{reference.rpartition(':')[2]}"


CodeReference = Annotated[str, AfterValidator(_placed)]
"""A parameter type: ``package.module:function``, or ``path/to/file.py:function`` beside the campaign."""


def code_files(reference: str) -> list[Path]:
    """The file of a function, and the modules beside the installed packages that it imports."""
    file = source_file(reference) or plugins.module_file(reference.rpartition(":")[0])
    return source_files(file) if file else []


class CodeParams(Params):
    """A function by reference. Its source is in the identity by content (``files``), and so not by its folder."""

    code: CodeReference = Field(
        description="package.module:function, or path/to/file.py:function beside the campaign", examples=["my_code.py:function"]
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments of the function")

    @field_serializer("code")
    def _without_folder(self, code: str) -> str:
        location, _, name = code.rpartition(":")
        return f"{Path(location).name if location.endswith('.py') else location}:{name}"

    def function(self) -> Callable[..., Any]:
        """The function, imported.

        Raises:
            UsageError: there is no such file or function, or it cannot be imported.
        """
        return function_by_reference(self.code)

    def files(self) -> list[Path]:
        """The files that the function's source is in."""
        return code_files(self.code)
