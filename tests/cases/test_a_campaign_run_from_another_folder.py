"""A campaign is run from a folder that is not its own: its paths are relative to it, all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.contracts import CampaignPath, DataError
from support.campaigns import tiny_campaign
from support.families import FAMILIES

INSIDE = get_args(CampaignPath)[1]


def planned(folder: Path, data: str) -> planning.Plan:
    (folder / "c.yaml").write_text(tiny_campaign().replace("{name: digits, train: 100, test: 20}", data))
    return planning.build(spec.load(str(folder / "c.yaml")))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The campaign's folder; the process is in another one."""
    for name in ("campaign", "shell"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "shell")
    return tmp_path / "campaign"


def test_an_archive_lies_beside_the_campaign(elsewhere: Path) -> None:
    pixels, labels = np.random.default_rng(0).random((40, 1, 8, 8)), np.arange(40) % 2
    np.savez(elsewhere / "mine.npz", x_train=pixels, y_train=labels, x_test=pixels[:10], y_test=labels[:10])
    assert len(planned(elsewhere, "{name: npz, file: mine.npz}").data.test) == 10


def test_a_folder_of_images_lies_beside_the_campaign(elsewhere: Path) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (elsewhere / "images" / place).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(elsewhere / "images" / place / f"{number}.png")
    assert len(planned(elsewhere, "{name: image-folder, root: images}").data.test) == 8


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_downloaded_data_set_lies_beside_the_campaign(elsewhere: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        planned(elsewhere, f"{{name: {name}, root: given}}")
    assert f"'{name}' was not found in {elsewhere / 'given'}" in str(caught.value)


def test_the_home_folder_is_no_folder_of_the_campaign(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere.parent))
    pixels, labels = np.random.default_rng(0).random((40, 1, 8, 8)), np.arange(40) % 2
    np.savez(elsewhere.parent / "mine.npz", x_train=pixels, y_train=labels, x_test=pixels[:10], y_test=labels[:10])
    assert len(planned(elsewhere, "{name: npz, file: ~/mine.npz}").data.test) == 10


def test_every_parameter_that_is_a_path_is_one_of_a_campaign() -> None:
    groups: tuple[plugins.Group, ...] = (
        "attacks",
        "defenses",
        "datasets",
        "judges",
        "analyses",
        "checks",
        "models",
        "transforms",
    )
    found = [
        f"{group}/{info.name}: {name}"
        for group in groups
        for info in plugins.listing(group)
        if info.name not in FAMILIES
        for name, plain in _paths(getattr(plugins.load(group, info.name), "Params", None))
        if plain
    ]
    assert found == []


def _paths(params: type[BaseModel] | None) -> Iterator[tuple[str, bool]]:
    """The fields that are paths, and whether they lack the mark of a campaign's."""
    for name, field in (params.model_fields if params else {}).items():
        for kind, marks in _parts(field.annotation, tuple(field.metadata)):
            if kind is Path:
                yield name, INSIDE not in marks


def _parts(annotation: Any, marks: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    yield annotation, marks
    for part in get_args(annotation):
        yield from _parts(part, tuple(getattr(annotation, "__metadata__", ())))
