"""Which page is made by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from robustkd.viewer.addresses import HOME, Address
from robustkd.viewer.board import leaderboard_page
from robustkd.viewer.campaign import campaign_page
from robustkd.viewer.changes import changes_page
from robustkd.viewer.compare import compare_page
from robustkd.viewer.samples import sample_page, samples_page
from robustkd.viewer.site import NotFound, Site

PAGES: Mapping[str, Callable[[Site, Address], str]] = {
    HOME: leaderboard_page,
    "campaign": campaign_page,
    "changes": changes_page,
    "compare": compare_page,
    "samples": samples_page,
    "sample": sample_page,
}


def html(site: Site, wanted: Address) -> str:
    """A page.

    Raises:
        NotFound: there is no such page, or nothing of what it is asked for.
    """
    make = PAGES.get(wanted.name)
    if make is None:
        raise NotFound(f"there is no page '{wanted.name}'")
    return make(site, wanted)
