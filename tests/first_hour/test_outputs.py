"""What a user's model returns, one line of the user's for each situation: the right number, or one sentence."""

from __future__ import annotations

import logging
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.store import Store
from robustkd.contracts import RobustkdError
from robustkd.targets import load_target
from support.first_hour import robust_accuracy_of

EPS = 0.02
Pair = namedtuple("Pair", "features logits")


def linear(outputs: int) -> nn.Sequential:
    """A linear network of sixteen pixels, each between 0.2 and 0.8 in ``X``, so that eps never meets the bounds."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))
    net[1].weight.data = torch.randn(outputs, 16, generator=torch.Generator().manual_seed(outputs))
    net[1].bias.data = -net[1].weight.data.sum(1) / 2
    return net


X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
NET = linear(3)


class Returning(nn.Module):
    """A network that returns its logits in some other form."""

    def __init__(self, form: Callable[[Tensor], Any], net: nn.Module = NET) -> None:
        super().__init__()
        self.net = net
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


def standing(net: nn.Sequential, index: list[int] | None = None) -> np.ndarray:
    """(N,) bool: which samples of a linear classifier no perturbation of eps in linf breaks; exact."""
    weight, z = net[1].weight.detach(), net(X).detach()
    if index is not None:
        weight, z = weight[index], z[:, index]
    label = z.argmax(1)
    gap = z.gather(1, label[:, None]) - z - EPS * (weight[label][:, None] - weight).abs().sum(2)
    return (gap > 0).scatter(1, label[:, None], True).all(1).numpy()


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a tuple of one": lambda z: (z,),
    "a list": lambda z: [z],
    "logits and a number": lambda z: (z, 3.0),
    "logits and a loss": lambda z: (torch.tensor(0.5), z),
    "logits and attention maps": lambda z: (z, (z[:, None], z[:, None])),
    "logits and features": lambda z: (z, z.repeat(1, 2)),
    "a dict": lambda z: {"out": z, "aux": None},
    "a dict with logits": lambda z: {"features": z.repeat(1, 2), "logits": z},
    "a dict of two": lambda z: {"first": z, "second": z + 1},
    "an ordered dict": lambda z: OrderedDict(logits=z),
    "a named tuple": lambda z: Pair(z.repeat(1, 2), z),
    "an output object": lambda z: SimpleNamespace(loss=None, logits=z),
    "probabilities": lambda z: z.softmax(1),
    "probabilities in a tuple": lambda z: (z.softmax(1), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_holds_the_logits(form: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = standing(NET)
    with caplog.at_level(logging.WARNING, "robustkd"):
        found = robustkd.attack("fab", Returning(FORMS[form]), X, NET(X).argmax(1), eps=EPS)
    assert 0 < expected.mean() < 1
    assert (~found.success == expected).all()
    assert caplog.text.count("the model returns") == 1


@pytest.mark.parametrize(
    "form", [lambda z: z.unsqueeze(2), lambda z: z.sum(), lambda z: None, lambda z: {"a": 1, "b": z}["a"], lambda z: ("x", 3)]
)
def test_what_holds_none(form: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RobustkdError, match=r"the model returned .*\n  fix: "):
        robustkd.attack("pgd", Returning(form), X, NET(X).argmax(1), eps=EPS)


@pytest.mark.parametrize(
    "form",
    [
        lambda z: z,
        lambda z: z[:, 0],
        lambda z: (z,),
        lambda z: z.sigmoid(),
        lambda z: {"logits": z[:, 0]},
        lambda z: torch.cat([-z / 2, z / 2], 1),
    ],
)
@pytest.mark.parametrize("attack", ["pgd", "apgd-dlr", "fmn", "square"])
def test_one_logit(form: Callable[[Tensor], Any], attack: str) -> None:
    one = linear(1)
    weight, z = one[1].weight.detach(), one(X).detach()[:, 0]
    expected = (z.abs() > EPS * weight.abs().sum()).numpy()
    params = {"queries": 50} if attack == "square" else {}
    found = robustkd.attack(attack, Returning(form, one), X, (z > 0).long(), eps=EPS, params=params)
    assert found.clean_accuracy == 1
    assert (~found.success[expected]).all()
    if attack != "square":
        assert (found.success == ~expected).all()


def test_more_classes_than_the_data() -> None:
    many, index = linear(12), [7, 3, 9]
    y = many(X)[:, index].argmax(1)
    found = robustkd.attack("fab", many, X, y, eps=EPS, classes=index, restrict=True)
    assert (~found.success == standing(many, index)).all()
    among_all = robustkd.attack("fab", many, X, y, eps=EPS, classes=index, restrict=False)
    right = many(X).argmax(1) == torch.tensor(index)[y]
    assert among_all.clean_accuracy == right.numpy().mean() < 1
    assert (~among_all.success[right] == standing(many)[right]).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": [7, 3, 9]}, "classes without restrict"),
        ({"restrict": True}, "restrict without classes"),
        ({"classes": [7, 3, 12], "restrict": True}, "names the output 12, the model has 12"),
        ({"classes": [7, 7, 9], "restrict": True}, "each once"),
        ({"classes": [7, 3], "restrict": True}, "labels reach up to 2"),
        ({"classes": "bird", "restrict": True}, "classes is 'bird'"),
        ({"success": "all"}, "success is 'all'"),
        ({"success": "any"}, "12 labels"),
        ({"success": {"label": 12}}, "success names the label 12"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RobustkdError, match=said):
        robustkd.attack("pgd", linear(12), X, torch.arange(40) % 3, eps=EPS, **given)


@pytest.mark.parametrize("form", [lambda z: z, lambda z: z.sigmoid()])
def test_labels_that_hold_together(form: Callable[[Tensor], Tensor]) -> None:
    several = linear(4)
    z, reach = several(X).detach(), EPS * several[1].weight.detach().abs().sum(1)
    y, kept = (z > 0).long(), (z.abs() > reach).numpy()
    model = Returning(form, several)
    for attack in ("pgd", "fab"):
        found = robustkd.attack(attack, model, X, y, eps=EPS, success={"label": 3})
        assert (~found.success == kept[:, 3]).all()
    found = robustkd.attack("fab", model, X, y, eps=EPS, success="any")
    assert (~found.success == kept.all(1)).all()
    with pytest.raises(RobustkdError, match=r"a row for each sample\n  fix: .*success="):
        robustkd.attack("pgd", model, X, y, eps=EPS)


MODELS = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    net[1].bias.data = -net[1].weight.data.sum(1) / 2
    return net

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        return {"logits": self.net(x), "hidden": x}

class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        z = self.net(x)
        return (z[:, 5:6] - z[:, 4:5],)
"""
CAMPAIGN = """
version: 1
name: outputs
data: {name: npz, file: two.npz}
threat: {norm: linf, eps: 0.05}
defenses:
  plain: {kind: external, code: "m.py:plain", classes: [4, 5], restrict: true}
  wrapped: {kind: external, code: "m.py:Wrapped", classes: [4, 5], restrict: true}
  binary: {kind: external, code: "m.py:Binary"}
  student: {kind: kd, teacher: wrapped, student: tiny-cnn, epochs: 1, selection: last}
  of-plain: {kind: kd, teacher: plain, student: tiny-cnn, epochs: 1, selection: last}
  both: {kind: ensemble, members: [wrapped, binary]}
attacks:
  pgd: {kind: pgd, steps: 5}
  transfer: {kind: transfer, surrogates: binary, attacks: {kind: pgd, steps: 5}}
checks: none
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    (tmp_path / "m.py").write_text(MODELS)
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    labels = namespace["plain"]()(torch.as_tensor(images))[:, [4, 5]].argmax(1).numpy()
    np.savez(tmp_path / "two.npz", x_test=images, y_test=labels, x_train=images, y_train=labels)
    return tmp_path


def test_a_campaign_with_teachers_and_ensembles(folder: Path) -> None:
    plan = planning.build(spec.from_text(CAMPAIGN, "outputs.yaml", folder))
    results = run(plan, folder / "out", InlineEngine(), device="cpu", observers=[])
    found = {(cell.defense, cell.attack): (cell.clean_accuracy, cell.robust_accuracy) for cell in results.cells}
    for attack in ("pgd", "transfer"):
        assert found["plain", attack] == found["wrapped", attack] == found["binary", attack] == found["both", attack]
        assert found["student", attack] == found["of-plain", attack]
    assert 0 < found["plain", "pgd"][1] < found["plain", "pgd"][0]
    store, x = Store(folder / "out"), torch.rand(3, 1, 8, 8)
    saved = {}
    for entry in map(store.get, store.ids()):
        if entry.meta.kind == "train" and entry.meta.defense in ("plain", "wrapped", "binary"):
            saved[entry.meta.defense] = load_target(entry.folder, plan.campaign.code)(x).softmax(1)
    assert torch.allclose(saved["plain"], saved["wrapped"])
    assert torch.allclose(saved["plain"], saved["binary"])


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    given = ("--data", "npz", "--data-set", f"file={folder / 'two.npz'}", "--eps", "0.05", "--json")
    for code, more in (("plain", ("--classes", "[4, 5]", "--restrict")), ("Binary", ())):
        command = ["robustkd", "attack", "pgd", "--model", f"{folder / 'm.py'}:{code}", *given, *more]
        numbers.append(robust_accuracy_of(command, monkeypatch, capsys))
    assert numbers[0] == numbers[1]
