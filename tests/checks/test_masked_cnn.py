"""A published case of gradient masking: a CNN whose input is binarised."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd.data import SplitParams, load_splits
from robustkd.targets.checkpoints import load_weights


class Binarise(nn.Module):
    def forward(self, x):
        return x.round()  # 1 above 0.5, with a graph whose gradient is 0 everywhere

    def surrogate(self, x):
        return x


class MaskedCNN(nn.Module):
    """The fixture's network: conv 20, 70, 256 with BatchNorm and ELU, then 10 logits."""

    def __init__(self):
        super().__init__()
        self.binarise = Binarise()
        shapes = ((1, 20, 5, 1), (20, 70, 4, 2), (70, 256, 3, 2))
        for i, (given, made, kernel, stride) in enumerate(shapes):
            self.add_module(f"conv_{i}", nn.Conv2d(given, made, kernel, stride=stride))
            self.add_module(f"bn_{i}", nn.BatchNorm2d(made))
        self.conv_3 = nn.Conv2d(256, 10, 5)

    def forward(self, x):
        h = self.binarise(x)
        for i in range(3):
            h = nn.functional.elu(getattr(self, f"bn_{i}")(getattr(self, f"conv_{i}")(h)))
        return self.conv_3(h)[:, :, 0, 0]


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_binarised_cnn_is_flagged_with_both_numbers(shared_data):
    """PGD-40 at eps 0.3 says 98.0 %, with BPDA 57.6 % (measured on 500 images, with the fixture)."""
    net = MaskedCNN()
    load_weights(net, shared_data / "networks" / "mnist_masked_cnn.safetensors")
    data = load_splits("mnist", {"root": str(shared_data / "mnist")}, SplitParams(test=100))
    torch.manual_seed(0)
    report = robustkd.audit(
        net.eval(), data.test.unit(), data.test.labels, eps=0.3, attack={"kind": "pgd", "steps": 40}, samples=64
    )
    assert report.verdict == "not credible"
    assert {"zero-gradient", "transfer-beats-white-box"} <= {finding.name for finding in report.findings if finding.fired}
    assert report.robust_accuracy == pytest.approx(0.98, abs=0.02)
    assert report.remedy.names[0] == "bpda"
    assert report.remedy.steps["bpda"] == pytest.approx(0.58, abs=0.10)  # 100 images: the interval is 10 points wide
    assert "bpda" in str(report)
    print(report)
