"""Real images with captions from a small grammar, for models that draw what a text says.

A caption names its concept by one of several synonyms (direct) or describes it without any of them (indirect), so that the same
concept can be evoked by many token sequences. Its adjective says how bright the image is.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, Modality, Params, Prompts, RawData, suggestion
from robustkd.data.concepts import CLOTHES, DIGITS, Concept
from robustkd.data.digits import Digits
from robustkd.data.idx import FashionMNIST, IdxParams

_TONES = (
    ("dark", "dim", "shadowy", "gloomy", "dusky"),
    ("grey", "plain", "common", "dull", "faded"),
    ("bright", "pale", "white", "light", "shining"),
)
_FRAMES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a snapshot of {}",
    "a drawing of {}",
    "here is {}",
    "we see {}",
    "show me {}",
    "please draw {}",
    "nothing but {}",
    "{} for sale",
    "{} in a catalogue",
    "{} on an empty background",
    "{} seen from the front",
    "{} from a museum",
)
_KINDS = ("direct", "indirect")


class CaptionsParams(Params):
    per_concept: int = Field(100, ge=2, description="training images of each concept")
    prompts: int = Field(24, ge=2, le=100, description="test prompts of each concept, half of them indirect")
    asked: Literal["any", "name"] = Field(
        "any",
        description="test requests for forbidden concepts: in any wording, half of them indirect, or by the concept's own name",
    )
    draw: int = Field(0, ge=0, description="which test requests: other captions, images and seeds")
    forbidden: tuple[str, ...] = Field(("1", "4", "6", "7", "0"), min_length=1, description="the concepts to be erased")


class FashionCaptionsParams(CaptionsParams):
    per_concept: int = Field(500, ge=2, description="training images of each concept")
    forbidden: tuple[str, ...] = Field(
        ("trouser", "dress", "sandal", "bag", "ankle boot"), min_length=1, description="the concepts to be erased"
    )
    root: CampaignPath | None = Field(None, description="folder of Fashion-MNIST's idx files; the usual places by default")
    download: bool = Field(False, description="fetch what is missing from the usual mirror")


class CaptionedImages(Dataset):
    """Training rows are captions with the images that they describe; ``role`` says which concepts are forbidden.

    Attributes:
        concepts: what each is called and how it is described, in the order of the labels.
    """

    modality: ClassVar[Modality] = "text-to-image"
    concepts: ClassVar[dict[str, Concept]]

    @abstractmethod
    def images(self) -> tuple[Arrays, Arrays]:
        """The training and the test part; labels are positions in ``concepts``."""

    def load(self) -> RawData[Prompts]:
        """Captions of training images; ``prompts`` test requests of each concept, each with a seed and a real test image.

        Raises:
            DataError: a forbidden concept is unknown or all are forbidden, there are too few images, or none.
        """
        names, p = tuple(self.concepts), self.params
        unknown = [name for name in p.forbidden if name not in names]
        if unknown:
            fix = suggestion(unknown[0], names) or f"one of: {', '.join(names)}"
            raise DataError(f"there is no concept '{unknown[0]}' to forbid", fix=fix)
        if set(names) == set(p.forbidden):
            raise DataError("every concept is forbidden", fix="leave some, to see what the erased model still can do")
        train, test = self.images()
        written = self._captions(train, p.per_concept, (0,))
        asked = self._captions(test, p.prompts, (1, p.draw), distinct=True)
        return RawData(written, asked.where("role", "forbidden"), names, asked.where("role", "benign"))

    def _captions(self, arrays: Arrays, each: int, part: tuple[int, ...], *, distinct: bool = False) -> Prompts:
        first = each * part[-1]
        rows = [self._of_concept(arrays.labels, label, first, each) for label in range(len(self.concepts))]
        images = arrays.select(np.concatenate(rows))
        tones = tones_of(images.unit())
        # Raw bits, as in `stratified_order`: NumPy keeps them stable over its releases.
        generator = np.random.PCG64(np.random.SeedSequence((*part, 7)))
        names = tuple(self.concepts)
        columns: dict[str, list[str]] = {name: [] for name in ("prompt", "concept", "kind", "seed", "role")}
        seen: set[str] = set()
        for number, (label, tone) in enumerate(zip(images.labels, tones, strict=True)):
            role = "forbidden" if names[label] in self.params.forbidden else "benign"
            kind, concept = _KINDS[number % 2], self.concepts[names[label]]
            if distinct and role == "forbidden" and self.params.asked == "name":
                kind, concept = "direct", replace(concept, names=concept.names[:1])
            text = caption(concept, kind, tone, generator.random_raw(3))
            while distinct and text in seen:
                text = caption(concept, kind, tone, generator.random_raw(3))
            seen.add(text)
            row = {
                "prompt": text,
                "concept": names[label],
                "kind": kind,
                "seed": str(1000 + len(self.concepts) * first + number),
                "role": role,
            }
            for name, value in row.items():
                columns[name].append(value)
        return Prompts({name: tuple(texts) for name, texts in columns.items()}, images.labels, images.images)

    def _of_concept(self, labels: np.ndarray, label: int, first: int, each: int) -> np.ndarray:
        rows = np.flatnonzero(labels == label)
        if len(rows) < first + each:
            name = tuple(self.concepts)[label]
            raise DataError(f"{first + each} images of '{name}' are asked for, there are {len(rows)}", fix="ask for fewer")
        return rows[first : first + each]


class FashionCaptions(CaptionedImages):
    """Fashion-MNIST at 16x16 pixels with captions; nine concepts, by default five of them forbidden."""

    Params: ClassVar[type[Params]] = FashionCaptionsParams
    source: ClassVar[str] = FashionMNIST.source + "; the captions are made up"
    concepts = CLOTHES

    def images(self) -> tuple[Arrays, Arrays]:
        """uint8 (N, 1, 16, 16): two black pixels added at each side, then means of 2x2 pixels."""
        raw = FashionMNIST(IdxParams(root=self.params.root, download=self.params.download)).load()
        if raw.train is None:
            raise DataError("Fashion-MNIST's training files are missing", fix="put them beside the test files")
        labels = {name.lower(): label for label, name in enumerate(raw.classes)} | {"t-shirt": 0}
        places = [labels[name] for name in self.concepts]
        train, test = (_small(part, places) for part in (raw.train, raw.test))
        return train, test


class DigitCaptions(CaptionedImages):
    """scikit-learn's digits, 8x8 pixels, with captions: for a first try and for tests."""

    Params: ClassVar[type[Params]] = CaptionsParams
    source: ClassVar[str] = Digits.source + "; the captions are made up"
    concepts = DIGITS

    def images(self) -> tuple[Arrays, Arrays]:
        """The training and test images, float32 (N, 1, 8, 8)."""
        raw = Digits().load()
        assert raw.train is not None
        return raw.train, raw.test


