"""Data that name fewer classes than the model has outputs: nobody guesses which outputs they are.

A folder of cats and dogs numbers them 0 and 1, which of a network for CIFAR-10 are airplane and automobile. The number would be that of
other labels, so every way in says which key is missing; with it the number is that of the right outputs.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

import robustkd
from robustkd.contracts import UsageError
from robustkd.data.cifar import CIFAR10
from robustkd.data.class_names import ClassNames

CODE = """
import torch


class ByBrightness(torch.nn.Module):
    '''Output ``dark`` for dark images and ``light`` for light ones, of ``outputs``.'''

    def __init__(self, outputs, dark, light):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(outputs))
        with torch.no_grad():
            self.slope[dark], self.slope[light] = -1.0, 1.0

    def forward(self, x):
        return 20 * (x.mean((1, 2, 3)).unsqueeze(1) - 0.5) * self.slope


def build(outputs=10, dark=3, light=5):
    return ByBrightness(outputs, dark, light)


def load():
    images = torch.tensor([0.1, 0.9] * 5).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return {"test": (images, torch.tensor([0, 1] * 5)), "classes": ["cat", "dog"]}
"""
PIXELS = [np.full((8, 8, 3), value, np.uint8) for value in (26, 230) * 5]
LABELS = [0, 1] * 5
NAMES = ["cat", "dog"]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def image_folder(place: Path, names: list[str]) -> Path:
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (place / "test" / names[label]).mkdir(parents=True, exist_ok=True)
        (place / "test" / names[label] / f"{number}.png").write_bytes(png(pixels))
    return place


def _metadata(place: Path) -> None:
    (place / "test").mkdir(parents=True)
    rows = []
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (place / "test" / f"{number}.png").write_bytes(png(pixels))
        rows.append(json.dumps({"file_name": f"{number}.png", "label": NAMES[label]}))
    (place / "test" / "metadata.jsonl").write_text("\n".join(rows))


def _table(labels: list[object], names: list[str] | None) -> arrow.Table:
    table = arrow.table({"image": [{"bytes": png(pixels)} for pixels in PIXELS], "label": labels})
    if names is None:
        return table
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _saved(place: Path) -> None:
    place.mkdir()
    table = _table(LABELS, NAMES)
    with arrow.OSFile(str(place / "data.arrow"), "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (place / "dataset_info.json").write_text(json.dumps({"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same cats and dogs as every kind of data that has names for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    image_folder(tmp_path / "folder", NAMES)
    _metadata(tmp_path / "listed")
    parquet.write_table(_table([NAMES[label] for label in LABELS], None), tmp_path / "texts.parquet")
    parquet.write_table(_table(LABELS, NAMES), tmp_path / "numbers.parquet")
    _saved(tmp_path / "saved")
    images = np.stack(PIXELS).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "named.npz", images=images, labels=np.array(LABELS), classes=np.array(NAMES))
    np.savez(tmp_path / "plain.npz", images=images, labels=np.array(LABELS))
    torch.save((torch.from_numpy(images), torch.tensor(LABELS) * 2 + 3), tmp_path / "plain.pt")
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            for kind, content in (("png", png(pixels)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:04}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return tmp_path


NAMED = {
    "folder": ("image-folder", "root=folder"),
    "table of a folder": ("image-folder", "root=listed"),
    "parquet with texts": ("stored", "file=texts.parquet"),
    "parquet with names": ("stored", "file=numbers.parquet"),
    "save_to_disk": ("stored", "file=saved"),
    "npz": ("npz", "file=named.npz"),
    "code": ("code", "code=net.py:load"),
}
RIGHT = "give the output of each class: classes: [3, 5] with restrict: true or false"


def campaign(data: str, settings: str, defense: str) -> str:
    key, _, value = settings.partition("=")
    return (
        f'version: 1\nname: few\ndata: {{name: {data}, {key}: "{value}"}}\nthreat: {{norm: linf, eps: 0.01}}\n'
        f"defenses:\n  mine: {{{defense}}}\nattacks:\n  fgsm: {{kind: fgsm}}\nchecks: none\n"
    )


@pytest.mark.parametrize("kind", NAMED)
def test_a_command_refuses_and_takes_what_it_asks_for(here: Path, say: Callable[..., tuple[int, str]], kind: str) -> None:
    data, settings = NAMED[kind]
    given = ("attack", "fgsm", "--model", "net.py:build", "--data", data, "--data-set", settings, "--eps", "0.01", "--json")
    code, told = say(*given)
    assert code == 2, told
    assert "the model has 10 outputs, the data have 2 classes (cat, dog), and nothing says which outputs these are" in told
    assert RIGHT in told
    for restrict in ("--restrict", "--no-restrict"):
        code, told = say(*given, "--classes", "[3, 5]", restrict)
        assert code == 0, told
        assert json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"] == 1


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("more", ["", ", num_classes: 10"])
def test_a_campaign_refuses_and_takes_what_it_asks_for(
    here: Path, say: Callable[..., tuple[int, str]], kind: str, more: str
) -> None:
    model = f'kind: external, code: "net.py:build"{more}'
    (here / "few.yaml").write_text(campaign(*NAMED[kind], model))
    run = ("run", "few.yaml", "--workers", 0, "--no-track", "--out", "out")
    code, told = say(*run)
    assert code != 0
    assert "the model has 10 outputs, the data have 2 classes (cat, dog)" in told
    assert RIGHT in told
    if more:
        return
    (here / "few.yaml").write_text(campaign(*NAMED[kind], f"{model}, classes: [3, 5], restrict: true"))
    code, told = say(*run)
    assert code == 0, told
    assert json.loads((here / "out" / "results.json").read_text())["defenses"][0]["clean_accuracy"] == 1


@pytest.mark.parametrize("kind", ["folder", "table of a folder", "parquet with texts", "parquet with names", "save_to_disk"])
def test_the_order_of_the_data_may_be_given_with_the_data(here: Path, say: Callable[..., tuple[int, str]], kind: str) -> None:
    (here / "order.txt").write_text("\n".join(CIFAR10.classes))
    data, settings = NAMED[kind]
    code, told = say(
        *("attack", "fgsm", "--model", "net.py:build", "--data", data, "--data-set", settings),
        *("--data-set", "classes=order.txt", "--eps", "0.01", "--json"),
    )
    assert code == 0, told
    assert json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"] == 1


@pytest.mark.parametrize("data", [("npz", "file=plain.npz"), ("stored", "file=plain.tar")])
def test_labels_that_are_numbers_are_taken_as_they_are_and_it_is_said(
    here: Path, say: Callable[..., tuple[int, str]], caplog: pytest.LogCaptureFixture, data: tuple[str, str]
) -> None:
    model = ("--kwarg", "dark=0", "--kwarg", "light=1")
    with caplog.at_level(logging.WARNING):
        code, told = say(
            *("attack", "fgsm", "--model", "net.py:build", *model, "--data", data[0], "--data-set", data[1]),
            *("--eps", "0.01", "--json"),
        )
    assert code == 0, told
    assert "the data have the labels 0 to 1 and the model 10 outputs: label k is taken for output k" in caplog.text + told


def test_the_numbers_of_tensors_can_be_given_other_outputs(here: Path, say: Callable[..., tuple[int, str]]) -> None:
    """``classes`` was not looked at for a .pt file."""
    (here / "order.json").write_text('{"3": 0, "5": 1}')
    model = ("--kwarg", "outputs=2", "--kwarg", "dark=0", "--kwarg", "light=1")
    code, told = say(
        *("attack", "fgsm", "--model", "net.py:build", *model, "--data", "stored", "--data-set", "file=plain.pt"),
        *("--data-set", "classes=order.json", "--eps", "0.01", "--json"),
    )
    assert code == 0, told
    assert json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"] == 1


class Animals(Dataset):
    """As torchvision's data sets are: images, labels and names."""

    classes = NAMES

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(PIXELS[row].transpose(2, 0, 1).astype(np.float32) / 255), LABELS[row]


