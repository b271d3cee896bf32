"""The calibration analysis against closed forms and another implementation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from robustkd.analyses.calibration import Calibration, CalibrationParams, calibration_error, equal_count, equal_width
from robustkd.contracts import Batch, ThreatModel
from robustkd.targets import ClassifierTarget


def analysed(logits: torch.Tensor, labels: torch.Tensor, **params: int):
    target = ClassifierTarget(torch.nn.Flatten(), num_classes=logits.shape[1], input_shape=(logits.shape[1], 1, 1))
    batch = Batch(torch.zeros(len(logits), 1, 1, 1), labels, torch.arange(len(logits)), logits=logits)
    return Calibration(CalibrationParams(**params)).run(target, batch, ThreatModel(), 0)


def test_a_constant_confidence_is_off_by_its_distance_from_the_accuracy() -> None:
    # Two classes at 0.8, of which 60 % are right: ECE 0.2 in any bins, Brier 2 * (0.6 * 0.04 + 0.4 * 0.64).
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(50, 1)
    labels = (torch.arange(50) >= 30).long()
    table = analysed(logits, labels)
    assert table.metrics["ece"] == pytest.approx(0.2, abs=1e-6)
    assert table.metrics["brier"] == pytest.approx(2 * (0.6 * 0.04 + 0.4 * 0.64), abs=1e-6)
    assert table.metrics["nll"] == pytest.approx(-(0.6 * np.log(0.8) + 0.4 * np.log(0.2)), abs=1e-6)
    (row,) = [number for number, (share, _) in enumerate(table.values) if share]
    assert table.rows[row] in ("0.73 to 0.80", "0.80 to 0.87")
    assert table.values[row] == pytest.approx([1.0, 0.2], abs=1e-6)


def test_it_agrees_with_another_implementation() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(700, 5, generator=generator)
    labels = torch.where(
        torch.rand(700, generator=generator) < 0.6, logits.argmax(1), torch.randint(5, (700,), generator=generator)
    )
    table = analysed(logits, labels)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    edges = np.linspace(0, 1, 16)
    ece = sum(
        abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
        for low, high in pairwise(edges)
        if (inside := (confidence > low) & (confidence <= high)).any()
    )
    order = np.argsort(confidence, kind="stable")
    adaptive = sum(abs(right[part].sum() - confidence[part].sum()) for part in np.array_split(order, 15)) / 700
    assert table.metrics["ece"] == pytest.approx(ece, rel=1e-9)
    assert table.metrics["ece_adaptive"] == pytest.approx(adaptive, rel=1e-9)
    assert table.metrics["nll"] == pytest.approx(log_loss(labels.numpy(), p), rel=1e-9)
    each = sum(brier_score_loss(labels.numpy() == label, p[:, label]) for label in range(5))
    assert table.metrics["brier"] == pytest.approx(each, rel=1e-9)
    assert sum(share for share, _ in table.values) == pytest.approx(1)
    assert sum(abs(gap) for _, gap in table.values) == pytest.approx(ece, rel=1e-9)


def test_bins_hold_every_sample_once() -> None:
    confidence = torch.tensor([0.2, 1.0, 0.5, 0.5000001, 0.9, 1 / 15], dtype=torch.float64)
    for bins in (equal_width(confidence, 2), equal_count(confidence, 4)):
        assert sorted(torch.cat(bins).tolist()) == list(range(6))
    assert [sorted(rows.tolist()) for rows in equal_width(confidence, 2)] == [[0, 2, 5], [1, 3, 4]]
    assert [len(rows) for rows in equal_count(confidence, 4)] == [2, 2, 1, 1]
    sure = torch.ones(4, dtype=torch.float64)
    assert calibration_error(sure, torch.tensor([True, True, True, False]), equal_width(sure, 15)) == pytest.approx(0.25)


def test_the_logits_that_are_there_already_are_used_and_else_computed() -> None:
    inputs = torch.rand(6, 4, 1, 1)
    target = ClassifierTarget(torch.nn.Flatten(), num_classes=4, input_shape=(4, 1, 1))
    batch = Batch(inputs, torch.arange(6) % 4, torch.arange(6))
    fresh = Calibration().run(target, batch, ThreatModel(), 0)
    assert fresh == Calibration().run(
        target, Batch(inputs, batch.labels, batch.index, logits=inputs.flatten(1)), ThreatModel(), 0
    )
