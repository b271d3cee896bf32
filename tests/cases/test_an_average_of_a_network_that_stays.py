"""``swa`` where a part of the network is not trained: BatchNorm's statistics there were lost, or another model's changed."""

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, ThreatModel
from robustkd.data import SplitParams, load_splits
from robustkd.targets.activations import last_linear

NETWORK = {"model": "convnet", "model_params": {"norm": "batch", "width": 8, "depth": 2}}
BRIEF = {"epochs": 2, "batch_size": 32, "selection": "last"}


@pytest.fixture
def fitted(tmp_path):
    data = load_splits("digits", {}, SplitParams(train=200, test=50, validation=50))

    def fit(spec, **targets):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        parts = data.train, data.validation, data.input_shape, data.num_classes
        context = FitContext(*parts, ThreatModel(eps=0.1), 0, torch.device("cpu"), folder, targets=targets)
        return plugins.make("defenses", spec).fit(context)

    return fit


@pytest.fixture
def base(fitted):
    return fitted({"kind": "standard", **NETWORK, **BRIEF})


def statistics(target):
    return {name: tensor.clone() for name, tensor in target.module.named_buffers()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def probed(swa):
    recipe = {"kind": "standard", **BRIEF, "lr": 0.01, "swa": swa}
    return {"kind": "stages", "start": "base", "stages": [{"recipe": recipe, "train": "head"}]}


def test_a_probe_keeps_the_statistics_of_the_features_that_it_reads(fitted, base):
    before = statistics(base)
    averaged = fitted(probed(0.5), base=base)
    assert same(before, statistics(averaged))
    assert not torch.equal(last_linear(averaged.module).weight, last_linear(base.module).weight)


def test_low_rank_updates_keep_those_of_the_encoder(fitted, base):
    spec = {"kind": "hello", "teacher": "base", "encoder": "base", "rank": 2, **BRIEF, "lr": 0.01}
    assert same(statistics(base), statistics(fitted(spec | {"swa": 0.5}, base=base)))


@pytest.mark.parametrize("kind", ["raw", "lq-vae"])
def test_what_stands_in_front_of_a_model_leaves_the_model_as_it_is(fitted, base, kind):
    before = statistics(base)
    fitted({"kind": kind, "base": "base", **BRIEF, "swa": 0.5}, base=base)
    assert same(before, statistics(base))


def test_a_network_that_is_trained_has_the_statistics_of_its_average(fitted):
    plain, averaged = (fitted({"kind": "standard", **NETWORK, **BRIEF, "swa": swa}) for swa in (None, 0.0))
    assert not same(statistics(plain), statistics(averaged))
    (layer, *_) = (part for part in averaged.module.modules() if isinstance(part, torch.nn.BatchNorm2d))
    assert layer.momentum == 0.1
    assert float(layer.running_var.min()) > 0
