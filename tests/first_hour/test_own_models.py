"""A user's own model, in the form that he has it in, is attacked with one line."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import robustkd
from robustkd.cli import cli
from robustkd.contracts import Code, RobustkdError, TargetError, UsageError
from robustkd.targets import load_target, save_target
from support.first_hour import build_network

CODE = """
from torch import nn


def build(width=6):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width * width, 10))
"""
Images = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Images:
    from robustkd.data import SplitParams, load_splits

    test = load_splits("digits", {}, SplitParams(test=20)).test
    return torch.from_numpy(test.unit()), torch.as_tensor(test.labels).long()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(CODE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(network.state_dict(), "net.pt")
    return tmp_path


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def command(line: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*line.split(), "--n", "20", "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def campaign(attacks: dict[str, Any] | None = None, **defense: Any) -> robustkd.Results:
    return robustkd.run(
        {
            "version": 1,
            "name": "mine",
            "data": {"name": "digits", "test": 20},
            "threat": {"norm": "linf", "eps": 0.1},
            "defenses": {"mine": {"kind": "external", **defense}},
            "attacks": attacks or {"fgsm": {"kind": "fgsm"}},
            "checks": "none",
        },
        workers=0,
        track=False,
    )


def numbers(results: robustkd.Results) -> tuple[float, float]:
    row = results.to_dataframe().iloc[0]
    return float(row["clean_accuracy"]), float(row["robust_accuracy"])


@pytest.fixture(scope="module")
def right(network: nn.Module, digits: Images) -> tuple[float, float]:
    """Clean and robust accuracy of the plain network."""
    report = robustkd.attack("fgsm", network, *digits, eps=0.1)
    return pytest.approx(report.clean_accuracy), pytest.approx(report.robust_accuracy)


CODES = {
    "a file with another beside it": ("my_model.py:make", {"my_model.py": "from nets import build as make\n", "nets.py": CODE}),
    "an import in the function": (
        "my_model.py:make",
        {"my_model.py": "def make():\n    import nets\n    return nets.build()\n", "nets.py": CODE},
    ),
    "a package beside it": (
        "code/load.py:make",
        {
            "code/load.py": "from nets.small import make\n",
            "code/nets/small.py": "from .parts import build as make\n",
            "code/nets/parts.py": CODE,
        },
    ),
    "a module": ("nets.small:build", {"nets/__init__.py": "", "nets/small.py": "from .parts import build\n", "nets/parts.py": CODE}),
    "a classmethod": (
        "lit.py:Lit.load_from_checkpoint",
        {"lit.py": CODE + "\n\nclass Lit:\n    @classmethod\n    def load_from_checkpoint(cls):\n        return build()\n"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CODES)
def test_code_in_several_files(case: str, folder: Path, right: tuple[float, float]) -> None:
    reference, files = CODES[case]
    write(files)
    found = command(f"attack fgsm --model {reference} --weights net.pt --eps 0.1")
    assert (found["clean_accuracy"], found["robust_accuracy"]) == right
    assert numbers(campaign(code=reference, weights="net.pt")) == right


def test_a_module_is_found_beside_the_campaign_wherever_it_is_run_from(
    folder: Path, right: tuple[float, float], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"nets/small.py": CODE, "mine.yaml": "version: 1\nname: m\ndata: {name: digits, test: 20}\n"
           "threat: {norm: linf, eps: 0.1}\nchecks: none\nattacks: {fgsm: {kind: fgsm}}\n"
           "defenses: {mine: {kind: external, code: 'nets.small:build', weights: net.pt}}\n"})  # fmt: skip
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert numbers(robustkd.run(folder / "mine.yaml", out="here", workers=0, track=False)) == right
    write({"nets/small.py": CODE.replace("build", "other")})  # of the working folder, which comes second


def test_files_of_one_name_in_two_folders_and_a_changed_one(folder: Path, digits: Images) -> None:
    import sys

    for place, classes in (("a", 10), ("b", 7)):
        write({f"{place}/my_model.py": "from nets import build\n", f"{place}/nets.py": CODE.replace("10)", f"{classes})")})
    path = list(sys.path)
    for place, classes in (("a", 10), ("b", 7), ("a", 10)):
        assert robustkd.load_model(f"{place}/my_model.py:build")(digits[0]).shape[1] == classes
    write({"a/nets.py": CODE.replace("10)", "3)")})
    assert robustkd.load_model("a/my_model.py:build")(digits[0]).shape[1] == 3
    assert sys.path == path
    here = {
        name
        for name, module in list(sys.modules.items())
        if (getattr(module, "__file__", None) or "").startswith(str(Path.cwd()))
    }
    assert {name for name in here if not name.startswith("robustkd_user")} <= {"nets"}


def test_a_saved_target_of_code_with_a_module_beside_it(folder: Path, digits: Images) -> None:
    from robustkd.targets import ClassifierTarget

    write({"nets.py": CODE, "my_model.py": "from nets import build\n"})
    network = robustkd.load_model("my_model.py:build", weights="net.pt")
    Path("saved").mkdir()
    save_target(
        ClassifierTarget(network, num_classes=10, input_shape=(1, 8, 8), origin={"code": "my_model.py:build"}), Path("saved")
    )
    again = load_target(Path("saved"), [Code("my_model.py:build")])
    assert torch.equal(again(digits[0]), network(digits[0]))


def test_arguments_and_registered_models(folder: Path, digits: Images, right: tuple[float, float]) -> None:
    write({"my_model.py": CODE.replace("width=6", "width")})
    found = command("audit my_model.py:build --kwarg width=6 --weights net.pt --eps 0.1 --attack fgsm")
    assert (found["clean_accuracy"], found["robust_accuracy"]) == right
    assert numbers(campaign(code="my_model.py:build", kwargs={"width": 6}, weights="net.pt")) == right

    from robustkd import plugins

    tiny = plugins.make("models", {"kind": "tiny-cnn"}).build((1, 8, 8), 10).eval()
    torch.save({"state_dict": tiny.state_dict()}, "tiny.pt")
    expected = robustkd.attack("fgsm", tiny, *digits, eps=0.1)
    found = command("attack fgsm --model tiny-cnn --weights tiny.pt --eps 0.1")
    assert found["robust_accuracy"] == pytest.approx(expected.robust_accuracy)
    with pytest.raises(UsageError, match="untrained network"):
        command("attack fgsm --model tiny-cnn")
    with pytest.raises(UsageError, match="nobody"):
        command("attack fgsm --model tiny-cnn --weights tiny.pt --kwarg nobody=1")


@pytest.mark.parametrize(
    ("reference", "files", "message"),
    [
        ("my_model.py:Net.make", {"my_model.py": CODE}, "my_model.py has no 'Net'"),
        ("my_model.py:Net.mak", {"my_model.py": "class Net:\n    make = 1\n"}, r"my_model.py:Net has no 'mak'\n  fix: did you mean 'make'"),
        ("my_model.py:build", {"my_model.py": "import no_such_module\n"}, "No module named 'no_such_module'"),
        (
            "pkg/net.py:build",
            {"pkg/__init__.py": "", "pkg/net.py": "from .parts import build\n"},
            r"fix: name it as a module of its package: PACKAGE\.net:build",
        ),
        ("no.such.module:build", {}, "No module named"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(reference: str, files: dict[str, str], message: str, folder: Path) -> None:
    write(files)
    with pytest.raises(RobustkdError, match=message):
        command(f"attack fgsm --model {reference}")


def exported(network: nn.Module, images: Tensor, file: str) -> None:
    torch.export.save(torch.export.export(network, (images,)), file)  # for batches of this size alone, as it does by itself


def onnx(network: nn.Module, images: Tensor, file: str, *, dynamo: bool = False) -> None:
    """As torch 2.9 and later do by themselves (``dynamo``: the weights lie in a file beside it), or as before."""
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.onnx.export(network, (images,), file, dynamo=dynamo)


def scripted(network: nn.Module, images: Tensor, file: str) -> None:
    torch.jit.trace(network, images).save(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("write_it", "file", "batch"), [(scripted, "net.pt", 3), (exported, "net.pt2", 1), (exported, "net.pt2", 7)]
)
def test_a_file_with_the_whole_network(
    write_it: Callable[..., None],
    file: str,
    batch: int,
    folder: Path,
    network: nn.Module,
    digits: Images,
    right: tuple[float, float],
) -> None:
    write_it(network, digits[0][:batch], file)
    model = robustkd.load_model(file)
    assert torch.allclose(model(digits[0]), network(digits[0]), atol=1e-5)
    found = command(f"attack fgsm --model {file} --eps 0.1")
    assert (found["clean_accuracy"], found["robust_accuracy"]) == right
    assert numbers(campaign(file=file)) == right
    write({"my_model.py": CODE})
    with pytest.raises(TargetError, match=r"is a whole model \((torchscript|export)\), not weights alone"):
        robustkd.load_model("my_model.py:build", weights=file)
    again = load_target(next(Path("runs/mine/cells").glob("*/*/card.json")).parent, [f"{file}:network"])
    assert torch.allclose(again(digits[0]), network(digits[0]), atol=1e-5)
    with pytest.raises(TargetError, match="does not run because a file says so"):
        load_target(next(Path("runs/mine/cells").glob("*/*/card.json")).parent)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("batch", [1, 6])
def test_an_onnx_file_is_attacked_by_its_gradients(
    folder: Path, network: nn.Module, digits: Images, right: tuple[float, float], batch: int, dynamo: bool
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2pytorch")
    onnx(network, digits[0][:batch], "net.onnx", dynamo=dynamo)
    model = robustkd.load_model("net.onnx")
    gradients = []
    for each in (network, model):
        x = digits[0].clone().requires_grad_()
        torch.nn.functional.cross_entropy(each(x), digits[1]).backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].abs().max() > 1e-4
    found = command("attack fgsm --model net.onnx --eps 0.1")
    assert (found["clean_accuracy"], found["robust_accuracy"]) == right
    assert robustkd.evaluate(model, *digits, attacks="fgsm", eps=0.1, level="none").robust_accuracy == right[1]
    results = campaign(file="net.onnx")
    assert numbers(results) == right
    assert not results.to_dict().get("skipped")
    again = load_target(next(Path("runs/mine/cells").glob("*/*/card.json")).parent, ["net.onnx:network"])
    assert torch.allclose(again(digits[0]), network(digits[0]), atol=1e-5)


class Shared(nn.Module):
    """What exporters write in words that the converter does not know: weights that two layers share, and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight, self.third.bias = self.second.weight, self.second.bias
        self.normalise, self.last = nn.BatchNorm2d(4), nn.Linear(256, 10)
        self.normalise.running_mean.uniform_(-0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(torch.relu(self.second(torch.relu(self.first(x)))))
        return self.last(torch.relu(self.third(torch.relu(x))).flatten(1))


@pytest.mark.filterwarnings("ignore")
def test_gradients_of_what_exporters_write(folder: Path, digits: Images) -> None:
    pytest.importorskip("onnx2pytorch")
    torch.manual_seed(0)
    network = Shared().eval()
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(network, (digits[0][:2],), "shared.onnx", dynamo=False, **axes)
    model, gradients = robustkd.load_model("shared.onnx"), []
    for each in (network, model):
        x = digits[0].clone().requires_grad_()
        gradients.append(torch.autograd.grad(each(x)[:, 3].sum(), x)[0])
    assert torch.allclose(*gradients, atol=1e-6)


class Wrong(nn.Module):
    def __init__(self, model: object) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * self.scale


def _raises(model: object) -> nn.Module:
    raise NotImplementedError("Conversion not implemented for op_type=Whirl.")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("converter", "reason"), [(Wrong, "answers otherwise than onnxruntime"), (_raises, "op_type=Whirl")])
