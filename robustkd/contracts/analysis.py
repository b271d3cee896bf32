"""The analysis contract: a table about one trained defense, beside its robust accuracy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic

from typing_extensions import TypeVar

from robustkd.contracts.attack import Batch
from robustkd.contracts.data import Inputs, Modality
from robustkd.contracts.holder import TargetHolder
from robustkd.contracts.target import BaseTarget, Target

if TYPE_CHECKING:
    from robustkd.contracts.threat import ThreatModel


AnalysedTarget = TypeVar("AnalysedTarget", bound=BaseTarget, default=Target, contravariant=True)
AnalysedBatch = TypeVar("AnalysedBatch", default=Batch, contravariant=True)


@dataclass(frozen=True)
class Certificate:
    """What was proved of the first M samples, one after the other, under the campaign's threat model.

    Attributes:
        robust: (M,) classified rightly, and no perturbation within the budget changes that.
        broken: (M,) a perturbation within the budget is known that is classified wrongly.
        error: the probability at which ``robust`` may be wrong of a sample, of a certificate that rests on draws; 0 of a proof.
    """

    robust: list[bool]
    broken: list[bool]
    error: float = 0.0


@dataclass(frozen=True)
class Table:
    """What an analysis found.

    Attributes:
        caption: what a value is, in one sentence, with its settings and the number of samples.
        rows, columns: their names.
        values: one list for each row.
        shares: whether a value is the share of samples that are broken, in [0, 1]; else any number.
        metrics: the table in a few numbers, by names that may be metrics in MLflow.
        certificate: what the analysis proved of each sample, if it proves anything; the campaign shows it as a bracket.
        parts: how many of the first columns are the parts of a whole, in an order; a picture shows them as one bar.
        standing: whether a value is the share of samples that stand, in [0, 1], such as an accuracy.
    """

    caption: str
    rows: list[str]
    columns: list[str]
    values: list[list[float]]
    shares: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    certificate: Certificate | None = None
    parts: int = 0
    standing: bool = False


class Analysis(TargetHolder, ABC, Generic[AnalysedTarget, AnalysedBatch]):
    """An analysis: parameters, and ``run``. One of prompts derives from ``Analysis[GenerativeTarget, PromptBatch]``.

    Attributes:
        modalities: of what it can be made.
        inputs: ``images`` where it can be made of images (C, H, W) alone.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    inputs: ClassVar[Inputs] = "any"

    @property
    def spares_attacks(self) -> bool:
        """Whether attacks under the campaign's threat model are to leave alone what it certifies (``Table.certificate``)."""
        return False

    @abstractmethod
    def run(self, target: AnalysedTarget, batch: AnalysedBatch, threat: ThreatModel, seed: int) -> Table:
        """The table.

        Args:
            target: in evaluation mode; it is to be left as found.
            batch: the test samples with their clean logits (``Batch``), or the requests with the target's answers (``PromptBatch``).
            threat: the campaign's.
            seed: of whatever is drawn.

        Raises:
            TargetError: the analysis cannot be made of this target.
        """
