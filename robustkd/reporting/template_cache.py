"""Compiled templates, kept in the user's cache between commands: to compile those of the report takes .2 s."""

from __future__ import annotations

from contextlib import suppress

from jinja2 import FileSystemBytecodeCache
from jinja2.bccache import Bucket

from robustkd.data.files import cache_folder


class TemplateCache(FileSystemBytecodeCache):
    """Jinja's cache of files in ``templates`` of the user's cache. Where it cannot be read or written, templates are compiled anew."""

    def __init__(self) -> None:
        folder = cache_folder() / "templates"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(str(folder))

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take up what is kept, where it can be read and belongs to this template and this Python."""
        with suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a compiled template, where that is possible."""
        with suppress(OSError):
            super().dump_bytecode(bucket)
