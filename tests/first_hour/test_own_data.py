"""One's own data, one line for each situation: the right values come out of it, whatever form they are in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import robustkd
from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import Arrays, AttackError, Batch, DataError, DeferredArrays, Prompts, UsageError
from robustkd.contracts import data as contract
from robustkd.data import SplitParams, load_splits
from robustkd.evaluation import deferred as deferred_images
from robustkd.evaluation import images as evaluation
from robustkd.targets import ClassifierTarget
from support.campaigns import external, tiny_campaign

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def save(file: Path, image: np.ndarray, **options: Any) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, **options)
    return image


def folder(root: Path, **params: Any) -> Any:
    return load_splits("image-folder", {"root": root, **params}, SplitParams(validation=0))


def in_order(data: Any) -> np.ndarray:
    """The test images in the order of their files, (N, H, W, C)."""
    return data.test.images[np.argsort(data.test_index)].transpose(0, 2, 3, 1)


# Image folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"])
def test_every_lossless_format_gives_the_same_pixels(suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    image = save(tmp_path / "test" / "a" / f"0{suffix}", pixels(8, 8, 3), **options)
    assert np.array_equal(in_order(folder(tmp_path))[0], image)


def test_folders_in_folders_are_read_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    deep = save(tmp_path / "test" / "a" / "monday" / "morning" / "1.png", pixels(4, 4, 3))
    flat = save(tmp_path / "test" / "a" / "0.png", pixels(4, 4, 3))
    (tmp_path / "test" / "a" / "notes.txt").write_text("x")
    (tmp_path / "test" / "labels.csv").write_text("x")
    (tmp_path / "test" / "a" / ".DS_Store").write_text("x")
    data = folder(tmp_path)
    assert np.array_equal(in_order(data), [flat, deep])
    assert data.notes == ("2 files of the folder are left out, which are no images of a class (1 .csv, 1 .txt)",)


def test_a_validation_folder_beside_a_test_folder_is_the_validation_part(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        for number in range(count):
            save(tmp_path / part / "a" / f"{number}.png", pixels(4, 4, 3))
    data = load_splits("image-folder", {"root": tmp_path})
    assert (len(data.train), len(data.validation), len(data.test)) == (5, 3, 2)


def test_the_shorter_side_and_the_centre_as_torchvision_has_them(tmp_path: Path) -> None:
    from torchvision import transforms

    files = [tmp_path / "test" / "a" / f"{number}.png" for number in range(3)]
    for file, shape in zip(files, [(40, 63, 3), (63, 40, 3), (50, 50, 3)], strict=True):
        save(file, pixels(*shape))
    protocol = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(25)])
    expected = [np.asarray(protocol(Image.open(file))) for file in files]
    assert np.array_equal(in_order(folder(tmp_path, resize=32, crop=25)), expected)


def test_pixels_of_any_depth(tmp_path: Path) -> None:
    levels = (np.arange(64) * 64).reshape(8, 8)  # 12 bits
    save(tmp_path / "twelve" / "a" / "0.png", levels.astype(np.uint16))
    save(tmp_path / "deep" / "a" / "0.tif", levels.astype(np.int32) * 1000)
    save(tmp_path / "float" / "a" / "0.tif", (levels / 4095).astype(np.float32))
    grey = {"channels": 1, "test_fraction": 1}
    expected = np.rint(levels * 255 / 4095)
    for name, white in (("twelve", 4095), ("deep", 4095_000), ("float", None)):
        assert np.array_equal(in_order(folder(tmp_path / name, white=white, **grey))[0, :, :, 0], expected)
    with pytest.raises(DataError, match=r"more than 16 bits") as caught:
        folder(tmp_path / "deep", **grey)
    assert "'white'" in (caught.value.fix or "")


# Which output of the model a class is ----------------------------------------------------------------------------------


def test_wordnet_folders_are_the_outputs_of_an_imagenet_model(tmp_path: Path) -> None:
    for name in ("n02123045", "n01440764", "n02099601"):
        save(tmp_path / "test" / name / "0.JPEG", pixels(4, 4, 3))
    data = folder(tmp_path, classes="imagenet")
    assert sorted(data.test.labels) == [0, 207, 281]
    assert (data.num_classes, data.classes[207], data.classes[281]) == (1000, "golden retriever", "tabby")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"cat": 3, "dog": 1}'),
        ("index.json", '{"3": ["cat", "a cat"], "1": ["dog", "a dog"]}'),
        ("c.txt", "x\ndog\ny\ncat"),
    ],
)
def test_a_mapping_of_ones_own(name: str, text: str, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        save(tmp_path / "images" / kind / "0.png", pixels(4, 4, 3))
    (tmp_path / name).write_text(text)
    data = folder(tmp_path / "images", classes=tmp_path / name, test_fraction=1)
    assert (sorted(data.test.labels), data.num_classes) == ([1, 3], 4)
    (tmp_path / name).write_text(text.replace("cat", "caterpillar"))
    with pytest.raises(DataError, match="'cat' is not one of the classes"):
        folder(tmp_path / "images", classes=tmp_path / name)


def test_folders_that_are_called_by_numbers_are_not_sorted_as_words(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        save(tmp_path / "test" / str(number) / "0.png", np.full((4, 4, 3), number, np.uint8))
    data = folder(tmp_path, classes="numbers")
    assert (data.test.images[:, 0, 0, 0] == data.test.labels).all()
    assert data.num_classes == 11


# Sizes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floats", [False, True])
def test_arrays_are_brought_to_the_size_that_a_model_takes(floats: bool, tmp_path: Path) -> None:
    images = pixels(3, 8, 8, 1)
    np.savez(tmp_path / "data.npz", images=images / 255 if floats else images, labels=np.arange(3))
    data = load_splits("npz", {"file": tmp_path / "data.npz", "resize": 16})
    assert (data.test.sample_shape, data.test.images.dtype) == ((1, 16, 16), np.float32 if floats else np.uint8)
    expected = [np.asarray(Image.fromarray(image[:, :, 0]).resize((16, 16), Image.Resampling.BILINEAR)) for image in images]
    found = data.test.unit()[np.argsort(data.test_index), 0] * 255
    assert np.abs(found - expected).max() <= (1.01 if floats else 0.001)


# Data larger than the memory --------------------------------------------------------------------------------------------


def test_large_data_are_decoded_in_parts_and_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images, labels = pixels(600, 3, 4, 4), np.arange(600) % 3
    monkeypatch.setattr(contract, "_CHUNK", 64)
    asked: list[int] = []

    def read(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return images[rows]

    at_hand, deferred = Arrays(images, labels), DeferredArrays(read, labels, (3, 4, 4))
    assert deferred.digest() == at_hand.digest()
    monkeypatch.setattr(contract, "KEPT_BYTES", 1000)
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 1000)
    monkeypatch.setattr(deferred_images, "KEPT_BYTES", 1000)
    asked.clear()
    large = DeferredArrays(read, labels, (3, 4, 4))
    assert large.digest() == at_hand.digest()
    assert max(asked) == 64

    target = ClassifierTarget.from_model("tiny-cnn", {}, input_shape=(3, 4, 4), num_classes=3)
    target.module.eval()
    asked.clear()
    whole, parts = (
        evaluation.with_clean_logits(target, batch, 100)
        for batch in (
            evaluation.make_batch(at_hand.unit(), labels),
            evaluation.deferred_batch(large, index=np.arange(600), device=torch.device("cpu")),
        )
    )
    assert max(asked) <= 100
    assert torch.equal(whole.logits, parts.logits)
    some: Batch = parts.select(torch.arange(5, 50))
    assert torch.equal(some.inputs, whole.inputs[5:50])
    assert torch.equal(parts.inputs + 0, whole.inputs)  # whoever does anything else with them has them all


def test_the_hash_of_files_is_known_until_one_of_them_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contract, "KEPT_BYTES", 10)
    for number in range(4):
        save(tmp_path / "images" / "a" / f"{number}.png", pixels(4, 4, 3))
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args, **kwargs: opened.append(file) or real(file, *args, **kwargs))
    first = folder(tmp_path / "images", test_fraction=1).test.digest()
    opened.clear()
    assert folder(tmp_path / "images", test_fraction=1).test.digest() == first
    assert len(opened) == 1  # for the size
    assert folder(tmp_path / "images", test_fraction=1, resize=4).test.digest() == first  # of values, not of settings
    save(tmp_path / "images" / "a" / "3.png", pixels(4, 4, 3))
    assert folder(tmp_path / "images", test_fraction=1).test.digest() != first


# Functions in a file of one's own ---------------------------------------------------------------------------------------

OWN = """
import numpy as np
import torch
import torch.nn.functional as F