def test_a_conversion_that_is_wrong_or_fails_is_not_used(
    folder: Path,
    network: nn.Module,
    digits: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    converter: Callable[[object], nn.Module],
    reason: str,
) -> None:
    onnx(network, digits[0][:2], "net.onnx")
    monkeypatch.setattr(pytest.importorskip("onnx2pytorch"), "ConvertModel", converter)
    model = robustkd.load_model("net.onnx")
    assert torch.allclose(model(digits[0]), network(digits[0]), atol=1e-5)
    assert "net.onnx has no gradients here" in caplog.text
    assert reason in caplog.text
    with pytest.raises(TargetError, match="attack 'pgd' needs gradients, which this target"):
        command("attack pgd --model net.onnx --eps 0.1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 6])
def test_an_onnx_file_is_a_black_box_without_the_converter(
    folder: Path, network: nn.Module, digits: Images, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    onnx(network, digits[0][:batch], "net.onnx")
    expected = robustkd.attack("square", network, *digits, eps=0.1, queries=20)
    found = command("attack square --model net.onnx --eps 0.1 --set queries=20")
    assert (found["clean_accuracy"], found["robust_accuracy"]) == pytest.approx(
        (expected.clean_accuracy, expected.robust_accuracy)
    )
    with pytest.raises(TargetError, match="attack 'pgd' needs gradients, which this target"):
        command("attack pgd --model net.onnx --eps 0.1")
    attacks = {"square": {"kind": "square", "queries": 20}, "pgd": {"kind": "pgd"}}
    write({"my_model.py": CODE})
    plain = numbers(campaign(code="my_model.py:build", weights="net.pt", attacks={"square": attacks["square"]}))
    results = campaign(file="net.onnx", attacks=attacks)
    assert numbers(results) == pytest.approx(plain)
    assert "needs gradients, which targets of 'mine' do not have" in str(results.to_dict()["skipped"])
    table = results.to_dataframe()
    assert "pgd" not in set(table[table["robust_accuracy"].notna()]["attack"])
    report = command("audit net.onnx --attack square --eps 0.1 --samples 4")
    assert report["clean_accuracy"] == pytest.approx(expected.clean_accuracy)


def test_an_image_classifier_of_transformers(folder: Path, digits: Images) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
    config = transformers.ViTConfig(**shape, num_hidden_layers=1, num_attention_heads=2, num_labels=10, initializer_range=0.5)
    net = transformers.ViTForImageClassification(config).eval()
    net.save_pretrained("vit")
    with pytest.raises(TargetError, match=r"vit has no preprocessor_config\.json"):
        command("attack fgsm --model vit")
    pixels = {
        "do_resize": True,
        "size": {"height": 8, "width": 8},
        "do_normalize": True,
        "image_mean": [0.4],
        "image_std": [0.2],
    }
    Path("vit/preprocessor_config.json").write_text(json.dumps(pixels))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - 0.4) / 0.2).logits

    expected = robustkd.attack("fgsm", Plain(), *digits, eps=0.1)
    found = command("attack fgsm --model vit --eps 0.1")
    wanted = (pytest.approx(expected.clean_accuracy), pytest.approx(expected.robust_accuracy))
    assert (found["clean_accuracy"], found["robust_accuracy"]) == wanted
    assert numbers(campaign(file="vit")) == wanted
    assert robustkd.load_model("vit")(torch.rand(2, 1, 20, 31)).shape == (2, 10)


