"""Texts from outside, without secrets and without what a terminal or a file cannot take: for whatever is printed, stored or reported."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

MASK = "***"
LONGEST = 4000
"""Characters of a text from outside that are kept: an error's message can have millions."""
SHORTEST = 6
"""A shorter value of an environment variable is no secret, and may be part of any word."""
_URI = re.compile(r"(?<=://)[^/\s]+@")
_PAIR = re.compile(
    r"(?i)\b((?:[\w-]{0,64}(?:password|passwd|secret|api[_-]?key|access[_-]?key)|(?:(?:access|auth|api|hf)[_-])?token|authorization)"
    r"""["']?[ \t]*[=:][ \t]*["']?(?:(?:bearer|basic)[ \t]+)?)[^\s"',;&})\]]+"""
)
"""A name that speaks of a secret with its value, as a shell, a URI, YAML, JSON, Python and HTTP write it."""
_NOT_WRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LONE_OPTION = re.compile(r"(?i)--?[\w-]*(password|passwd|token|secret|api-?key)")
_NAME = re.compile(r"(?i)(password|passwd|passphrase|token|secret|credential|access_key|api_?key|_(key|pw|pwd|pass|auth|pat)$)")
_URI_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s]+)@")


def redacted(text: str) -> str:
    """``text`` without the credentials of URIs, without ``password=...`` and ``"api_key": ...`` and the like, and without the values
    that the environment keeps under names that speak of secrets."""
    for secret in _secrets(tuple(os.environ.items())):
        text = text.replace(secret, MASK)
    return _PAIR.sub(rf"\1{MASK}", _URI.sub(f"{MASK}@", text))


def redacted_value(name: str, value: str) -> str:
    """The text of a value that is shown under ``name``: nothing of it where the name speaks of a secret."""
    return MASK if _PAIR.search(f"{name}=x") else redacted(value)


def printable(text: str, longest: int = LONGEST) -> str:
    """``text`` with a sign in the place of each control character and each half of a surrogate pair, cut where it is long."""
    kept = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in kept)


def safe_to_show(text: str, longest: int = LONGEST) -> str:
    """A text from outside as it may be printed and stored: ``redacted``, and then ``printable``, so that no cut halves a secret."""
    head = text[: 2 * longest]
    if len(head) < len(text):  # the last word may be the first half of one
        head = (head.rsplit(None, 1) or [""])[0]
    return printable(redacted(head), longest)


def writable(text: str) -> str:
    """``text`` as a file in UTF-8 holds it: with a sign in the place of each control character and each half of a surrogate pair."""
    return _NOT_WRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets; what follows an option such as ``--token`` is one."""
    after_option = (bool(_LONE_OPTION.fullmatch(previous)) for previous in ("", *arguments))
    return [MASK if secret else redacted(argument) for argument, secret in zip(arguments, after_option, strict=False)]


@lru_cache(maxsize=4)
def _secrets(environment: tuple[tuple[str, str], ...]) -> list[str]:
    named = [value for name, value in environment if _NAME.search(name)]
    in_uris = [password for _, value in environment for password in _URI_PASSWORD.findall(value)]
    found = {value for value in (*named, *in_uris, *map(unquote, in_uris)) if len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)  # the longer first: one may be part of another
