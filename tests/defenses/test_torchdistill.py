"""Recipes of torchdistill: read without calling what they name, refused in one sentence, and with the library trained as its losses say."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from pydantic import ValidationError

from robustkd import plugins
from robustkd.contracts import PluginError, TargetError, UsageError
from robustkd.defenses.image.pretrained.torchdistill import Torchdistill, TorchdistillParams, TorchdistillRecipe, seen
from robustkd.defenses.training import Teacher
from robustkd.integrations.torchdistill import criterion_of, read_recipe, stages_of
from robustkd.targets import ClassifierTarget

INSTALLED = importlib.util.find_spec("torchdistill") is not None
with_it = pytest.mark.skipif(not INSTALLED, reason="torchdistill is not installed")
BRIEF = {"optimiser": "adam", "lr": 0.003, "batch_size": 120}


def kd(temperature: float = 4.0, alpha: float = 0.1) -> dict[str, object]:
    ends = {
        f"{side}_module_{part}": value for side in ("student", "teacher") for part, value in (("path", "."), ("io", "output"))
    }
    return _sum(
        kd={"criterion": {"key": "KDLoss", "kwargs": {**ends, "temperature": temperature, "alpha": alpha}}, "weight": 1.0}
    )


def attention(layer: str = "conv2") -> dict[str, object]:
    pair = {side: {"io": "output", "path": layer} for side in ("teacher", "student")}
    return _sum(
        at={
            "criterion": {"key": "ATLoss", "kwargs": {"at_pairs": {"one": {**pair, "weight": 1}}, "mode": "paper"}},
            "weight": 2.0,
        }
    )


def _sum(**terms: object) -> dict[str, object]:
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}


def cnn(seed: int = 0) -> ClassifierTarget:
    torch.manual_seed(seed)
    made = ClassifierTarget.from_model("tiny-cnn", {"width": 3}, input_shape=(1, 8, 8), num_classes=10)
    made.module.eval()
    return made


RECIPE = """
datasets:
  one: &one !import_call
    key: 'os.system'
    init: {args: ['touch CALLED']}
  name: &name !join ['a', '-', 'b']
models: {experiment: *name}
train:
  stage2: {criterion: {key: WeightedSumLoss, kwargs: {sub_terms: {}}}, student: {frozen_modules: [conv1], requires_grad: True}}
  stage1:
    num_epochs: 3
    train_data_loader: {dataset_id: *one}
    teacher: {sequential: [], forward_hook: {input: [linear], output: [conv2, linear]}, wrapper: DataParallel}
    student: {forward_hook: {output: ['.', conv2]}}
    criterion: {key: WeightedSumLoss, kwargs: {sub_terms: {}}}
    optimizer: {key: SGD, kwargs: {lr: 0.1}}
