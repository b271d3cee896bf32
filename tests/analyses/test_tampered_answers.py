"""Tampered answers: what a verifier notices and gives back, counted by hand from the probabilities of both models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.stats import entropy

from robustkd import plugins
from robustkd.analyses.tampered_answers import TamperedAnswers, moved
from robustkd.contracts import Batch, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugin_kit import fixtures
from robustkd.scoring.detection import auroc
from robustkd.targets.detecting import DetectingTarget

THREAT = ThreatModel(eps=0.1)


def watched(detector: object) -> DetectingTarget:
    defense = plugins.make("defenses", {"kind": "with-detector", "base": "plain", "detector": detector})
    with fixtures.context(targets={"plain": fixtures.classifier(), "other": fixtures.classifier(1)}) as context:
        target = defense.fit(context)
    assert isinstance(target, DetectingTarget)
    return target


def batch() -> Batch:
    test = fixtures.digits().test
    return Batch(torch.from_numpy(test.unit()), torch.from_numpy(test.labels), torch.arange(len(test)))


def test_rejections_and_classes_given_back_are_those_counted_by_hand() -> None:
    target, given = watched({"kind": "fides", "verifier": "other"}), batch()
    with torch.no_grad():
        p, q = (model(given.inputs).double().softmax(1).numpy() for model in (target.base, fixtures.classifier(1)))
    centre, scale, weight, bias = (
        target.scorer.get_buffer(name).double().numpy() for name in ("centre", "scale", "weight", "bias")
    )

    def score(one: np.ndarray, other: np.ndarray) -> float:
        found = np.array([entropy(one, other), cosine(one, other), entropy(one), entropy(other)])
        return float((found - centre) / scale @ weight + bias)

    threshold = float(target.module.get_buffer("threshold"))
    honest = np.array([score(*pair) for pair in zip(p, q, strict=True)])
    scores, rejected, back, alone = [], 0, 0, 0
    for mine, theirs in zip(p, q, strict=True):
        first, second = np.argsort(-mine)[:2]
        told = mine.copy()
        told[[first, second]] = told[[second, first]]
        scores.append(score(told, theirs))
        rejected += scores[-1] > threshold
        others = [name for name in range(10) if name != second]
        back += max(others, key=lambda name: np.log(max(told[name], 1e-6)) + np.log(max(theirs[name], 1e-6))) == first
        alone += max(others, key=lambda name: theirs[name]) == first
    table, n = TamperedAnswers().run(target, given, THREAT, 0), len(p)
    assert table.rows == ["nearest", "any class"]
    assert table.values[0] == pytest.approx([rejected / n, back / n, alone / n, auroc(np.array(scores), honest)], abs=1e-4)
    assert table.metrics["false_alarms"] == pytest.approx((honest > threshold).mean())
    assert 0 < rejected < n
    assert table.metrics["rejected_any_class"] >= rejected / n  # the nearest one is the hardest


def test_another_class_is_drawn_evenly_and_never_the_answer_s_own() -> None:
    p = torch.linspace(0.1, 0.4, 4).double().expand(3000, 4)
    found = moved(p, SampleRng(0, torch.arange(3000), "here"))
    assert torch.equal(found.sort(1).values, p)
    counts = np.bincount(found.argmax(1).numpy(), minlength=4)
    assert counts[3] == 0
    assert np.square(counts[:3] - 1000).sum() / 1000 < 13.8  # chi-square, 2 degrees of freedom, 0.1 %


def test_a_detector_that_scores_no_answers_is_refused() -> None:
    with pytest.raises(TargetError, match="compares answers with a verifier's"):
        TamperedAnswers().run(watched("mahalanobis"), batch(), THREAT, 0)
