"""How templates are rendered: every text escaped, every name known, numbers by the filters of ``formatting``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustkd.reporting import formatting, palette
from robustkd.reporting.gallery import data_uri
from robustkd.reporting.pairwise import points, probability, sentences
from robustkd.scoring.holds import HARDLY_ANY, NEARLY_ALL, STANDINGS

TEMPLATES = Path(__file__).parent / "templates"


def environment(*folders: Path) -> Any:
    """A Jinja environment of these folders, in which the report's filters are known."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from robustkd.reporting.template_cache import TemplateCache  # late: it imports jinja2

    made = Environment(
        loader=FileSystemLoader(folders),
        bytecode_cache=TemplateCache(),
        autoescape=True,  # for every file: the default goes by a name that ends in .html, and ours end in .j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "interval", "bracket", "number", "count", "seconds", "words", "evidence", "listed"):
        made.filters[name] = getattr(formatting, name)
    made.filters["zip"] = zip
    made.filters["points"] = points
    made.filters["probability"] = probability
    made.filters["sentences"] = sentences
    made.filters["heat"] = palette.heat
    made.filters["readable_on"] = palette.readable_on
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    made.globals.update(hardly_any=f"{HARDLY_ANY * 100:.0f} %", nearly_all=f"{NEARLY_ALL * 100:.0f} %", standings=STANDINGS)
    made.globals.update(threat=formatting.threat, norms=formatting.NORMS, data_uri=data_uri, missing=formatting.MISSING)
    return made
