"""The viewer's pages as files, for a paper's supplement or a colleague: every page that leads from the first one, with its pictures."""

from __future__ import annotations

from pathlib import Path

from robustkd.contracts import RobustkdError, UsageError
from robustkd.redaction import safe_to_show
from robustkd.viewer.addresses import HOME, Address, FileLinks
from robustkd.viewer.pages import html
from robustkd.viewer.runs import Runs
from robustkd.viewer.samples import picture
from robustkd.viewer.site import Site

SAMPLES = 20
"""Of each defense, unless more are asked for: every one of them is a page with pictures."""


def export(runs: Runs, folder: Path, *, with_harmful: bool = False, samples: int | None = SAMPLES) -> int:
    """Write the pages of all campaigns into ``folder``; returns the number of files.

    Args:
        folder: made where it is not there, and empty otherwise.
        with_harmful: take along what was asked of models that should refuse it, what they answered and drew.
        samples: of each defense, the first ones of the data; None for all.

    Raises:
        UsageError: there is something in the folder already, or it cannot be written.
    """
    links = FileLinks()
    site = Site(runs, links, with_harmful=with_harmful, most_samples=samples)
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if next(folder.iterdir(), None) is not None:
            raise UsageError(f"{folder} is not empty", fix="name a new folder: an export replaces nothing")
        links.to(Address(HOME))
        for page, name in links.pending():
            (folder / name).write_bytes(_content(site, page))
            count += 1
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}", fix="name another folder") from error
    return count


def _content(site: Site, page: Address) -> bytes:
    if page.name == "style.css":
        return site.style().encode()
    if page.name == "view.js":
        return site.script().encode()
    try:
        return picture(site, page) if page.name == "image" else html(site, page).encode()
    except RobustkdError as error:  # what is missing of one campaign is no reason to leave the others out
        return _instead(site, page, error)


def _instead(site: Site, page: Address, error: RobustkdError) -> bytes:
    """What stands in the place of a page that could not be made; of a picture nothing."""
    if page.name == "image":
        return b""
    return site.render("missing.html.j2", page, message=safe_to_show(str(error))).encode()
