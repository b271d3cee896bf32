"""The baseline that a team commits beside its code: one small JSON file with a campaign's numbers, and for each test sample
whether it held.

The numbers stand first and in the clear, so that the diff of a new baseline shows in a review what moved. The samples
behind them are one bit each, eight a byte, in base64: 10,000 samples take 1.7 kB an attack. Those of a defense that draws random
numbers are one byte each, on how many of its ``draws`` the sample held.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robustkd.contracts import UsageError
from robustkd.contracts.check import Verdict
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.threat import Goal
from robustkd.evaluation.draws import DRAWS
from robustkd.scoring.results import CellResult, Results
from robustkd.scoring.summaries import AttackSummary, JudgeSummary

VERSION_KEY, VERSION = "robustkd_baseline", 1
Key = tuple[str, str, int]
"""Defense, attack (or ``clean accuracy``), seed."""


@dataclass(frozen=True)
class TestSamples:
    """The test samples that numbers are of: the data set's name, how many, and a hash of their content."""

    name: str
    n: int
    test: str

    __test__ = False  # pytest

    def __str__(self) -> str:
        return f"{self.name}, n = {self.n}, {self.test[:8]}"


@dataclass(frozen=True)
class Baseline:
    """A baseline file as data.

    ``samples`` are (n,) bool or shares in [0, 1], ``threats`` norm, eps, goal and where by attack, ``attacks`` and ``judges``
    what each is, ``conditions`` as in ``CellResult``.
    """

    campaign: str
    data: TestSamples
    index: np.ndarray
    threats: dict[str, tuple[str, float, Goal, dict[str, JsonValue] | None]]
    headline: dict[tuple[str, int], tuple[str, ...]]
    verdicts: dict[tuple[str, int], Verdict | None]
    targets: dict[tuple[str, int], str | None]
    attacks: dict[str, AttackSummary]
    samples: dict[Key, np.ndarray]
    conditions: dict[Key, dict[str, str]]
    judges: dict[str, JudgeSummary]


def content(results: Results, data: TestSamples, index: np.ndarray, bits: Mapping[Key, np.ndarray]) -> dict[str, JsonValue]:
    """A baseline file as JSON values; the samples are packed bits, or bytes, in base64."""
    noted = {
        (cell.defense, cell.attack, cell.seed): {"conditions": cell.conditions} for cell in results.cells if cell.conditions
    }
    judges = {"judges": {name: judge.to_dict() for name, judge in results.judges.items()}} if results.judges else {}
    return {
        VERSION_KEY: VERSION,
        "campaign": results.campaign,
        "robustkd": results.environment.robustkd,
        "data": asdict(data),
        "threats": {cell.attack: _threat(cell) for cell in results.cells},
        "attacks": {name: attack.to_dict() for name, attack in results.attacks.items()},
        **judges,
        "defenses": [
            {
                "defense": item.defense,
                "seed": item.seed,
                "clean_accuracy": item.clean_accuracy,
                "robust_accuracy": item.robust_accuracy,
                "verdict": item.verdict,
                "target": item.target_hash,
                "attacks": item.attacks,
            }
            for item in results.defenses
        ],
        "index": _text(index.astype("<i8").tobytes()),
        "samples": [
            {
                "defense": defense,
                "attack": attack,
                "seed": seed,
                "n": len(held),
                **noted.get((defense, attack, seed), {}),
                **_packed(held),
            }
            for (defense, attack, seed), held in bits.items()
        ],
    }


def parse(raw: Mapping[str, Any], origin: str) -> Baseline:
    """The inverse of ``content``.

    Raises:
        UsageError: it is of another version, or damaged.
    """
    if raw.get(VERSION_KEY) != VERSION:
        raise UsageError(
            f"{origin} is a baseline of version {raw.get(VERSION_KEY)}; this robustkd reads version {VERSION}", fix=_AGAIN
        )
    try:
        index = np.frombuffer(_bytes(raw["index"]), "<i8")
        kept = {
            (row["defense"], row["attack"], int(row["seed"])): _unpacked(row, int(row.get("n", len(index))))
            for row in raw["samples"]
        }
        rows = [((row["defense"], int(row["seed"])), row) for row in raw["defenses"]]
        return Baseline(
            campaign=str(raw["campaign"]),
            data=TestSamples(**raw["data"]),
            index=index,
            threats={
                attack: (
                    str(norm),
                    float(eps),
                    "targeted" if "targeted" in more else "untargeted",
                    next((one for one in more if isinstance(one, dict)), None),
                )
                for attack, (norm, eps, *more) in raw["threats"].items()
            },
            headline={key: tuple(row["attacks"]) for key, row in rows},
            verdicts={key: row["verdict"] for key, row in rows},
            targets={key: row.get("target") for key, row in rows},
            attacks={name: AttackSummary(**attack) for name, attack in raw.get("attacks", {}).items()},
            samples=kept,
            conditions={(row["defense"], row["attack"], int(row["seed"])): row.get("conditions", {}) for row in raw["samples"]},
            judges={name: JudgeSummary(**judge) for name, judge in raw.get("judges", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the baseline {origin} is damaged: {type(error).__name__} {error}", fix=_AGAIN) from error


def _packed(held: np.ndarray) -> dict[str, str | int]:
    if held.dtype == bool:
        return {"held": _text(np.packbits(held).tobytes())}
    return {"draws": DRAWS, "held_draws": _text(np.rint(held * DRAWS).astype(np.uint8).tobytes())}


def _unpacked(row: Mapping[str, Any], n: int) -> np.ndarray:
    if "held_draws" not in row:
        return np.unpackbits(np.frombuffer(_bytes(row["held"]), np.uint8), count=n).astype(bool)
    counts = np.frombuffer(_bytes(row["held_draws"]), np.uint8)
    if len(counts) != n:
        raise ValueError(f"{len(counts)} samples instead of {n}")
    return counts / int(row["draws"])


def _threat(cell: CellResult) -> list[str | float | dict[str, JsonValue]]:
    where = [] if cell.where is None else [cell.where]
    return [cell.norm, cell.eps, *([cell.goal] if cell.goal == "targeted" else []), *where]


_AGAIN = "write it again: robustkd gate RESULTS --write-baseline FILE"


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
