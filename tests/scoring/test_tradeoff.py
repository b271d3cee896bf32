from __future__ import annotations

import pytest

from robustkd.scoring.tradeoff import nrr, w_robust


def test_the_two_means_of_clean_and_robust_accuracy() -> None:
    # B-MTARD, ResNet-18 on CIFAR-10: clean 88.20, AutoAttack 47.44.
    assert w_robust(0.8820, 0.4744) == pytest.approx(0.6782)
    assert nrr(0.8820, 0.4744) == pytest.approx(2 / (1 / 0.8820 + 1 / 0.4744))
    assert nrr(0.7, 0.7) == pytest.approx(w_robust(0.7, 0.7)) == pytest.approx(0.7)
    assert nrr(0.9, 0.0) == nrr(0.0, 0.0) == 0.0