"""


def test_a_file_is_read_in_the_order_of_its_stages_and_nothing_that_it_names_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    first, second = stages_of(read_recipe(tmp_path / "r.yaml"), "r.yaml")
    assert (first.name, first.epochs, first.teacher, first.student) == ("stage1", 3, ("linear", "conv2"), ("conv2",))
    assert (second.name, second.epochs, second.frozen) == ("stage2", None, ("conv1",))
    assert not (tmp_path / "CALLED").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [", "cannot be read as a recipe of torchdistill"),
        ("models: {}", "it has no part 'train'"),
        ("train: {num_epochs: 3}", "train has no criterion"),
        ("train: {criterion: {type: GeneralizedCustomLoss}}", "before version 1"),
        ("train: {criterion: {key: A}, num_epochs: 0}", "num_epochs is 0"),
        ("train: {criterion: {key: A}, student: {sequential: [conv1]}}", "'sequential' makes another network of it"),
        (
            "train: {criterion: {key: A}, teacher: {auxiliary_model_wrapper: {key: B}}}",
            "'auxiliary_model_wrapper' makes another",
        ),
        ("train: {criterion: {key: A}, teacher: {forward_hook: {output: [3]}}}", "the names of its submodules are no strings"),
        ("train: {criterion: {key: A}, teacher: x}", "teacher is no mapping"),
    ],
)
def test_a_recipe_that_is_none_is_refused_in_one_sentence(text, said, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        stages_of(read_recipe(tmp_path / "r.yaml"), "r.yaml")
    assert said in caught.value.message
    assert caught.value.fix
    assert "\n" not in caught.value.message


def test_one_recipe_is_given():
    with pytest.raises(ValidationError, match="one of the two"):
        TorchdistillParams(teacher="t", student="tiny-cnn")
    with pytest.raises(ValidationError, match="one of the two"):
        TorchdistillParams(teacher="t", student="tiny-cnn", file="r.yaml", train={})


@pytest.mark.skipif(INSTALLED, reason="torchdistill is installed")
def test_without_the_library_it_is_refused_in_one_sentence(context):
    with pytest.raises(PluginError, match="recipes of torchdistill need the library") as caught:
        Torchdistill(TorchdistillParams(teacher="t", student="tiny-cnn", train={"criterion": kd()})).fit(
            context(targets={"t": cnn()})
        )
    assert "pip install" in caught.value.fix


def test_what_a_criterion_is_given_are_the_inputs_and_outputs_of_the_layers(minibatch):
    target = cnn()
    found = seen(target, minibatch.x, ["conv1", "linear"])
    network = target.module
    assert set(found) == {".", "conv1", "linear"}
    assert torch.equal(found["conv1"]["output"], network.conv1(minibatch.x))
    assert torch.equal(found["linear"]["output"], found["."]["output"])
    assert torch.equal(network.linear(found["linear"]["input"]), target(minibatch.x))
    with pytest.raises(TargetError, match="no layer 'conv9'"):
        seen(target, minibatch.x, ["conv9"])


@with_it
@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.1), (1.0, 0.5)])
def test_its_kd_is_ours(temperature, alpha, minibatch):
    """Its alpha is on the labels, ours on the soft ones; both have the square of the temperature and the mean over the batch."""
    teacher, student = cnn(1), cnn(2)
    (stage,) = stages_of({"criterion": kd(temperature, alpha)}, "r")
    loss, _ = TorchdistillRecipe(Teacher(teacher), student, criterion_of(stage, "r"), stage, "r").loss(student, minibatch)
    own = plugins.load("defenses", "kd")
    params = own.Params(teacher="t", student="tiny-cnn", temperature=temperature, alpha=1 - alpha)
    assert loss.item() == pytest.approx(own.recipe(Teacher(teacher), params).loss(student, minibatch)[0].item(), abs=1e-6)


@with_it
def test_its_attention_transfer_has_its_formula_and_a_gradient_for_the_student_alone(minibatch):
    teacher, student = cnn(1), cnn(2)
    hooks = {"forward_hook": {"output": ["conv2"]}}
    (stage,) = stages_of({"criterion": attention(), "teacher": hooks, "student": hooks}, "r")
    loss, _ = TorchdistillRecipe(Teacher(teacher), student, criterion_of(stage, "r"), stage, "r").loss(student, minibatch)
    maps = [
        torch.nn.functional.normalize(seen(one, minibatch.x, ["conv2"])["conv2"]["output"].pow(2).sum(1).flatten(1))
        for one in (student, teacher)
    ]
    assert loss.item() == pytest.approx(2 * (maps[0] - maps[1]).norm(dim=1).sum().item() / 32, rel=1e-5)
    loss.backward()
    assert all(weight.grad is None for weight in teacher.module.parameters())
    assert (student.module.conv2.weight.grad != 0).any()


@with_it
def test_a_recipe_in_two_stages_trains_what_it_says(context, tmp_path):
    hooks = {"forward_hook": {"output": ["conv2"]}}
    train = {
        "stage1": {"num_epochs": 2, "criterion": attention(), "teacher": hooks, "student": hooks},
        "stage2": {"num_epochs": 1, "criterion": kd(), "student": {"frozen_modules": ["conv1", "conv2"]}},
    }
    logs = []
    given = context(targets={"t": cnn(1)}, log=lambda epoch, metrics: logs.append((epoch, metrics)))
    params = TorchdistillParams(teacher="t", student="tiny-cnn", student_params={"width": 3}, train=train, **BRIEF)
    target = Torchdistill(params).fit(given)
    assert [epoch for epoch, _ in logs] == [0, 1, 2]
    assert not any("criterion" in name for name in target.module.state_dict())
    again = Torchdistill(params.model_copy(update={"train": {"stage1": train["stage1"]}})).fit(
        context(folder="one", targets={"t": cnn(1)})
    )
    one, both = again.module.state_dict(), target.module.state_dict()
    assert {name for name in one if not torch.equal(one[name], both[name])} == {"linear.weight", "linear.bias"}


@with_it
@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ({"key": "NoSuchLoss"}, "the criterion 'NoSuchLoss' raised"),
        (_sum(a={"criterion": {"key": "KDLoss", "kwargs": {}}, "weight": 1}), "missing"),
        (attention("conv2"), "raised KeyError"),  # nothing is hooked
    ],
)
def test_a_criterion_that_cannot_be_used_is_refused_in_one_sentence(criterion, said, context):
    params = TorchdistillParams(teacher="t", student="tiny-cnn", train={"criterion": criterion}, epochs=1, **BRIEF)
    with pytest.raises(UsageError) as caught:
        Torchdistill(params).fit(context(targets={"t": cnn(1)}))
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@with_it
def test_killed_in_its_second_stage_it_goes_on_there(context, survives_kills):
    def fit(folder: str):
        train = {name: {"num_epochs": 1, "criterion": kd()} for name in ("stage1", "stage2")}
        params = TorchdistillParams(teacher="t", student="tiny-cnn", student_params={"width": 3}, train=train, **BRIEF)
        return Torchdistill(params).fit(context(folder=folder, targets={"t": cnn(1)}))

    assert survives_kills(fit, TorchdistillRecipe, [4])