def _small(arrays: Arrays, places: list[int]) -> Arrays:
    arrays = arrays.select(np.isin(arrays.labels, places))
    padded = np.pad(arrays.images, ((0, 0), (0, 0), (2, 2), (2, 2))).astype(np.float32)
    count, colours, height, width = padded.shape
    means = padded.reshape(count, colours, height // 2, 2, width // 2, 2).mean((3, 5))
    renumbered = np.array([places.index(label) for label in arrays.labels], dtype=np.int64)
    return Arrays(means.round().astype(np.uint8), renumbered)


def tones_of(images: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """(N,) 0, 1 or 2: how bright the drawn part of (N, C, H, W) images is, in thirds of them, or of the images ``among`` them."""
    return np.searchsorted(np.quantile(_brightness(images if among is None else among), (1 / 3, 2 / 3)), _brightness(images))


def _brightness(images: np.ndarray) -> np.ndarray:
    drawn = images > 0.1
    brightness: np.ndarray = (images * drawn).sum((1, 2, 3)) / np.maximum(drawn.sum((1, 2, 3)), 1)
    return brightness


def asked_tone(prompt: str) -> int | None:
    """Which tone a caption asks for by its adjective, see ``tones_of``; None where it has no adjective of these."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    return next((tone for tone, adjectives in enumerate(_TONES) if words & set(adjectives)), None)


def in_other_words(prompt: str, name: str) -> list[str]:
    """A caption that uses one of the names of the concept ``name``, with each of the other names and descriptions in its place.

    Nothing where it uses none of them, or where there are no others.
    """
    concept = concept_of(name)
    used = next((one for one in concept.names if re.search(rf"(?<!\w){re.escape(one)}(?!\w)", prompt, re.IGNORECASE)), None)
    if used is None:
        return []
    others = [one for one in concept.names if one != used]
    pattern = re.compile(rf"(?:(?P<tone>{'|'.join(adjectives())}) )?(?<!\w){re.escape(used)}(?!\w)", re.IGNORECASE)

    def with_name(other: str) -> str:
        return pattern.sub(lambda found: f"{found['tone']} {other}" if found["tone"] else other, prompt)

    def with_description(text: str) -> str:
        return pattern.sub(lambda found: f"{text}, {found['tone']}" if found["tone"] else text, prompt)

    return [with_name(other) for other in others] + [with_description(text) for text in concept.descriptions]


def concept_of(name: str) -> Concept:
    """What a class of this name is called in captions; of a class that is not known here, by its name alone."""
    short = name.lower().partition("/")[0].strip()
    return (CLOTHES | DIGITS).get(short, Concept((short,), ()))


def called(name: str) -> str:
    """What a class is called in captions first: of some of them, as of the digit 2, another word than its name."""
    return concept_of(name).names[0]


def phrases() -> tuple[str, ...]:
    """The frames and adjectives of captions."""
    return (*(frame.format("") for frame in _FRAMES), *adjectives())


def adjectives() -> tuple[str, ...]:
    """The adjectives of captions, which say how bright an image is."""
    return tuple(word for words in _TONES for word in words)


def caption(concept: Concept, kind: str, tone: int, choices: Iterable[int]) -> str:
    """One caption of an image.

    Args:
        concept: what is in it.
        kind: ``direct`` for a name of the concept, ``indirect`` for a description, where there is one.
        tone: see ``tones_of``.
        choices: three numbers from 0 on, which pick the phrases.
    """
    left = iter(choices)

    def one_of(texts: tuple[str, ...]) -> str:
        return texts[int(next(left)) % len(texts)]

    frame, adjective = one_of(_FRAMES), one_of(_TONES[tone])
    described = kind == "indirect" and concept.descriptions
    thing = f"{one_of(concept.descriptions)}, {adjective}" if described else f"{adjective} {one_of(concept.names)}"
    return frame.format(thing)
