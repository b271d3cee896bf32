"""The exceptions that robustkd raises on purpose.

Every one of them is meant for a person: the message says what is wrong and where, ``fix`` says what to do about it.
The command line prints both and exits with ``exit_code``; anything that is not a ``RobustkdError`` is a bug of ours.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RobustkdError(Exception):
    """Something the user can act on: a message, and optionally the fix."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from the cell's process to the driver, keyword arguments included.
        return _rebuild, (type(self), self.message, self.fix)


def _rebuild(kind: type[RobustkdError], message: str, fix: str | None) -> RobustkdError:
    error = kind.__new__(kind)
    RobustkdError.__init__(error, message, fix=fix)
    return error


class UsageError(RobustkdError):
    """The command line, a campaign file or an argument is wrong."""

    exit_code = 2


class PluginError(RobustkdError):
    """A plug-in is unknown, or failed to import."""

    exit_code = 2


class DataError(RobustkdError):
    """A dataset is missing, or holds values outside its contract (pixels in [0, 1], labels in range)."""


class TargetError(RobustkdError):
    """A model broke its contract: wrong output shape, NaN logits, no gradient, a damaged checkpoint."""


class AttackError(RobustkdError):
    """An attack broke its contract, or cannot run under the threat model that was asked for."""


class StoreError(RobustkdError):
    """The results folder cannot be read or written."""


class IdentityError(RobustkdError):
    """Files, data or plug-ins are not those that the campaign was planned with."""


ELSEWHERE = {
    "aa": "autoattack",
    "projectedgradientdescent": "pgd",
    "linfpgd": "pgd",
    "l2pgd": "pgd",
    "fastgradientsignmethod": "fgsm",
    "fastgradient": "fgsm",
    "ffgsm": "fgsm",
    "ifgsm": "bim",
    "basiciterativemethod": "bim",
    "carliniwagner": "cwl2",
    "carlinil2": "cwl2",
    "carliniwagnerl2": "cwl2",
    "cw": "cwl2",
    "cwinf": "cwlinf",
    "carlinilinf": "cwlinf",
    "autopgd": "apgdce",
    "apgd": "apgdce",
    "autoprojectedgradientdescent": "apgdce",
    "squareattack": "square",
    "elasticnet": "ead",
    "epsilon": "eps",
    "iters": "steps",
    "maxiter": "steps",
    "nbiter": "steps",
    "iterations": "steps",
    "numsteps": "steps",
    "alpha": "stepsize",
    "epsstep": "stepsize",
    "numrandominit": "restarts",
}
"""What other libraries call an attack or a parameter, without dashes and in lower case, and what it is called here."""


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``word``, as a "did you mean" sentence, or None when nothing is close.

    Letter case, dashes and the ending "attack" do not count, and ``ELSEWHERE`` has other libraries' names.
    """
    names = {_folded(name): name for name in known}
    plain = _folded(word)
    short = plain.removesuffix("attack")
    for form in (plain, ELSEWHERE.get(plain, ""), short, ELSEWHERE.get(short, "")):
        if form in names:
            return f"did you mean '{names[form]}'?"
    close = difflib.get_close_matches(plain, names, n=5, cutoff=0.6)
    close.sort(key=lambda name: sorted(name) != sorted(plain))  # letters in another order are the likelier mistake
    return f"did you mean '{names[close[0]]}'?" if close else None


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "-_ ")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return True
    # Apple's backend, the CPU's and some of other makers raise a RuntimeError that only its text tells.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that memory ran out."""
    link: BaseException | None = error
    while link is not None:
        if out_of_memory(link):
            return True
        link = link.__cause__ or link.__context__
    return False


_OWN = str(Path(__file__).parents[1])
_NOT_THE_USERS = (_OWN, sysconfig.get_path("stdlib"), "<")
TRACEBACK = "ROBUSTKD_TRACEBACK"
"""The environment variable that asks for the tracebacks of errors."""


def place_of(error: BaseException) -> str:
    """`` in FILE:LINE``: the innermost line of the user's own code that an exception passed through; "" where there is none.

    Code of robustkd, of Python and of installed packages is not the user's. A loader's process tells its traceback in the message.
    """
    frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    frames += _ELSEWHERE_RAISED.findall(str(error))
    own = [":".join(frame) for frame in frames if not frame[0].startswith(_NOT_THE_USERS) and "site-packages" not in frame[0]]
    return f" in {own[-1]}" if own else ""


_ELSEWHERE_RAISED = re.compile(r'^ *File "([^"\n]+)", line (\d+)', re.MULTILINE)


@contextmanager
def raised_by(who: str, kind: type[RobustkdError], fix: str = "see that it runs by itself") -> Iterator[None]:
    """Whatever the user's own code raises inside the block is a ``kind`` in one sentence, with the line in the user's file.

    Errors of robustkd and a lack of memory stay what they are.

    Args:
        who: what the code is to the user, such as its file and function.
    """
    try:
        yield
    except RobustkdError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [""]
        said = lines[-1] if _ELSEWHERE_RAISED.search(str(error)) else lines[0]
        raise kind(f"{who} raised {type(error).__name__}{place_of(error)}: {said}", fix=fix) from error


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error, with those that it was raised from, where ``ROBUSTKD_TRACEBACK`` is set."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error, file=sys.stderr)
