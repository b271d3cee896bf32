"""Labels that a data set renumbers as it gives its samples, numbers that stand in a table as texts, and numbers that are no labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import datasets, transforms

import robustkd
from robustkd.contracts import DataError
from robustkd.data import SplitParams, load_splits


def grey(level: int) -> Image.Image:
    """An image from which its class is read."""
    return Image.fromarray(np.full((8, 8), 20 * level + 10, np.uint8))


class Levels(nn.Module):
    """Output k is large where the grey is the level ``level(k)``; right by construction."""

    def __init__(self, outputs: int, level: Callable[[int], int]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("levels", torch.tensor([20.0 * level(output) + 10 for output in range(outputs)]))

    def forward(self, x: Tensor) -> Tensor:
        return -((x.mean((1, 2, 3)) * 255 * self.scale)[:, None] - self.levels).abs()


def moved(label: int) -> int:
    return (label - 3) % 10


def folders(root: Path, count: int) -> Path:
    for number in range(2 * count):
        (root / str(number % count)).mkdir(parents=True, exist_ok=True)
        grey(number % count).save(root / str(number % count) / f"{number}.png")
    return root


class Own(Dataset[tuple[Tensor, int]]):
    """The kind that people write: ``targets`` are those of the files, and samples have others."""

    def __init__(self) -> None:
        self.targets = [number % 10 for number in range(20)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return transforms.functional.to_tensor(grey(self.targets[row])), moved(self.targets[row])


class Renumbered(datasets.ImageFolder):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(index)
        return image, moved(label)


def changed_afterwards(root: Path, transform: Any) -> datasets.ImageFolder:
    data = datasets.ImageFolder(root, transform)
    data.samples = [(file, moved(label)) for file, label in data.samples]
    return data


DATA_SETS: dict[str, Callable[[Path, Any], Any]] = {
    "target_transform": lambda root, transform: datasets.ImageFolder(root, transform, moved),
    "a subclass": Renumbered,
    "its samples": changed_afterwards,
    "a class of ones own": lambda root, transform: Own(),
}


@pytest.mark.parametrize("kind", DATA_SETS)
def test_labels_are_those_of_the_samples(kind: str, tmp_path: Path) -> None:
    data = DATA_SETS[kind](folders(tmp_path, 10), transforms.ToTensor())
    found = robustkd.evaluate(Levels(10, lambda output: (output + 3) % 10), data, attacks="fgsm", eps=1e-4, level="none")
    assert found.clean_accuracy == 1


def test_labels_of_a_function_s_data_set(tmp_path: Path) -> None:
    folders(tmp_path / "images", 10)
    (tmp_path / "own.py").write_text(
        "from torchvision import datasets, transforms\n"
        f"def load():\n    return datasets.ImageFolder({str(tmp_path / 'images')!r}, transforms.ToTensor(), lambda label: 1)\n"
    )
    assert set(load_splits("code", {"code": f"{tmp_path / 'own.py'}:load"}).test.labels) == {1}


def test_labels_that_torchvision_keeps_beside_the_images_need_no_decoding(tmp_path: Path) -> None:
    data = datasets.ImageFolder(folders(tmp_path, 10), transforms.ToTensor())
    read: list[str] = []
    data.loader = lambda file: read.append(file) or Image.open(file)
    from robustkd.data.samples import arrays_of

    assert arrays_of(data).labels.tolist() == data.targets
    assert len(read) == 1


def tabled(folder: Path, form: str, labels: list[Any]) -> tuple[str, dict[str, Any]]:
    """One grey image for each row, of the level that stands in it, in a table of a form."""
    place = folder / form.replace(".", "-")
    (place / "test").mkdir(parents=True)
    contents = []
    for number in range(len(labels)):
        grey(number % 12).save(content := io.BytesIO(), "PNG")
        contents.append(content.getvalue())
        (place / "test" / f"{number:02}.png").write_bytes(contents[-1])
    if form == "metadata.csv":
        with (place / "test" / form).open("w", newline="") as file:
            csv.writer(file).writerows(
                [("file_name", "label"), *((f"{row:02}.png", label) for row, label in enumerate(labels))]
            )
    elif form == "metadata.jsonl":
        rows = [json.dumps({"file_name": f"{row:02}.png", "label": label}) for row, label in enumerate(labels)]
        (place / "test" / form).write_text("\n".join(rows))
    else:
        parquet.write_table(arrow.table({"image": [{"bytes": png} for png in contents], "label": labels}), place / "t.parquet")
        return "stored", {"file": place / "t.parquet"}
    return "image-folder", {"root": place}


def labels_in(name: str, params: dict[str, Any]) -> tuple[list[int], tuple[str, ...]]:
    data = load_splits(name, params)
    return data.test.labels[np.argsort(data.test_index)].tolist(), data.classes


@pytest.mark.parametrize(
    ("form", "written"), [("metadata.csv", str), ("metadata.csv", "{}.0".format), ("metadata.jsonl", str), ("t.parquet", str)]
)
def test_numbers_that_are_written_as_texts_are_numbers(tmp_path: Path, form: str, written: Callable[[int], str]) -> None:
    labels = [row % 12 for row in range(24)]
    found, names = labels_in(*tabled(tmp_path, form, list(map(written, labels))))
    assert found == labels
    assert names == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (["b", "10", "2"], [2, 0, 1], ("10", "2", "b")),  # names, some of which are numbers
        (["02", "10", "01"], [1, 2, 0], ("01", "02", "10")),  # codes; the alphabet keeps their order
        (["1", "-1", "1"], [1, 0, 1], ("-1", "1")),
    ],
)
def test_other_texts_are_names_as_they_were(
    tmp_path: Path, labels: list[str], expected: list[int], names: tuple[str, ...]
) -> None:
    assert labels_in(*tabled(tmp_path, "t.parquet", labels)) == (expected, names)


def test_lists_of_numbers_that_are_written_as_texts(tmp_path: Path) -> None:
    name, params = tabled(tmp_path, "metadata.jsonl", [["0", "10"], ["2"]])
    data = load_splits(name, params, SplitParams(success={"label": 10}))
    assert data.test.labels[np.argsort(data.test_index)].tolist() == [1, 0]


def test_a_training_part_with_names_and_a_test_part_with_numbers(tmp_path: Path) -> None:
    file = tabled(tmp_path / "test", "t.parquet", ["0", "1"])[1]["file"]
    train = tabled(tmp_path / "train", "t.parquet", ["cat", "dog"])[1]["file"]
    with pytest.raises(DataError, match="'cat' is none of 0, 1"):
        load_splits("stored", {"file": file, "train_file": train})
    more = tabled(tmp_path / "more", "t.parquet", ["0", "1", "2"] * 4)[1]["file"]
    assert load_splits("stored", {"file": file, "train_file": more}, SplitParams(validation=0)).train.labels.max() == 2


@pytest.mark.parametrize("form", ["metadata.jsonl", "t.parquet"])
def test_a_label_that_is_not_whole_is_no_label(tmp_path: Path, form: str) -> None:
    with pytest.raises(DataError, match=r"0\.9.*whole"):
        labels_in(*tabled(tmp_path, form, [0.0, 0.9, 2.0]))
    found, _ = labels_in(*tabled(tmp_path / "whole", form, [0.0, 1.0, 2.0]))
    assert found == [0, 1, 2]


def test_a_row_without_a_label_in_a_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 3 rows have no label"):
        labels_in(*tabled(tmp_path, "metadata.csv", ["cat", "", "dog"]))


def test_minus_1_of_a_class_label_is_not_the_last_class(tmp_path: Path) -> None:
    """Hugging Face writes it where the label is not told."""
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    _, params = tabled(tmp_path, "t.parquet", [0, -1, 1])
    table = parquet.read_table(params["file"])
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(described), params["file"])
    (tmp_path / "order.txt").write_text("dog\ncat")
    with pytest.raises(DataError, match="the label -1 is none of cat, dog"):
        labels_in("stored", {**params, "classes": tmp_path / "order.txt"})


@pytest.mark.parametrize(("values", "fine"), [(("1", "-1"), True), (("1", "0"), True), (("1", "-1", "0"), False)])
def test_minus_1_is_a_no_only_where_there_is_no_0(tmp_path: Path, values: tuple[str, ...], fine: bool) -> None:
    """CelebA's no; CheXpert's uncertain."""
    name, params = tabled(tmp_path, "metadata.jsonl", [0] * 6)
    (params["root"] / "test" / "metadata.jsonl").unlink()
    rows = [f"{row:02}.png,{values[row % len(values)]},1" for row in range(6)]
    (params["root"] / "test" / "metadata.csv").write_text("\n".join(["file_name,edema,device", *rows]))
    if fine:
        data = load_splits(name, params, SplitParams(success={"label": "edema"}))
        assert data.test.labels[np.argsort(data.test_index)].tolist() == [1, 0] * 3
        return
    with pytest.raises(DataError, match=r"'edema' is '-1'.*and others are 0"):
        load_splits(name, params, SplitParams(success={"label": "edema"}))


def test_folders_of_numbers_in_another_order_than_the_alphabet_s_are_told(tmp_path: Path) -> None:
    root = folders(tmp_path / "test", 12).parent
    (note,) = load_splits("image-folder", {"root": root}).notes
    assert "'10' is class 2" in note
    assert "classes: numbers" in note
    assert not load_splits("image-folder", {"root": root, "classes": "numbers"}).notes
    assert not load_splits("image-folder", {"root": folders(tmp_path / "few" / "test", 10).parent}).notes
