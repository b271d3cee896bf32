"""The documentation site: ``make docs``. What is read in which order is here; the pages are plain Markdown."""

import re
import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import gallery
import generate

project = "robustkd"
release = metadata.version("robustkd")
author = "the robustkd contributors"
copyright = "the robustkd contributors"
html_title = f"robustkd {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = [gallery.FOLDER.name] if gallery.FOLDER.is_dir() else []  # `make gallery` makes it
exclude_patterns = [gallery.FOLDER.name]
html_show_sphinx = False
html_copy_source = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # they are committed as they ran, and `make notebooks` runs them again
myst_heading_anchors = 3  # links to a heading are checked like links to a page
highlight_language = "text"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # the name of a listed attribute is tried as a link, and several classes have a `space`

NAVIGATION = {
    "Begin": ["start", "concepts", "glossary"],
    "Notebooks": ["notebooks/does-it-hold", "notebooks/read-a-campaign"],
    "How to": [
        "own-model",
        "own-data",
        "robustbench",
        "ensembles",
        "detectors",
        "encoders",
        "distilled-data",
        "adaptive-networks",
        "streams",
        "language-models",
        "endpoints",
        "diffusion",
        "adaptive-attacks",
        "verdicts",
        "certified",
        "report",
        "view",
        "tour",
        "gallery",
        "write-a-plugin",
        "what-you-may-import",
        "ci",
        "profiles",
        "questions/index",
        "questions/no-normalisation",
        "questions/is-it-masked",
        "questions/how-many-samples",
        "questions/one-sample",
        "questions/what-changed",
        "questions/take-it-out",
    ],
    "Contribute": [
        "contributing/index",
        "contributing/add-an-attack",
        "contributing/add-a-defense",
        "contributing/add-a-check",
        "contributing/add-a-judge",
        "contributing/add-a-modality",
        "contributing/faults",
    ],
    "Evidence": ["reproductions", "papers", "strength", "benchmarks", "comparison"],
    "Reference": ["campaign-file", *generate.INDEXES, "architecture", "security", "changelog"],
}


def navigate(app: Sphinx, page: str, source: list[str]) -> None:
    """The front page stays plain Markdown; what the side bar shows is put below it here, and below the gallery what was run for it."""
    if page == "gallery":
        source[0] += f"\n{gallery.listing()}\n"
    if page == "index":
        for caption, pages in NAVIGATION.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def readable(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Shapes such as (N, *) in docstrings are no emphasis; "(N,) bool: broken" of a property is one sentence, no type and its text."""
    lines[:] = [re.sub(r"(``.*?``)|\*", lambda found: found[1] or r"\*", line) for line in lines]
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " – ")


def setup(app: Sphinx) -> None:
    """Generated pages are written before any page is read."""
    app.connect("builder-inited", lambda app: generate.write(Path(app.srcdir) / "reference"))
    app.connect("source-read", navigate)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon, which makes markup
