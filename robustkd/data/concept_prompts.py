"""Prompts for concepts from the user's files, in the format of UnlearnDiffAtk's benchmark: to test models that come erased."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import CampaignPath, DataError, Dataset, Modality, Params, Prompts, RawData
from robustkd.data.tables import read_csv

_SEED = "evaluation_seed"


class ConceptPromptsParams(Params):
    """Parameters of ``concept-prompts``."""

    files: dict[str, CampaignPath] = Field(
        min_length=1,
        description="of each erased concept, as the judge's classes call it, a CSV with the columns prompt and evaluation_seed",
        examples=[{"church": "prompts/church.csv"}],
    )
    benign: CampaignPath | None = Field(
        None, description="CSV of prompts for other concepts: the columns prompt, evaluation_seed and concept"
    )


class ConceptPrompts(Dataset):
    """Prompts without images and without a training part: the models come trained, and erased, from elsewhere."""

    Params = ConceptPromptsParams
    modality: ClassVar[Modality] = "text-to-image"
    source = "Zhang et al., To generate or not? Safety-driven unlearned diffusion models .., ECCV 2024, arXiv:2310.11868"

    def load(self) -> RawData:
        """All prompts of all files.

        Raises:
            DataError: a file or one of its columns is missing, or a seed is no number.
        """
        forbidden = [(concept, prompt, seed) for concept, file in self.params.files.items() for prompt, seed in _prompts(file)]
        others: list[tuple[str, str, str]] = []
        if self.params.benign is not None:
            named = [row["concept"] for row in read_csv(self.params.benign, ("concept",))]
            others = [(concept, *row) for concept, row in zip(named, _prompts(self.params.benign), strict=True)]
        classes = tuple(dict.fromkeys(concept for concept, _, _ in (*forbidden, *others)))
        return RawData(None, _table(forbidden, classes), classes, _table(others, classes) if others else None)


def _prompts(file: CampaignPath) -> list[tuple[str, str]]:
    rows = read_csv(file, ("prompt", _SEED))
    for number, row in enumerate(rows, 1):
        if not row[_SEED].isdecimal():
            raise DataError(f"{file}, row {number}: the seed {row[_SEED]!r} is no number", fix=f"give digits in {_SEED}")
    return [(row["prompt"], row[_SEED]) for row in rows]


def _table(rows: list[tuple[str, str, str]], classes: tuple[str, ...]) -> Prompts:
    concepts, prompts, seeds = zip(*rows, strict=True)
    labels = np.array([classes.index(concept) for concept in concepts], dtype=np.int64)
    return Prompts({"prompt": prompts, "concept": concepts, "seed": seeds}, labels)
