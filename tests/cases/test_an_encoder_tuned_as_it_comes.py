"""A trained encoder that is tuned without any setting of the training: at SGD's usual rate its weights broke down."""

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, ThreatModel
from robustkd.data import SplitParams, load_splits
from support.two_towers import towers


@pytest.mark.parametrize("kind", ["fare", "tecoa"])
def test_it_is_still_about_what_it_was(tmp_path, kind):
    data = load_splits("digits", {}, SplitParams(train=200, test=50, validation=50))
    start = towers()
    parts = data.train, data.validation, data.input_shape, data.num_classes
    context = FitContext(*parts, ThreatModel(eps=0.05), 0, torch.device("cpu"), tmp_path, targets={"encoder": start})
    tuned = plugins.make("defenses", {"kind": kind, "encoder": "encoder", "epochs": 2, "inner": {"steps": 1}}).fit(context)
    x = torch.from_numpy(data.test.unit())
    with torch.no_grad():
        before, after = start(x), tuned(x)
    assert not torch.equal(before, after)
    assert float((before - after).square().mean() / before.square().mean()) < 0.01