def attack(model, x, y, eps, steps=1):
    for _ in range(steps):
        x = x.detach().requires_grad_()
        F.cross_entropy(model(x), y).backward()
        x = (x + eps / steps * x.grad.sign()).clamp(0, 1)
    return x.detach()


def too_far(model, x, y, eps):
    return (x + 3 * eps).clamp(0, 1)


def load(count=40):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 8, 8, 3), np.uint8), np.arange(count) % 2


def parts():
    return {"train": load(30), "test": load(10), "classes": ["no", "yes"]}
"""

CAMPAIGN = tiny_campaign(
    "own",
    external("net.py:Net", "net"),
    {"fgsm": "{kind: fgsm}", "mine": '{kind: code, code: "own.py:attack"}'},
    data='{name: code, code: "own.py:load"}',
    eps=0.02,
)

NET = """
import torch


class Net(torch.nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(192, 2))
"""


class Net(torch.nn.Sequential):
    def __init__(self, pixels: int = 192) -> None:
        torch.manual_seed(0)
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(pixels, 2))


@pytest.fixture
def own(tmp_path: Path) -> Any:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "own.yaml").write_text(CAMPAIGN)
    names: dict[str, Any] = {}
    exec(OWN, names)
    return names


@pytest.fixture
def samples(own: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = own["load"]()
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return x, torch.from_numpy(labels)


def test_a_function_is_an_attack(own: Any, samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = robustkd.attack(own["attack"], Net(), *samples, eps=0.02)
    ours = robustkd.attack("fgsm", Net(), *samples, eps=0.02)
    assert found.robust_accuracy == ours.robust_accuracy
    numbers = found.to_dict()
    assert (numbers["forward_passes"], numbers["backward_passes"]) == (2 * 40, 40)  # one is the platform's, to look again
    with pytest.raises(AttackError, match="left its budget on 40 of 40"):
        robustkd.attack(own["too_far"], Net(), *samples, eps=0.02)
    report = robustkd.evaluate(Net(), *samples, attacks=["fgsm", own["attack"]], eps=0.02, level="none")
    assert list(report.attacks) == ["fgsm", "attack"]
    assert robustkd.attack(own["attack"], Net(), *samples, eps=0.02, steps=2).to_dict()["backward_passes"] == 80


def test_functions_in_a_file_are_data_and_attacks_of_a_campaign(own: Any, tmp_path: Path) -> None:
    def ids() -> dict[str, str]:
        made = plan.build(spec.load(tmp_path / "own.yaml"))
        return {cell.attack: cell.id for cell in made.of("attack")}

    run = robustkd.run(tmp_path / "own.yaml", tmp_path / "out", workers=0, track=False)
    assert not run.incomplete
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    attacks = {cell["attack"]: cell["robust_accuracy"] for cell in found["cells"]}
    assert attacks["mine"] == attacks["fgsm"]
    before = ids()
    (tmp_path / "own.py").write_text(OWN.replace("steps=1", "steps=2"))
    after = ids()
    assert before["fgsm"] == after["fgsm"]  # the data are what they were
    assert before["mine"] != after["mine"]


def test_parts_with_names(own: Any, tmp_path: Path) -> None:
    data = load_splits("code", {"code": f"{tmp_path}/own.py:parts"}, SplitParams(validation=0.1))
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (27, 3, 10, ("no", "yes"))
    with pytest.raises(DataError, match=r"load raised TypeError"):
        load_splits("code", {"code": f"{tmp_path}/own.py:load", "kwargs": {"n": 3}})


def test_a_function_is_a_judge(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def complied(requests, outputs):\n    return [out == r for r, out in zip(requests, outputs)]\n"
    )
    judge = plugins.make("judges", {"kind": "code", "code": f"{tmp_path}/judge.py:complied"})
    asked = Prompts({"prompt": ("a", "b")}, np.zeros(2, np.int64))
    assert judge.complied(asked, ["a", "x"]).complied.tolist() == [True, False]
    assert judge.files() == [tmp_path / "judge.py"]


# Data sets and loaders in Python ------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """What torchvision gives: pairs of a PIL image and a label, or what a transform makes of it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, form: str) -> None:
        self.images, self.labels, self.form = images, labels, form

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        image, label = self.images[row], int(self.labels[row])
        if self.form == "PIL":
            return Image.fromarray(image), label
        if self.form == "mapping":
            return {"image": Image.fromarray(image), "label": label}
        return torch.from_numpy(image).permute(2, 0, 1) / 255, label


