"""Prompts for text-to-image models, in CSV files of the unlearning benchmarks' format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import CampaignPath, DataError, Dataset, Params, Prompts, RawData
from robustkd.data.images import read_image
from robustkd.data.tables import read_csv

# Our columns, and what the benchmark calls them.
_COLUMNS = {"number": "case_number", "prompt": "prompt", "seed": "evaluation_seed", "guidance": "evaluation_guidance"}
_NEEDED = ("prompt", "seed")
_FORMATS = ("PNG", "JPEG")


class PromptCSVParams(Params):
    """Parameters of ``prompt-csv``."""

    forbidden: dict[str, CampaignPath] = Field(
        min_length=1, description="by concept, the file with the requests for it", examples=[{"church": "church.csv"}]
    )
    benign: dict[str, CampaignPath] = Field(
        default_factory=dict, description="likewise for concepts that a defense must still draw"
    )
    images: dict[str, CampaignPath] = Field(
        default_factory=dict,
        description="by forbidden concept, a folder with a picture for each request, <case_number>.png or <case_number>_0.png: "
        "what attacks aim at",
    )
    size: int = Field(512, ge=1, description="side in pixels that these pictures are brought to")


class PromptCSV(Dataset):
    """Requests for concepts, with their seeds; the concepts are named here, for the judge.

    A file has the columns prompt and evaluation_seed, and may have case_number and evaluation_guidance. There is no training part:
    the models come from elsewhere.
    """

    modality = "text-to-image"
    Params: ClassVar[type[Params]] = PromptCSVParams
    source: ClassVar[str] = "the format of Zhang et al. 2024, arXiv:2310.11868"

    def load(self) -> RawData[Prompts]:
        """The forbidden requests as test part, the others as benign ones.

        Raises:
            DataError: a file is missing, damaged or empty, lacks a column, or has a seed that is no number; a picture is missing.
        """
        p = self.params
        if unknown := sorted(set(p.images) - set(p.forbidden)):
            raise _wrong(f"there are images of '{unknown[0]}', which is not forbidden", f"one of: {', '.join(p.forbidden)}")
        if twice := sorted(set(p.benign) & set(p.forbidden)):
            raise _wrong(f"'{twice[0]}' is forbidden and benign", "name it once")
        if p.images and (missing := sorted(set(p.forbidden) - set(p.images))):
            raise _wrong(f"there are no images of '{missing[0]}'", "give a folder for each forbidden concept, or for none")
        classes = (*p.forbidden, *p.benign)
        test = _prompts(p.forbidden, classes)
        if p.images:
            folders = [p.images[concept] for concept in test["concept"]]
            pictures = [_picture(folder, case, p.size) for folder, case in zip(folders, test["number"], strict=True)]
            test = Prompts(test.columns, test.labels, np.stack(pictures))
        return RawData(None, test, classes, benign=_prompts(p.benign, classes) if p.benign else None)


def _prompts(files: Mapping[str, Path], classes: tuple[str, ...]) -> Prompts:
    rows = [row | {"concept": concept} for concept, file in files.items() for row in _rows(file)]
    columns = {name: tuple(row[name] for row in rows) for name in (*_COLUMNS, "concept")}
    return Prompts(columns, np.array([classes.index(row["concept"]) for row in rows], dtype=np.int64))


def _rows(file: Path) -> list[dict[str, str]]:
    needed = [_COLUMNS[name] for name in _NEEDED]
    rows = [{name: row.get(column, "").strip() for name, column in _COLUMNS.items()} for row in read_csv(file, needed)]
    for line, row in enumerate(rows, start=1):
        if not row["prompt"]:
            raise _wrong(f"{file}: request {line} is empty", "write it, or leave the line out")
        if not row["seed"].isdecimal():
            raise _wrong(f"{file}: the seed of request {line} is '{row['seed']}'", "a whole number from 0")
        row["number"] = row["number"] or str(line - 1)
    return rows


def _picture(folder: Path, case: str, size: int) -> np.ndarray:
    for name in (f"{case}.png", f"{case}_0.png", f"{case}.jpg"):
        if (file := folder / name).is_file():
            return read_image(file, _FORMATS, size=size)
    raise _wrong(f"{folder} has no picture {case}.png", "one for each request, by its case_number")


def _wrong(reason: str, fix: str) -> DataError:
    return DataError(f"data 'prompt-csv': {reason}", fix=fix)
