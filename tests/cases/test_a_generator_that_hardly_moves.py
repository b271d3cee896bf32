"""AdvEncoder's generator makes far more than the budget, which is then cut, and texture of single pixels, by transposed convolutions.

One whose output was scaled to the budget moved a few thousandths of it in a step. On ``cifar10_resnet20`` (linf 10/255, 100 images, twelve
steps) it left 93 % standing, where the authors' code left 26 %. Without the scale it left 71 and 78 %, with transposed convolutions, too,
25 and 19 % (two seeds).
"""

from __future__ import annotations

import torch

from robustkd.attacks.image.engine.feature_losses import distance
from robustkd.attacks.image.gradient.adv_encoder import AdvEncoder, AdvEncoderParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugin_kit import fixtures
from robustkd.targets.encoder import EncoderTarget


def test_a_few_steps_of_the_generator_change_features_more_than_chance_does() -> None:
    target, train, threat = fixtures.classifier(), fixtures.digits().train, ThreatModel("linf", 0.1)
    assert train is not None
    encoder, x = EncoderTarget(target), torch.from_numpy(train.unit())[:200]

    def moved(epochs: int) -> float:
        """The mean over three seeds, since one start is up to four times as far as another."""
        far = []
        for seed in range(3):
            attack = AdvEncoder(AdvEncoderParams(epochs=epochs, samples=64, batch_size=32))
            made = attack.fit(target, train, threat, SampleRng(seed, torch.arange(len(train)), "fit")).perturbation
            assert made is not None
            assert made.abs().max() <= 0.1 + 1e-6
            with torch.no_grad():
                far.append(float(distance(encoder((x + made).clamp(0, 1)), encoder(x), "cos").mean()))
        return sum(far) / len(far)

    assert moved(12) > 1.5 * moved(0)
