"""Saving, loading and asking a target for features."""

import json

import pytest
import torch
from torch import nn

from robustkd.contracts import TargetError
from robustkd.targets import ClassifierTarget, fingerprint, load_target, save_target


def make(seed=0):
    torch.manual_seed(seed)
    return ClassifierTarget.from_model("tiny-cnn", {}, input_shape=(1, 8, 8), num_classes=10)


def test_a_target_comes_back_the_same(tmp_path):
    target = make()
    target.module.eval()
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(target(x), again(x))
    assert fingerprint(again) == fingerprint(target) != fingerprint(make(1))
    assert not any(module.training for module in again.module.modules())


@pytest.mark.parametrize("file", ["weights.safetensors", "card.json"])
def test_a_damaged_file_is_named(tmp_path, file):
    save_target(make(), tmp_path)
    (tmp_path / file).write_bytes(b"\x00\x01garbage")
    with pytest.raises(TargetError, match=file if file != "card.json" else "holds no saved target"):
        load_target(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    save_target(make(), tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    card["origin"]["model"] = "small-cnn"
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(TargetError, match="does not fit the network"):
        load_target(tmp_path)


def test_pickled_code_is_refused(tmp_path):
    from robustkd.targets.checkpoints import load_weights

    class Evil:
        def __reduce__(self):
            return (print, ("this ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(TargetError, match="cannot be read safely"):
        load_weights(nn.Linear(2, 2), tmp_path / "evil.pt")


def test_features_come_from_named_layers():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    target = ClassifierTarget(net, num_classes=2, input_shape=(1, 2, 2))
    x = torch.rand(5, 1, 2, 2)
    found = target.features(x, ["1", "2"])
    assert torch.equal(found["2"], found["1"].relu())
    with pytest.raises(TargetError, match="no layer 'head'"):
        target.features(x, ["head"])
    assert not net[1]._forward_hooks


@pytest.mark.parametrize("output", [lambda x: x.sum(), lambda x: x.flatten(1)[:, :3], lambda x: (x,)])
def test_a_wrong_output_is_named(output):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(TargetError, match="expected \\(5, 2\\)"):
        ClassifierTarget(Odd(), num_classes=2, input_shape=(1, 2, 2))(torch.rand(5, 1, 2, 2))
