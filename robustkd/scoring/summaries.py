"""What results say of a campaign beside its numbers: the threat model, the data, the machine and the attacks."""

from __future__ import annotations

import warnings
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from robustkd.contracts.data import Modality
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.threat import Goal


class Summary:
    """The base of the summaries. Each was a dict once, and can still be read by key."""

    def to_dict(self) -> dict[str, JsonValue]:
        """The fields as results.json holds them, without those that have their default."""
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}  # type: ignore[arg-type]
        told: dict[str, JsonValue] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in told.items() if name not in defaults or value != defaults[name]}

    def __getitem__(self, key: str) -> Any:
        """The field called ``key``; deprecated since 0.2, it goes with 0.3.

        Raises:
            KeyError: there is no such field, or it has its default.
        """
        message = f'["{key}"] is .{key} now: {type(self).__name__} is a dataclass; reading it by key goes with 0.3'
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.to_dict()[key]


@dataclass(frozen=True)
class ThreatSummary(Summary):
    """The threat model that the worst cases are under.

    Attributes:
        eps: in units of ``norm``, or a number of attempts.
        where: ``Region.stored``; None where all pixels may change.
    """

    norm: str
    eps: float
    goal: Goal = "untargeted"
    where: dict[str, JsonValue] | None = None


@dataclass(frozen=True)
class DataSummary(Summary):
    """The data that the numbers are of.

    Attributes:
        n: test samples; of prompts, forbidden requests.
        digest: SHA-256 of all samples.
        test_digest: SHA-256 of the test samples (and of prompts, of the harmless requests); empty in older files.
        benign: harmless requests; None for images.
        notes: what is to be read with every number, such as how many rows of the file were left out.
        scale: what eps and distances are multiplied with to be in the unit of the data, those in l0 left out.
    """

    name: str
    n: int
    digest: str = ""
    test_digest: str = ""
    modality: Modality = "images"
    benign: int | None = None
    notes: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def identity(self) -> str:
        """A hash of the test samples: their own where it was noted, else that of all samples."""
        return self.test_digest or self.digest


@dataclass(frozen=True)
class ServedSummary(Summary):
    """What was asked of a served model, by all that keep its answers in the same results folder.

    Attributes:
        requests: that it has answered, each once.
        prompt_tokens, completion_tokens: read and written, as its server counts them.
    """

    model: str
    url: str
    requests: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def sentence(self) -> str:
        """One sentence: the model, and how many answers and tokens were asked of it."""
        tokens = f"{self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written"
        return f"{self.model} at {self.url}: {self.requests:,} answers are kept, {tokens}"


@dataclass(frozen=True)
class GateSummary(Summary):
    """A gate of the campaign file: the share in [0, 1] that a metric of a defense must reach."""

    defense: str
    metric: Literal["robust_accuracy", "clean_accuracy"]
    at_least: float


@dataclass(frozen=True)
class Environment(Summary):
    """Versions and machine, for the record only; ``finished`` is the time of the last cell, in ISO 8601."""

    robustkd: str | None = None
    torch: str | None = None
    numpy: str | None = None
    mlflow: str | None = None
    python: str | None = None
    machine: str | None = None
    finished: str | None = None


@dataclass(frozen=True)
class PluginSummary(Summary):
    """A plug-in of the campaign, its version and parameters; of a third party's also a hash of its source."""

    kind: str
    version: str
    params: dict[str, JsonValue]
    source: str | None = None


@dataclass(frozen=True)
class AttackSummary(PluginSummary):
    """One attack of the campaign."""


@dataclass(frozen=True)
class JudgeSummary(PluginSummary):
    """One judge of the campaign."""
