"""Networks that hold several: what is cut out is what it says, and what is counted is what a reader would count."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from robustkd.contracts import TargetError
from robustkd.models.sub_networks import log_odds
from robustkd.targets import ClassifierTarget, fingerprint, load_target, save_target
from robustkd.targets.sub_network import ComputationTarget, SubNetworkTarget


def made(name: str, shape: tuple[int, ...] = (1, 12, 12), seed: int = 0, **params: object) -> ClassifierTarget:
    torch.manual_seed(seed)
    target = ClassifierTarget.from_model(name, params, input_shape=shape, num_classes=5)
    target.module.eval()
    return target


def counted(module: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of one image, from what each layer was given and gave."""
    total = 0

    def note(layer: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        per_output = 9 * arguments[0].shape[1] if isinstance(layer, nn.Conv2d) else arguments[0].shape[1]
        total += output[0].numel() * per_output

    handles = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    module(x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(("name", "params"), [("multi-exit-cnn", {"width": 3, "exits": 3}), ("elastic-cnn", {"width": 6})])
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 14)])
def test_the_multiply_adds_are_those_of_the_layers_that_are_called(name, params, shape):
    target = made(name, shape, **params)
    network = target.module
    assert len(network.names) == len(network.multiply_adds)
    for number, part in enumerate(network.names):
        assert counted(SubNetworkTarget(target, part).module, torch.rand(1, *shape)) == network.multiply_adds[number]
    assert list(network.multiply_adds) == sorted(network.multiply_adds)


def test_a_narrow_network_is_the_wide_one_with_the_rest_of_its_weights_at_zero():
    target = made("elastic-cnn", width=8, widths=(0.25, 0.6, 1.0))
    x = torch.rand(6, 1, 12, 12)
    for share, name in ((0.25, "width-0.25"), (0.6, "width-0.6"), (1.0, "width-1")):
        cut = copy.deepcopy(target.module)
        with torch.no_grad():
            for layer in (cut.conv1, cut.conv2, cut.conv3, cut.linear1):
                kept = math.ceil(share * layer.weight.shape[0])
                layer.weight[kept:], layer.bias[kept:] = 0, 0
        narrow = SubNetworkTarget(target, name)(x)
        assert torch.allclose(narrow, cut(x), atol=1e-6)
        assert torch.equal(narrow, target(x)) == (share == 1.0)


def test_an_exit_is_the_network_up_to_there():
    target = made("multi-exit-cnn", width=4, exits=3)
    network, x = target.module, torch.rand(6, 1, 12, 12)
    h = network.stem(x)
    for number, (block, head) in enumerate(zip(network.blocks, network.heads, strict=True)):
        h = block(h)
        assert torch.allclose(SubNetworkTarget(target, f"exit-{number + 1}")(x), head(h), atol=1e-6)
        assert torch.allclose(network.answers(x)[number], head(h), atol=1e-6)


def test_the_rule_takes_the_first_exit_that_is_sure_enough():
    target = made("multi-exit-cnn", width=4, exits=4)
    network, x = target.module, torch.rand(200, 1, 12, 12)
    with torch.no_grad():
        for head in network.heads:
            head.linear.weight.mul_(30)
        answers = network.answers(x)
        sure = answers.softmax(2).amax(2)
        network.threshold.fill_(math.log(0.8 / 0.2))
        spent, said = network.spent(x), target(x)
    places = []
    for row in range(len(x)):
        place = next((e for e in range(3) if sure[e, row] >= 0.8), 3)
        places.append(place)
        assert torch.equal(said[row], answers[place, row])
        assert int(spent[row]) == network.budgets[place]
    assert len(set(places)) == 4  # each exit answers some


@pytest.mark.parametrize("threshold", [-0.5, 1.4, math.inf])
def test_what_is_beyond_a_budget_is_what_spends_more(threshold):
    target = made("multi-exit-cnn", width=4, exits=4)
    network, x = target.module, torch.rand(300, 1, 12, 12)
    with torch.no_grad():
        for head in network.heads:
            head.linear.weight.mul_(30)
        network.threshold.fill_(threshold)
        spent = network.spent(x)
        for budget in (1.0, *(cost + off for cost in network.budgets for off in (-1, 0, 1))):
            assert torch.equal(network.beyond(x, budget) > 0, spent > budget)
            assert torch.equal(ComputationTarget(target, budget)(x).argmax(1) == 1, spent > budget)


def test_the_log_odds_are_those_of_the_largest_probability_and_do_not_saturate():
    logits = torch.randn(50, 7, dtype=torch.float64)
    p = logits.softmax(1).amax(1)
    assert torch.allclose(log_odds(logits), (p / (1 - p)).log())
    far = torch.tensor([[0.0, 60.0, 1.0]], requires_grad=True)  # in float32 the probability is 1, and its gradient 0
    (gradient,) = torch.autograd.grad(log_odds(far).sum(), far)
    assert log_odds(far).item() == pytest.approx(60 - math.log(1 + math.e))
    assert gradient.abs().sum() > 1


def test_a_sub_network_is_saved_and_its_place_is_part_of_its_identity(tmp_path):
    target = made("multi-exit-cnn", width=4)
    parts = {name: SubNetworkTarget(target, name) for name in ("exit-1", "exit-2")}
    assert len({fingerprint(one) for one in (target, *parts.values())}) == 3
    save_target(parts["exit-2"], tmp_path)
    x = torch.rand(3, 1, 12, 12)
    again = load_target(tmp_path)
    assert torch.equal(again(x), parts["exit-2"](x))


def test_what_holds_no_sub_network_is_refused_with_a_word():
    plain, elastic = made("tiny-cnn"), made("elastic-cnn", width=4)
    with pytest.raises(TargetError, match="holds no sub-networks"):
        SubNetworkTarget(plain, "exit-1")
    with pytest.raises(TargetError, match=r"no sub-network 'width-0.3'"):
        SubNetworkTarget(elastic, "width-0.3")
    with pytest.raises(TargetError, match="spends the same on every image"):
        ComputationTarget(elastic, 1e6)
