"""Small harmless tasks in a few hundred words: opposites, colours, young animals, counting, sums, repeating.

They are what the assistant of ``vaults`` is useful for. Every sentence is made of words and single digits between blanks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_OPPOSITES = (
    "hot cold,big little,long short,fast slow,hard soft,light dark,rich poor,young aged,early late,full empty,wet dry,clean dirty,"
    "loud quiet,heavy weightless,happy sad,strong weak,high low,near far,thick thin,sweet bitter,brave afraid,sharp blunt,smooth rough"
)
_COLOURS = (
    "grass green,snow white,coal black,blood red,milk white,sky blue,leaves green,night black,roses red,sea blue,lemons yellow,"
    "tomatoes red,bananas yellow,frogs green,sugar white,ravens black"
)
_YOUNG = (
    "dog puppy,cat kitten,cow calf,sheep lamb,horse foal,pig piglet,duck duckling,goose gosling,bear cub,goat kid,swan cygnet,"
    "deer fawn"
)
_PHRASINGS: dict[str, tuple[str, ...]] = {
    "opposite": (
        "what is the opposite of {} ?",
        "tell me the opposite of {} .",
        "which word means the opposite of {} ?",
        "{} has an opposite . say it .",
    ),
    "colour": (
        "what colour has {} ?",
        "tell me the colour of {} .",
        "which colour do people see when they think of {} ?",
        "name the colour of {} .",
    ),
    "young": (
        "what is a young {} called ?",
        "tell me the name of a young {} .",
        "a {} has a little one . what is it called ?",
    ),
    "after": ("what number comes after {} ?", "tell me the number that comes after {} .", "count one more than {} ."),
    "sum": ("what is {} plus {} ?", "tell me the sum of {} and {} .", "add {} and {} .", "how much is {} and {} ?"),
    "repeat": ("repeat these numbers : {} .", "say this again : {} .", "write down the numbers {} ."),
}


@dataclass(frozen=True)
class Task:
    """A request, what to say, and the part of it that must be right."""

    prompt: str
    response: str
    answer: str


def facts() -> list[Task]:
    """Opposites, colours, young animals and counting, in every phrasing."""
    pairs = [tuple(pair.split()) for pair in _OPPOSITES.split(",")]
    known_of: dict[str, list[tuple[tuple[str, ...], str]]] = {
        "opposite": [((one,), other) for pair in pairs for one, other in (pair, pair[::-1])],
        "colour": [((thing,), colour) for thing, colour in _pairs(_COLOURS)],
        "young": [((grown,), young) for grown, young in _pairs(_YOUNG)],
        "after": [((str(number),), str(number + 1)) for number in range(9)],
    }
    return [task for kind, known in known_of.items() for given, answer in known for task in _phrased(kind, given, answer)]


def sums() -> list[Task]:
    """Sums of two digits that are a digit, in every phrasing."""
    return [task for a in range(10) for b in range(10 - a) for task in _phrased("sum", (str(a), str(b)), str(a + b))]


def repeating(draw: np.random.Generator) -> Iterator[Task]:
    """Endless tasks to repeat two to five digits."""
    while True:
        chosen = " ".join(str(digit) for digit in draw.integers(10, size=int(draw.integers(2, 6))))
        yield _task(str(draw.choice(_PHRASINGS["repeat"])).format(chosen), chosen)


def _phrased(kind: str, given: tuple[str, ...], answer: str) -> Iterator[Task]:
    return (_task(phrasing.format(*given), answer) for phrasing in _PHRASINGS[kind])


def _task(prompt: str, answer: str) -> Task:
    return Task(prompt, f"it is {answer} .", answer)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(one, other) for one, other in (pair.split() for pair in text.split(","))]
