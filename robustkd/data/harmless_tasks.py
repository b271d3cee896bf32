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
        "say the opposite of {} .",
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
        "name the little one of a {} .",
    ),
    "after": (
        "what number comes after {} ?",
        "tell me the number that comes after {} .",
        "count one more than {} .",
        "which number is next to {} ?",
    ),
    "sum": ("what is {} plus {} ?", "tell me the sum of {} and {} .", "add {} and {} .", "how much is {} and {} ?"),
    "repeat": ("repeat these numbers : {} .", "say this again : {} .", "write down the numbers {} ."),
}


@dataclass(frozen=True)
class Task:
    """A request, what to say, and the part of it that must be right."""

    prompt: str
    response: str
    answer: str


def facts() -> list[list[Task]]:
    """Opposites, colours, young animals and counting; of each the phrasings."""
    known_of = {
        "opposite": [(one, other) for pair in _pairs(_OPPOSITES) for one, other in (pair, pair[::-1])],
        "colour": _pairs(_COLOURS),
        "young": _pairs(_YOUNG),
        "after": [(str(number), str(number + 1)) for number in range(9)],
    }
    return [_phrased(kind, answer, given) for kind, known in known_of.items() for given, answer in known]


def sums() -> list[list[Task]]:
    """Sums of two digits that are a digit; of each the phrasings."""
    return [_phrased("sum", str(a + b), str(a), str(b)) for a in range(10) for b in range(10 - a)]


def repeating(draw: np.random.Generator) -> Iterator[Task]:
    """Endless tasks to repeat two to four digits, each another one."""
    while True:
        chosen = " ".join(str(digit) for digit in draw.permutation(10)[: draw.integers(2, 5)])
        yield _task(str(draw.choice(_PHRASINGS["repeat"])).format(chosen), chosen)


def _phrased(kind: str, answer: str, *given: str) -> list[Task]:
    return [_task(phrasing.format(*given), answer) for phrasing in _PHRASINGS[kind]]


def _task(prompt: str, answer: str) -> Task:
    return Task(prompt, f"it is {answer} .", answer)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(one, other) for one, other in (pair.split() for pair in text.split(","))]
