"""A detector asks the network that it watches once more: the features of an image are those of the first time."""

from __future__ import annotations

import pytest
import torch

import robustkd
from robustkd import plugins
from robustkd.plugin_kit import fixtures
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.split import SplitTarget
from support.two_towers import images


@pytest.fixture(scope="module")
def watched():
    given = {"kind": "with-detector", "base": "plain", "detector": {"kind": "feature-squeezing"}}
    with fixtures.context(targets={"plain": fixtures.classifier()}) as context:
        return plugins.make("defenses", given).fit(context)


def test_features_are_those_of_the_network_alone(watched) -> None:
    x, plain, second, ensemble = images(7), fixtures.classifier(), fixtures.classifier(1), fixtures.ensemble()
    with torch.no_grad():
        alone = EncoderTarget(plain)(x)
        assert torch.equal(EncoderTarget(watched)(x), alone)
        assert torch.allclose(EncoderTarget(SplitTarget(watched, 3))(x), alone, atol=1e-6)
        together = EncoderTarget(SplitTarget(ensemble, 3))(x)
        assert torch.allclose(together, EncoderTarget(second)(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["feature-pgd", "adv-encoder", "feature-target"])
def test_attacks_without_a_head_run_on_it(watched, kind: str) -> None:
    train = fixtures.digits().train
    assert train is not None
    labels = fixtures.batch(fixtures.classifier()).labels
    few = {"steps": 3} if "steps" in plugins.load("attacks", kind).Params.model_fields else {"epochs": 1, "samples": 40}
    fit = (train.unit(), train.labels) if plugins.load("attacks", kind).learns else None
    found = robustkd.attack(kind, watched, images(), labels, eps=0.1, fit_data=fit, params=few)
    assert found.adversarial.shape == images().shape
