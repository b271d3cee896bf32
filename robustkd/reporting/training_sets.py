"""The condensed data sets that defenses were trained on: what they take, and what they took to make."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.reporting.formatting import count, seconds
from robustkd.scoring.results import Results

HEAD = ("defense", "images", "bytes", "seconds to condense")
NOTE = (
    "Images, labels and distributions uncompressed, a label as one byte. The seconds are wall time where the set was made, in the "
    "mean over seeds, and are spent once for all trainings on it."
)


@dataclass(frozen=True)
class TrainingSetRow:
    """One defense, as it is shown."""

    defense: str
    images: str
    bytes: str
    seconds: str

    @property
    def values(self) -> list[str]:
        """The numbers, in the order of ``HEAD``."""
        return [self.images, self.bytes, self.seconds]


def training_set_rows(results: Results) -> list[TrainingSetRow]:
    """A row for each defense that was trained on a condensed set."""
    rows = []
    for name in dict.fromkeys(one.defense for one in results.defenses):
        sets = [one.training_set for one in results.defenses if one.defense == name and one.training_set is not None]
        if sets:
            mean = sum(one.seconds for one in sets) / len(sets)
            rows.append(TrainingSetRow(name, count(sets[0].images), count(sets[0].bytes), seconds(mean)))
    return rows
