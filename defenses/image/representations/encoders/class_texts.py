"""The texts of classes, and their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from robustkd.contracts import FitContext
from robustkd.data.captions import adjectives, concept_of
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.tower_modules import TextTower
    from robustkd.targets.two_tower import TwoTowerTarget


def _with_a_place(templates: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"'{wrong[0]}' must have {{}} once, where the class's name goes")
    return templates


Templates = Annotated[
    tuple[str, ...],
    AfterValidator(_with_a_place),
    Field(min_length=1, description="texts of a class, with {} for its name, whose vectors are averaged"),
]


def class_texts(context: FitContext) -> list[str]:
    """What each of the K classes is called in a text; its number where the data have no names."""
    names = context.classes or tuple(str(number) for number in range(context.num_classes))
    return [concept_of(name).names[0] for name in names]


def class_vectors(text: TextTower, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(K, D) of length 1, without a graph: of each class the mean direction of its texts."""
    with torch.no_grad():
        each = [text(text.tokens([template.format(name) for name in names])) for template in templates]
    return F.normalize(torch.stack(each).mean(0), dim=1)


def text_pool(context: FitContext, towers: TwoTowerTarget) -> tuple[Tensor, Tensor]:
    """(N, D) vectors of a caption of each class with each adjective, and (N,) int64 their classes.

    Without a text tower they are the K class vectors.
    """
    classes = torch.arange(towers.num_classes, device=towers.device)
    if towers.texts is None:
        return towers.vectors, classes
    words = adjectives()
    texts = [f"a photo of a {word} {name}" for name in class_texts(context) for word in words]
    return towers.of_texts(texts), classes.repeat_interleave(len(words))
