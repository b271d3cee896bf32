"""Addresses of pages: what is shown is in the address, so that it can be shared, and so that a page can also be a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlencode

from robustkd.redaction import writable

HOME = "leaderboard"
ASSETS = ("style.css", "view.js")
ORDER = (
    "q",
    "sort",
    "order",
    "run",
    "defense",
    "seed",
    "a",
    "b",
    "show",
    "by",
    "index",
    "cell",
    "row",
    "which",
    "n",
    "since",
    "page",
)
"""What pages can be asked for, in the order of an address: one page has one."""


@dataclass(frozen=True)
class Address:
    """A page, or a file that pages show, with what it is asked for.

    Attributes:
        query: names and values, in order; empty values are left out.
    """

    name: str
    query: tuple[tuple[str, str], ...] = ()

    def get(self, key: str, default: str = "") -> str:
        """The value of a key."""
        return next((value for name, value in self.query if name == key), default)

    def with_(self, **changes: object) -> Address:
        """The same with other values."""
        return address(self.name, **{**dict(self.query), **changes})


def address(name: str, /, **query: object) -> Address:
    """The address of a page with what it is asked for; None, "" and what no page knows are left out."""
    told = ((key, writable(str(query[key]))) for key in ORDER if query.get(key) is not None)
    return Address(name, tuple((key, value) for key, value in told if value))


class Links:
    """Addresses as the server has them."""

    files = False
    """Whether pages are files, which no form can ask anything."""

    def to(self, page: Address) -> str:
        """What leads to a page."""
        path = "/" if page.name == HOME else f"/{page.name}"
        return f"{path}?{urlencode(page.query)}" if page.query else path


class FileLinks(Links):
    """Addresses as names of files in one folder; each that was asked for is remembered, so that it can be written."""

    files = True

    def __init__(self) -> None:
        self._asked: dict[Address, str] = {}
        self._next: list[Address] = []

    def to(self, page: Address) -> str:
        """The name of the page's file."""
        if page not in self._asked:
            self._asked[page] = _file(page)
            self._next.append(page)
        return self._asked[page]

    def pending(self) -> Iterator[tuple[Address, str]]:
        """Every page that was asked for, once, with its file's name; pages that are asked for meanwhile come as well."""
        while self._next:
            page = self._next.pop(0)
            yield page, self._asked[page]


def _file(page: Address) -> str:
    if page.name in ASSETS:
        return page.name
    if page == Address(HOME):
        return "index.html"
    said = "-".join([page.name, *(value for _, value in page.query)])
    plain = re.sub(r"[^A-Za-z0-9]+", "-", said).strip("-")[:60]
    mark = sha256(repr(page).encode()).hexdigest()[:8]  # what was replaced or cut off may have told two pages apart
    return f"{plain}-{mark}.{'png' if page.name == 'image' else 'html'}"