@pytest.mark.parametrize(
    ("reference", "kwargs"),
    [
        ("torchvision.models:resnet18", {"num_classes": 10}),
        ("timm:create_model", {"model_name": "resnet18", "num_classes": 10}),
        ("robustkd.integrations.robustbench:build", {"model_id": "Wong2020Fast"}),
    ],
)
def test_architectures_of_others_by_name(reference: str, kwargs: dict[str, Any], folder: Path) -> None:
    library, _, name = reference.partition(":")
    if "robustbench" in library and importlib.util.find_spec("robustbench") is None:
        pytest.skip("robustbench is not installed")
    build = getattr(pytest.importorskip(library), name)
    network = build(**kwargs).eval()
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, "weights.pth.tar")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(robustkd.load_model(reference, kwargs=kwargs, weights="weights.pth.tar")(x), network(x))


@pytest.mark.parametrize("file", ["net.pt", "absent.onnx", "nonsense.onnx", "pickled.pth"])
def test_what_is_no_network_is_told_from_one(file: str, folder: Path, network: nn.Module) -> None:
    Path("nonsense.onnx").write_bytes(b"nonsense")
    torch.save(network, "pickled.pth")
    with pytest.raises(TargetError, match=f"{file} (holds no network|cannot be loaded)|no model file .*{file}"):
        command(f"attack square --model {file}")
    if not Path(file).exists():
        with pytest.raises(RobustkdError, match=file):
            campaign(file=file)
    else:
        assert file in campaign(file=file).to_dict()["defenses"][0]["error"]


def test_the_documents_table_names_options_and_keys_that_there_are() -> None:
    from robustkd import plugins

    page = (Path(__file__).parents[2] / "docs/own-model.md").read_text()
    section = page.partition("## What you have")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in section.splitlines() if row.startswith("| ") and not row.startswith("| you have")]
    keys = plugins.load("defenses", "external").Params.model_fields
    assert len(rows) > 10
    for _, options, block, _ in rows:
        for line in re.findall(r"`(-.+?)`", options):
            given = line.split() if "--model" in line else ["--model", "my_model.py:build", *line.split()]
            assert cli.get_command(None, "attack").make_context("attack", ["pgd", *given])
        for line in re.findall(r"`(.+?)`", block):
            assert {key.partition(":")[0] for key in re.split(r", (?=\w+:)", line)} <= {*keys, "kind"}, line
