"""Networks that cannot take an empty batch, or one of odd size: every attack on images asks only what it must, or says what failed."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.contracts import PromptAttack, TargetError
from robustkd.targets import ClassifierTarget, EnsembleTarget
from support.families import FAMILIES, allowed, brief

INNER = {"kind": "pgd", "steps": 3}
SETTINGS = {
    "autoattack": {"steps": 8, "queries": 30, "samples": 2, "targets": 3},
    "apgd-ce": {"steps": 5, "restarts": 2},
    "apgd-dlr": {"steps": 5},
    "apgd-t": {"steps": 5},
    "bpda": {"attack": INNER, "surrogates": {"1": "identity"}},
    "cw-l2": {"steps": 5, "binary_steps": 2},
    "cw-linf": {"steps": 5},
    "ddn": {"steps": 5},
    "ead": {"steps": 5, "binary_steps": 2},
    "distilled-surrogate": {"near": 2, "rounds": 1, "training_steps": 5, "queries": 20},
    "eot": {"attack": INNER, "samples": 2},
    "fab": {"steps": 5, "restarts": 2},
    "fab-t": {"steps": 5},
    "fmn": {"steps": 5},
    "lpa": {"rounds": 2, "steps": 3},
    "nes": {"steps": 3, "pairs": 2},
    "pgd": {"steps": 5, "restarts": 2},
    "sgm": {"branches": ["0"]},
    "spsa": {"steps": 3, "pairs": 2},
    "smoothed-pgd": {"steps": 3, "neighbours": 2},
    "square": {"queries": 30},
    **{key: {"queries": 30} for key in ("simba", "bandits", "hopskipjump", "rays", "surfree", "geoda", "random-directions")},
    **{key: {"queries": 30} for key in ("colour-search", "flow-search", "perceptual-search", "sparse-rs", "patch-rs")},
    "sigma-zero": {"steps": 20},
    "transfer": {"surrogates": ["other"], "attacks": [INNER]},
    "universal": {"epochs": 2},
    "vmi-fgsm": {"steps": 3, "neighbours": 2},
}
NEEDS_ANOTHER_TARGET = {"diff-protect", "polish"}  # a classifier behind a diffusion model, a network of ReLUs


def _on_images():
    found = []
    for name in plugins.names("attacks"):
        kind = plugins.load("attacks", name) if name not in FAMILIES else None
        if kind is None or issubclass(kind, PromptAttack) or name in (*NEEDS_ANOTHER_TARGET, "code"):
            continue
        versions = ("standard", "plus", "rand", "adaptive") if name == "autoattack" else (None,)
        for version in versions:
            found.append(
                pytest.param(name, {"version": version} if version else {}, id=f"{name}-{version}" if version else name)
            )
    return found


class Flattening(nn.Module):
    """The commonest way to write it; -1 is ambiguous for an empty batch."""

    def forward(self, x):
        return x.view(x.size(0), -1)


class Viewing(nn.Module):
    """The same for batches of any size; it too needs contiguous inputs, and that decides how torch computes."""

    def forward(self, x):
        return x.view(len(x), math.prod(x.shape[1:]))


class NoEmptyBatch(nn.Flatten):
    def forward(self, x):
        if len(x) == 0:
            raise RuntimeError("an empty batch")
        return super().forward(x)


class EvenBatch(nn.Flatten):
    def forward(self, x):
        if len(x) % 2:
            raise RuntimeError("rows are paired up")
        return super().forward(x)


def network(flatten, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), flatten, nn.Linear(4 * 6 * 6, 4)).eval()


def attacked(name, params, flatten, **threat):
    model, other = network(flatten), network(nn.Flatten(), seed=1)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = network(nn.Flatten())(x).argmax(1)
    target = ClassifierTarget(model, num_classes=4, input_shape=(1, 8, 8))
    if name == "mora":
        target = EnsembleTarget([target, ClassifierTarget(other, num_classes=4, input_shape=(1, 8, 8))])
    models = {"other": other} if name == "transfer" else None
    data = (x, y) if plugins.load("attacks", name).learns else None
    params = brief(name) | SETTINGS.get(name, {}) | params
    return robustkd.attack(name, target, x, y, models=models, fit_data=data, **(threat or allowed(name)), **params)


@pytest.mark.parametrize(("name", "params"), _on_images())
@pytest.mark.slow
def test_no_attack_asks_about_no_image(name, params):
    for any_batch, flatten in ((Viewing(), Flattening()), (nn.Flatten(), NoEmptyBatch())):
        same = attacked(name, params, any_batch)
        assert (attacked(name, params, flatten).success == same.success).all()


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l1", 2.0)])
def test_nor_does_adaptive_in_another_norm(norm, eps):
    assert attacked("autoattack", {"version": "adaptive"}, Flattening(), norm=norm, eps=eps).robust_accuracy < 1


@pytest.mark.parametrize(("name", "params"), _on_images())
def test_what_a_network_says_of_an_odd_batch_is_one_clear_error(name, params):
    """Samples that are broken leave the batch, so no attack can promise even ones."""
    raised = None
    try:
        attacked(name, params, EvenBatch())
    except TargetError as error:
        raised = error
    said = "the model raised RuntimeError on a batch of shape ("
    assert raised is None or (raised.message.startswith(said) and "any size" in (raised.fix or ""))


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

    def forward(self, x):
        if {refused}:
            raise ValueError("rows are paired up")
        x = self.body(x).tanh()
        return self.head(x.view(x.size(0), -1))

def build():
    torch.manual_seed(0)
    return Net()
"""


def command(folder, refused, *arguments):
    """``robustkd attack`` in a process of its own."""
    (folder / "net.py").write_text(CODE.format(refused=refused))
    model = ["--model", f"{folder / 'net.py'}:build", "--data", "digits", "--n", "40", "--eps", "0.06"]
    words = [sys.executable, "-m", "robustkd", "attack", *arguments, *model]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_command_attacks_a_network_that_flattens_by_view(tmp_path):
    small = ["--set", "steps=5", "--set", "queries=20"]
    done = command(tmp_path, "False", "autoattack", "--set", "version=adaptive", *small)
    assert done.returncode == 0, done.stderr
    assert "robust accuracy" in done.stdout


def test_the_command_says_in_one_sentence_what_the_network_said(tmp_path):
    done = command(tmp_path, "len(x) % 2", "pgd")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the model raised ValueError on a batch of shape (")
    assert "Traceback" not in done.stderr
