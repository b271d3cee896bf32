"""What a notebook shows: a short text, a table with a picture of the shares, and a figure."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import UsageError
from robustkd.scoring.picture import Measured, svg
from support.campaigns import tiny_campaign


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    defenses = {
        "plain": "{kind: standard, model: tiny-cnn, epochs: 6}",
        "short": "{kind: standard, model: tiny-cnn, epochs: 2}",
    }
    folder = tmp_path_factory.mktemp("notebook") / "runs" / "x"
    robustkd.run(tiny_campaign(train=300, defenses=defenses), folder, workers=0, device="cpu", track=False)
    return robustkd.load(folder)


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(30, 1, 8, 8)
    return robustkd.evaluate(model, x, model(x).argmax(1), attacks=["fgsm", "pgd"], eps=0.05, level="none")


def dots(markup):
    drawing = ElementTree.fromstring("<svg" + markup.partition("<svg")[2])
    return [float(circle.get("cx")) for circle in drawing.iter("circle")]


def test_a_dot_for_each_share_where_it_belongs(results, report):
    shares = [one.robust_accuracy for one in results.defenses]
    assert dots(results._repr_html_()) == [round(180 + 360 * share, 1) for share in shares]
    shares = [report.robust_accuracy, *(one.robust_accuracy for one in report.attacks.values())]
    assert dots(report._repr_html_()) == [round(180 + 360 * share, 1) for share in shares]
    assert len(dots(report.attacks["fgsm"]._repr_html_())) == 1


def test_short_in_words(results, report):
    for one in (results, report, report.attacks["pgd"]):
        assert len(repr(one)) < 300
        assert "tensor(" not in repr(one)


def test_the_figure_has_the_numbers(results, report):
    for one in (results, report):
        (axes,) = one.plot().axes
        drawn = {float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"}
        assert drawn == {100 * row.share for row in one.measured()}
        assert [label.get_text() for label in axes.get_yticklabels()] == [row.label for row in one.measured()]


def test_names_are_escaped_and_nothing_is_drawn_of_nothing(results):
    assert "<script>" not in svg([Measured("<script>", 0.5)])
    assert svg([Measured("none", None)]) == ""
    empty = dataclasses.replace(results, defenses=[])
    assert "<svg" not in empty._repr_html_()
    with pytest.raises(UsageError, match="no number"):
        empty.plot()
