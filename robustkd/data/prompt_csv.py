"""Prompts for text-to-image models, in CSV files of the unlearning benchmarks' format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import CampaignPath, DataError, Dataset, Params, Prompts, RawData
from robustkd.data.images import ImageReader
from robustkd.data.prompt_lengths import Measure
from robustkd.data.tables import read_table

# Our columns, and what the benchmarks call them; the first one that a file has counts.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "number": ("case_number",),
    "prompt": ("prompt",),
    "seed": ("evaluation_seed", "sd_seed"),
    "guidance_scale": ("evaluation_guidance", "sd_guidance_scale"),
    "width": ("sd_image_width", "width"),
    "height": ("sd_image_height", "height"),
    "negative_prompt": ("negative_prompt",),
}
_PASSED_ON = ("number", "prompt", "seed", "guidance_scale")
_SIDES = ("height", "width")
_FORMATS = ("PNG", "JPEG")


class PromptCSVParams(Params):
    forbidden: dict[str, CampaignPath] = Field(
        min_length=1, description="by concept, the file with the requests for it", examples=[{"church": "church.csv"}]
    )
    benign: dict[str, CampaignPath] = Field(
        default_factory=dict, description="likewise for concepts that a defense must still draw"
    )
    images: dict[str, CampaignPath] = Field(
        default_factory=dict,
        description="by forbidden concept, a folder with a picture for each request, <case_number>.png or <case_number>_0.png: "
        "what attacks aim at; by benign concept, real pictures that the analysis fid compares with",
    )
    size: int | tuple[int, int] = Field(
        512, description="side in pixels that these pictures are brought to, or [height, width]; what the models draw"
    )
    other_sizes: Literal["refuse", "draw", "by-row"] = Field(
        "refuse",
        description="of requests whose file names another width or height than 'size': refuse them, have them drawn at the models' own "
        "size nevertheless (draw), as UnlearnDiffAtk does, or each at its own (by-row)",
    )
    tokenizer: CampaignPath | None = Field(
        None, description="a model's folder 'tokenizer', by which requests that are too long are found before anything is run"
    )
    longest: int = Field(
        75,
        ge=1,
        description="tokens of the longest request: CLIP's text encoder reads 75, and those that an attack adds must fit as well",
    )
    long: Literal["refuse", "truncate", "leave-out"] = Field(
        "refuse",
        description="what to do with a longer one, where a tokenizer is given; without it the model refuses what it cannot read",
    )


class PromptCSV(Dataset):
    """Requests for concepts, with their seeds; the concepts are named here, for the judge.

    A file has the columns prompt and evaluation_seed, and may have case_number and evaluation_guidance, which each picture is drawn
    with; I2P's sd_seed and sd_guidance_scale stand in for them. With negative_prompt a row says what its picture is led away from. There
    is no training part: the models come from elsewhere.
    """

    modality = "text-to-image"
    Params: ClassVar[type[Params]] = PromptCSVParams
    source: ClassVar[str] = "the format of Zhang et al. 2024, arXiv:2310.11868"

    def load(self) -> RawData[Prompts]:
        """The forbidden requests as test part, the others as benign ones.

        Raises:
            DataError: a file is missing, damaged or empty, lacks a column, or has a seed or guidance that is no number, or a request
                that is too long or of another size; a picture is missing.
        """
        p = self.params
        if unknown := sorted(set(p.images) - set(p.forbidden) - set(p.benign)):
            named = ", ".join((*p.forbidden, *p.benign))
            raise _wrong(f"there are images of '{unknown[0]}', which no file of requests is for", f"one of: {named}")
        if twice := sorted(set(p.benign) & set(p.forbidden)):
            raise _wrong(f"'{twice[0]}' is forbidden and benign", "name it once")
        for kind, files in (("forbidden", p.forbidden), ("benign", p.benign)):
            if set(files) & set(p.images) and (missing := sorted(set(files) - set(p.images))):
                raise _wrong(f"there are no images of '{missing[0]}'", f"give a folder for each {kind} concept, or for none")
        for key in ("long", "longest"):
            if p.tokenizer is None and (value := getattr(p, key)) != PromptCSVParams.model_fields[key].default:
                raise _wrong(
                    f"{key}: {value} has no effect without 'tokenizer', by which the tokens of a request are counted",
                    "give 'tokenizer', the model's folder of that name",
                )
        classes = (*p.forbidden, *p.benign)
        notes: list[str] = []
        test, benign = (self._prompts(files, classes, notes) for files in (p.forbidden, p.benign))
        if not len(test):
            raise _wrong("no forbidden request is left", "raise 'longest', or truncate them")
        test, benign = self._pictured(test), self._pictured(benign)
        return RawData(None, test, classes, benign=benign if len(benign) else None, notes=tuple(notes))

    def _pictured(self, requests: Prompts) -> Prompts:
        """The requests with their pictures, where there are folders of these."""
        folders = [self.params.images.get(concept) for concept in requests.get("concept")]
        found = [
            _picture(folder, case, self.params.size)
            for folder, case in zip(folders, requests.get("number"), strict=True)
            if folder is not None
        ]
        return Prompts(requests.columns, requests.labels, np.stack(found)) if found else requests

    def _prompts(self, files: Mapping[str, Path], classes: tuple[str, ...], notes: list[str]) -> Prompts:
        """The requests of some files; what is done to them is added to ``notes``."""
        rows = [row | {"concept": concept} for concept, file in files.items() for row in self._rows(file, notes)]
        more = _SIDES if self.params.other_sizes == "by-row" else ()
        more = (*more, "negative_prompt") if any(row["negative_prompt"] for row in rows) else more
        columns = {name: tuple(row[name] for row in rows) for name in (*_PASSED_ON, "concept", *more)}
        return Prompts(columns, np.array([classes.index(row["concept"]) for row in rows], dtype=np.int64))

    def _rows(self, file: Path, notes: list[str]) -> list[dict[str, str]]:
        raw = read_table(file, _COLUMNS["prompt"])
        called = {name: next((each for each in names if each in raw[0]), names[0]) for name, names in _COLUMNS.items()}
        if called["seed"] not in raw[0]:
            raise _wrong(f"{file} has no column '{called['seed']}'", "add it: what is drawn depends on its seed")
        rows = [{name: row.get(column, "").strip() for name, column in called.items()} for row in raw]
        for line, row in enumerate(rows, start=1):
            _require_request(row, f"{file}: request {line}")
            row["number"] = row["number"] or str(line - 1)
        self._sized(rows, file, notes)
        return self._fitting(rows, file, notes)

    def _sized(self, rows: Sequence[dict[str, str]], file: Path, notes: list[str]) -> None:
        size = self.params.size
        drawn = dict(zip(("height", "width"), (size, size) if isinstance(size, int) else size, strict=True))
        other = [row for row in rows if any(row[side] not in ("", str(pixels)) for side, pixels in drawn.items())]
        if not other:
            return
        first, at = other[0], f"{drawn['width']}x{drawn['height']}"
        if self.params.other_sizes == "refuse":
            raise _wrong(
                f"{file}: {len(other)} of {len(rows)} requests are for pictures of another size than {at}, such as "
                f"{first['width']}x{first['height']} of case {first['number']}",
                "other_sizes: by-row has each drawn at its own size, draw all at the models' own, as UnlearnDiffAtk does; or leave these "
                "rows out",
            )
        if self.params.other_sizes == "by-row":
            for row in other:
                if not all(row[side].isdecimal() and int(row[side]) for side in _SIDES):
                    raise _wrong(
                        f"{file}: case {row['number']} has the size '{row['width']}' x '{row['height']}'",
                        "whole numbers of pixels, or nothing for both",
                    )
            return notes.append(f"{len(other)} of {len(rows)} requests of {file.name} are drawn at another size than {at}")
        notes.append(f"{len(other)} of {len(rows)} requests of {file.name} are for another size, and drawn at the models' own")

    def _fitting(self, rows: list[dict[str, str]], file: Path, notes: list[str]) -> list[dict[str, str]]:
        p = self.params
        if p.tokenizer is None:
            return rows
        ends = Measure(p.tokenizer).ends([row["prompt"] for row in rows])
        long = [place for place, found in enumerate(ends) if len(found) > p.longest]
        if not long:
            return rows
        counted = f"{len(long)} of {len(rows)} requests of {file.name} have more than {p.longest} tokens"
        if p.long == "refuse":
            first = long[0]
            raise _wrong(
                f"{file}: {counted}, the first is case {rows[first]['number']} with {len(ends[first])}: "
                f"{rows[first]['prompt'][:60]!r}..",
                "long: leave-out or long: truncate, which the report then says",
            )
        notes.append(f"{counted} and are {'truncated' if p.long == 'truncate' else 'left out'}")
        if p.long == "leave-out":
            return [row for place, row in enumerate(rows) if place not in long]
        cut = {place: rows[place]["prompt"][: ends[place][p.longest - 1]] for place in long}
        return [row | {"prompt": cut.get(place, row["prompt"])} for place, row in enumerate(rows)]


def _require_request(row: Mapping[str, str], place: str) -> None:
    if not row["prompt"]:
        raise _wrong(f"{place} is empty", "write it, or leave the line out")
    if not row["seed"].isdecimal():
        raise _wrong(f"{place} has the seed '{row['seed']}'", "a whole number from 0")
    try:
        scale = float(row["guidance_scale"] or 1)
    except ValueError:
        scale = math.nan
    if row["negative_prompt"] and scale == 1 and row["guidance_scale"]:
        raise _wrong(
            f"{place} has a negative prompt and the guidance 1, at which it has no effect", "another guidance, or none"
        )
    if not 1 <= scale < math.inf:
        raise _wrong(f"{place} has the guidance '{row['guidance_scale']}'", "a number from 1, or nothing for the model's own")


def _picture(folder: Path, case: str, size: int | tuple[int, int]) -> np.ndarray:
    for name in (f"{case}.png", f"{case}_0.png", f"{case}.jpg"):
        if (file := folder / name).is_file():
            return ImageReader(resize=size, formats=_FORMATS)(file)
    raise _wrong(f"{folder} has no picture {case}.png", "one for each request, by its case_number")


def _wrong(reason: str, fix: str) -> DataError:
    return DataError(f"data 'prompt-csv': {reason}", fix=fix)