@pytest.mark.parametrize("form", ["PIL", "mapping", "tensor", "loader", "lists"])
def test_every_way_to_hand_over_images_gives_the_same_numbers(
    form: str, own: Any, samples: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = own["load"]()
    rows = Rows(images, labels, "tensor" if form == "loader" else form)
    given: tuple[Any, ...] = (torch.utils.data.DataLoader(rows, batch_size=7),) if form == "loader" else (rows,)
    if form == "lists":
        given = (list(samples[0]), list(samples[1]))
    expected = robustkd.attack("pgd", Net(), *samples, eps=0.02, steps=3)
    found = robustkd.attack("pgd", Net(), *given, eps=0.02, steps=3)
    assert (found.clean_accuracy, found.robust_accuracy) == (expected.clean_accuracy, expected.robust_accuracy)
    assert robustkd.evaluate(Net(), *given, attacks="fgsm", eps=0.02, level="none").clean_accuracy == found.clean_accuracy


def test_what_is_no_data_is_said_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="y is missing"):
        robustkd.attack("pgd", Net(), torch.rand(2, 3, 8, 8))
    with pytest.raises(DataError, match="x is a int"):
        robustkd.attack("pgd", Net(), 3)


# What other tools store ---------------------------------------------------------------------------------------------------


def stored(kind: str, root: Path, images: np.ndarray, labels: list[int]) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    encoded = []
    for image in images:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        encoded.append(content.getvalue())
    table = arrow.table({"image": [{"bytes": content, "path": None} for content in encoded], "label": labels})
    file = root / f"data{kind}"
    if kind == ".parquet":
        parquet.write_table(table, file)
    elif kind == ".pt":
        torch.save({"images": torch.from_numpy(images).permute(0, 3, 1, 2), "labels": torch.tensor(labels)}, file)
    elif kind == ".tar":
        with tarfile.open(file, "w") as tar:
            for row, content in enumerate(encoded):
                for name, part in ((f"{row:04d}.png", content), (f"{row:04d}.cls", str(labels[row]).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    else:
        file.mkdir()
        with (
            arrow.OSFile(str(file / "data-00000-of-00001.arrow"), "wb") as sink,
            arrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
        (file / "dataset_info.json").write_text(json.dumps({"features": features}))
    return file


@pytest.mark.parametrize("kind", [".parquet", ".pt", ".tar", ""])
def test_what_other_tools_store(kind: str, tmp_path: Path) -> None:
    images, labels = pixels(6, 4, 4, 3), [0, 1, 1, 0, 1, 0]
    data = load_splits("stored", {"file": stored(kind, tmp_path, images, labels)})
    assert np.array_equal(in_order(data), images)
    assert data.test.labels[np.argsort(data.test_index)].tolist() == labels
    assert data.classes == (("0", "1") if kind else ("no", "yes"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.tar", "a.pt", "a.csv"):
        (tmp_path / name).write_bytes(b"no such data")
        with pytest.raises(DataError, match=name):
            load_splits("stored", {"file": tmp_path / name})
