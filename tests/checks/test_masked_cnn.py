"""A published case of gradient masking: a CNN whose input is binarised."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd.data import SplitParams, load_splits
from support.published_networks import masked_cnn


class Binarise(nn.Module):
    def forward(self, x):
        return x.round()  # 1 above 0.5, with a graph whose gradient is 0 everywhere

    def surrogate(self, x):
        return x


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_binarised_cnn_is_flagged_with_both_numbers(shared_data):
    """PGD-40 at eps 0.3 says 98.0 %, with BPDA 57.6 % (measured on 500 images, with the fixture)."""
    net = masked_cnn(shared_data, Binarise())
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
