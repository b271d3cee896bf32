"""Feature drift: of a linear layer it is what the norm of its rows says."""

import numpy as np
import pytest
import torch
from torch import nn

from robustkd.analyses.feature_drift import FeatureDrift, FeatureDriftParams
from robustkd.contracts import Batch, ThreatModel
from robustkd.targets import ClassifierTarget


def test_features_that_are_one_number_move_as_far_as_the_attack_can_push_it():
    rng = np.random.default_rng(0)
    w = rng.normal(size=16).astype(np.float32)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False), nn.Linear(1, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(w)[None])
        module[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        module[2].bias.zero_()
    target = ClassifierTarget(module, num_classes=2, input_shape=(1, 4, 4), bounds=(-99.0, 99.0))
    x = torch.randn(101, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        batch = Batch(x, target(x).argmax(1), torch.arange(101))
    table = FeatureDrift(FeatureDriftParams()).run(target, batch, ThreatModel(eps=0.02), 0)
    length = np.abs(x.flatten(1).numpy() @ w)
    expected = 0.02 * np.abs(w).sum() / length
    assert table.values[0] == pytest.approx(np.quantile(expected, [0.25, 0.5, 0.75]).tolist(), rel=1e-3)
    assert table.metrics["feature_drift_of_noise"] < 0.5 * table.metrics["feature_drift"]
    assert FeatureDrift(FeatureDriftParams()).run(target, batch, ThreatModel(eps=1e-9), 0).metrics["feature_drift"] < 1e-4
