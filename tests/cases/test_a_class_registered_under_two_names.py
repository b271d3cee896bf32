"""A plug-in's name is the object's: it does not change with what is loaded afterwards."""

import subprocess
import sys

import pytest
import torch

import robustkd
from robustkd import plugins
from robustkd.attacks.image.gradient.fgsm import FGSM
from robustkd.contracts import UsageError
from robustkd.evaluation.checks import make_check
from robustkd.plugins.nested import PluginSpec


def test_no_attack_and_direct_are_one_class_with_two_names():
    first = plugins.make("attacks", {"kind": "no-attack"})
    second = plugins.make("attacks", {"kind": "direct"})
    plugins.load("attacks", "direct")
    assert type(first) is type(second)
    assert (first.name, second.name) == ("no-attack", "direct")


@pytest.mark.parametrize("before", ["", "plugins.load('attacks', 'direct')", "plugins.make('attacks', {'kind': 'no-attack'})"])
def test_an_object_made_by_its_class_has_one_name_whatever_was_loaded(before):
    code = f"""
from robustkd import plugins
from robustkd.attacks.text.no_attack import NoAttack
class Mine(NoAttack): pass
{before}
print(NoAttack().name, Mine().name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["direct", "Mine"]


def test_every_way_to_make_a_plugin_names_it():
    class Spec(PluginSpec):
        group = "attacks"

    assert Spec.model_validate({"kind": "pgd"}).make().name == "pgd"
    assert make_check("not-trained").name == "not-trained"
    assert plugins.make("attacks", {"kind": "eot"}).inner.name == "pgd"
    assert plugins.make("judges", {"kind": "refusal-match"}).name == "refusal-match"


def test_errors_name_an_attack_of_ones_own_by_its_class(tiny):
    class Mine(FGSM):
        norms = ("l2",)

    with pytest.raises(UsageError, match="attack 'Mine'"):
        robustkd.attack(Mine(), *tiny, norm="linf", eps=0.1)
    plugins.load("attacks", "fgsm")
    with pytest.raises(UsageError, match="attack 'Mine'"):
        robustkd.attack(Mine(), *tiny, norm="linf", eps=0.1)


@pytest.fixture
def tiny():
    x = torch.rand(3, 1, 2, 2)
    return torch.nn.Flatten(), x, x.flatten(1).argmax(1)
