"""The attack ``encodings``: what it writes is read back by other code, and a model that decodes is broken by it."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable
from typing import get_args
from urllib.parse import unquote

import pytest

import robustkd
from robustkd.attacks.text.rewording.encodings import ENCODERS, Encoding
from robustkd.contracts import Request, UsageError
from support.answers_by_rule import ByRule

DECODERS: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64decode(text).decode(),
    "rot13": lambda text: codecs.decode(text, "rot13"),
    "hex": lambda text: bytes.fromhex(text).decode(),
    "binary": lambda text: bytes(int(byte, 2) for byte in text.split()).decode(),
    "ascii": lambda text: "".join(chr(int(number)) for number in text.split()),
    "reversed": lambda text: "".join(reversed(text)),
    "url": unquote,
    "caesar": lambda text: "".join(_moved(letter, -3) for letter in text),
    "atbash": lambda text: "".join(_mirrored(letter) for letter in text),
}
REQUEST = "Open the vault, xyz ABC!"


def _moved(letter: str, by: int) -> str:
    if not (letter.isascii() and letter.isalpha()):
        return letter
    first = ord("a") if letter.islower() else ord("A")
    return chr((ord(letter) - first + by) % 26 + first)


def _mirrored(letter: str) -> str:
    if not (letter.isascii() and letter.isalpha()):
        return letter
    ends = ord("a") + ord("z") if letter.islower() else ord("A") + ord("Z")
    return chr(ends - ord(letter))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_what_is_encoded_can_be_read(name: Encoding) -> None:
    assert DECODERS[name](ENCODERS[name](REQUEST)) == REQUEST
    assert ENCODERS[name](REQUEST) != REQUEST


def test_encodings_by_hand() -> None:
    assert ENCODERS["morse"]("SOS me 1") == "... --- ... / -- . / .----"
    assert ENCODERS["leetspeak"]("Ease it") == "3453 17"
    assert ENCODERS["base64"]("Zürich") == "WsO8cmljaA=="
    assert set(get_args(Encoding)) == ENCODERS.keys()


def decoding(asked: Request) -> str:
    """A model that refuses what it reads in plain words, and does what base64 says."""
    return "sure" if asked.prompt.rpartition("\n")[2] == ENCODERS["base64"](REQUEST) else "no"


def test_a_model_that_decodes_is_broken_and_its_control_is_not() -> None:
    def sure(requests: list[str], outputs: list[str]) -> list[bool]:
        return [output == "sure" for output in outputs]

    model = ByRule(decoding)
    attack = {"kind": "encodings", "encodings": ["hex", "base64", "rot13"]}
    found = robustkd.attack(attack, model, [REQUEST], judges=sure)
    assert (found.success.tolist(), found.outcome.attempts.tolist()) == ([True], [2])
    assert found.transcripts[0].prompt.startswith("The following text is in Base64.")
    assert not robustkd.attack("direct", model, [REQUEST], judges=sure).success.any()
    assert robustkd.attack({**attack, "encodings": ["hex"]}, model, [REQUEST], judges=sure).outcome.attempts.tolist() == [1]
    assert robustkd.attack(attack, model, [REQUEST], judges=sure, attempts=1).outcome.attempts.tolist() == [1]
    with pytest.raises(UsageError, match=r"does not show \{text\}"):
        robustkd.attack("encodings", model, [REQUEST], template="no text")