def network(outputs: int = 10, dark: int = 3, light: int = 5) -> torch.nn.Module:
    space: dict[str, Callable[..., torch.nn.Module]] = {}
    exec(CODE, space)
    return space["build"](outputs, dark, light)


@pytest.mark.parametrize("wrapped", [lambda data: data, lambda data: DataLoader(Subset(data, range(8)), batch_size=4)])
def test_python_refuses_a_data_set_with_names(wrapped: Callable[[Dataset], object]) -> None:
    for call in (lambda *given, **more: robustkd.attack("fgsm", *given, **more), robustkd.evaluate, robustkd.audit):
        with pytest.raises(UsageError, match=r"10 outputs, the data have 2 classes \(cat, dog\)") as raised:
            call(network(), wrapped(Animals()), eps=0.01)
        assert "[3, 5]" in str(raised.value)
    found = robustkd.attack("fgsm", network(), wrapped(Animals()), eps=0.01, classes=[3, 5], restrict=True)
    assert found.clean_accuracy == 1
    assert robustkd.attack("fgsm", network(2, 0, 1), wrapped(Animals()), eps=0.01).clean_accuracy == 1


def test_python_takes_labels_as_the_numbers_of_outputs() -> None:
    images = torch.from_numpy(np.stack(PIXELS).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    labels = torch.tensor([3, 5])[torch.tensor(LABELS)]
    assert robustkd.attack("fgsm", network(), images, labels, eps=0.01).clean_accuracy == 1


def test_folders_of_wordnet_numbers_are_imagenet_s_outputs(here: Path, say: Callable[..., tuple[int, str]]) -> None:
    """English springer and cassette player, as in Imagenette, whose outputs are 217 and 482."""
    image_folder(here / "imagenette", ["n02102040", "n02979186"])
    assert ClassNames.of("imagenet", ()).index["n02102040"] == 217
    data = ("--data", "image-folder", "--data-set", "root=imagenette", "--kwarg", "outputs=1000", "--json")
    given = ("attack", "fgsm", "--model", "net.py:build", *data)
    right, wrong = ("--kwarg", "dark=217", "--kwarg", "light=482"), ("--kwarg", "dark=0", "--kwarg", "light=1")
    code, told = say(*given, *right)
    assert code == 2
    assert (
        "classes: [217, 482] with restrict: true or false (ImageNet calls these outputs so), or in the data classes: imagenet"
        in told
    )
    for model, accuracy in ((right, 1), (wrong, 0)):
        code, told = say(*given, *model, "--data-set", "classes=imagenet")
        assert code == 0, told
        assert json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"] == accuracy


def test_a_network_of_1001_outputs_is_not_shifted_by_one(here: Path, say: Callable[..., tuple[int, str]]) -> None:
    """Networks from TensorFlow have the background at output 0: of them class k of ImageNet is output k + 1."""
    image_folder(here / "imagenette", ["n02102040", "n02979186"])
    data = ("--data", "image-folder", "--data-set", "root=imagenette", "--json")
    shifted = ("--kwarg", "outputs=1001", "--kwarg", "dark=218", "--kwarg", "light=483")
    given = ("attack", "fgsm", "--model", "net.py:build", *data, *shifted)
    code, told = say(*given, "--data-set", "classes=imagenet")
    assert code == 2
    assert "the model has 1001 outputs, and the data number the 1000 classes of ImageNet from 0 on" in told
    assert "classes: imagenet-1001" in told
    code, told = say(*given, "--data-set", "classes=imagenet-1001")
    assert code == 0, told
    assert json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"] == 1


def test_wordnet_numbers_in_a_campaign(here: Path, say: Callable[..., tuple[int, str]]) -> None:
    image_folder(here / "imagenette", ["n02102040", "n02979186"])
    model = 'kind: external, code: "net.py:build", kwargs: {outputs: 1000, dark: 217, light: 482}'
    file = here / "few.yaml"
    file.write_text(
        campaign("image-folder", "root=imagenette", model).replace('"imagenette"', '"imagenette", classes: imagenet')
    )
    code, told = say("run", "few.yaml", "--workers", 0, "--no-track", "--out", "out")
    assert code == 0, told
    assert json.loads((here / "out" / "results.json").read_text())["defenses"][0]["clean_accuracy"] == 1


def _model_of_transformers(place: Path, names: list[str]) -> None:
    """A small network with random weights, whose outputs have these names."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
        depth_multiplier=0.1,
        image_size=8,
    )
    torch.manual_seed(0)
    net = transformers.MobileNetV2ForImageClassification(config).eval()
    net.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({"do_resize": False, "do_normalize": False}))


@pytest.mark.parametrize("names", [["dog", "cat"], ["a bird", "Dog", "frog", "Cat"]])
def test_what_a_model_of_transformers_calls_its_outputs(
    here: Path, say: Callable[..., tuple[int, str]], names: list[str]
) -> None:
    _model_of_transformers(here / "model", names)
    given = ("attack", "fgsm", "--model", "model", "--data", "image-folder", "--data-set", "root=folder", "--json")
    code, told = say(*given)
    index = [[name.casefold() for name in names].index(name) for name in NAMES]
    assert code == 2, told
    assert f"classes: {index}" in told
    code, told = say(*given, "--classes", index, "--restrict")
    assert code == 0, told
    logits = robustkd.load_model("model")(torch.from_numpy(np.stack(PIXELS).transpose(0, 3, 1, 2).astype(np.float32) / 255))
    right = logits[:, index].argmax(1) == torch.tensor(LABELS)
    assert json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"] == pytest.approx(right.float().mean().item())
    (here / "few.yaml").write_text(campaign("image-folder", "root=folder", "kind: external, file: model"))
    code, told = say("run", "few.yaml", "--workers", 0, "--no-track", "--out", "out")
    assert code != 0
    assert f"classes: {index}" in told


@pytest.mark.parametrize("names", [NAMES, ["LABEL_0", "LABEL_1"], ["hund", "katze"]])
def test_names_in_the_same_order_and_names_that_say_nothing(
    here: Path, say: Callable[..., tuple[int, str]], names: list[str]
) -> None:
    _model_of_transformers(here / "model", names)
    code, told = say("attack", "fgsm", "--model", "model", "--data", "image-folder", "--data-set", "root=folder", "--json")
    assert code == 0, told
