"""Public classes say what they are. Parameters do not: their fields have descriptions, and the class would repeat its name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import robustkd

PUBLIC = re.compile(r'^class ([A-Za-z]\w*).*:\n( +""")?', re.MULTILINE)


def test_public_classes_have_docstrings():
    folders = os.walk(Path(robustkd.__file__).parent, followlinks=True)  # attacks, defenses and campaigns are links
    files = [Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".py")]
    public = [(file, *found.groups()) for file in files for found in PUBLIC.finditer(file.read_text(encoding="utf-8"))]
    assert len(public) > 900
    assert [(file, name) for file, name, text in public if not text and not name.endswith("Params")] == []
