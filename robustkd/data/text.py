"""One form of a text for comparing it, so that what reads alike is alike."""

from __future__ import annotations

import unicodedata

_JOINER_AND_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
_APOSTROPHES = "\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4"


def comparable(text: str) -> str:
    """The text without what a reader does not see or does not tell apart.

    Two texts have the same form when they differ in the Unicode normal form, in letter case or width, in spacing, in characters that
    are not shown (zero-width spaces, soft hyphens, variation selectors), or in which apostrophe or dash they use. It is Unicode's
    compatibility caseless matching (The Unicode Standard, section 3.13) with the apostrophes and dashes added.
    """
    # Twice: folding the case can leave letters that have a composed form.
    for _ in range(2):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return " ".join("".join(map(_plain, text)).split())


def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character in _APOSTROPHES:
        return "'"
    category = unicodedata.category(character)
    hidden = category == "Cf" or character in _JOINER_AND_FILLERS or "VARIATION SELECTOR" in unicodedata.name(character, "")
    return "" if hidden else "-" if category == "Pd" else character
