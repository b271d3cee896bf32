"""What a caption model says of clean and attacked images, counted by hand from its captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robustkd.analyses.captions import Captions, CaptionsParams
from robustkd.contracts import TargetError, ThreatModel
from robustkd.data.captions import tones_of
from robustkd.defenses.image.representations.captions.caption_pretrain import fresh_captioner
from robustkd.evaluation.images import make_batch
from robustkd.plugin_kit import fixtures


@pytest.fixture
def target() -> Any:
    with fixtures.context() as context:
        made = fresh_captioner(context, "tiny-cnn", {}, 8, 12)
    made.module.eval()
    return made


def test_the_shares_are_those_of_its_captions(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    test = fixtures.digits().test.select(np.arange(8))
    x, y = torch.from_numpy(test.unit()), torch.from_numpy(test.labels)
    tones = tones_of(test.unit())
    # One that is right of the first three, wrong in the adjective of the next two, in the name of the next, and in all of the last.
    told = [target.captions[label][tone] for label, tone in zip(y.tolist(), tones, strict=True)]
    for place in (3, 4):
        told[place] = target.captions[int(y[place])][(tones[place] + 1) % 3]
    told[5] = target.captions[(int(y[5]) + 1) % 10][tones[5]]
    told[6], told[7] = target.captions[(int(y[6]) + 1) % 10][(tones[6] + 1) % 3], "a a a"
    monkeypatch.setattr(target, "describe", lambda images: told[: len(images)])
    table = Captions(CaptionsParams(attack={"kind": "fgsm"})).run(
        target, make_batch(x, y), ThreatModel(norm="linf", eps=0.1, goal="targeted"), 0
    )
    assert table.rows == ["clean", "fgsm"]
    assert table.columns == ["right caption", "at least", "at most", "right name", "right adjective", "wanted name"]
    clean, under = np.array(table.values)
    assert clean[[0, 3, 4]] == pytest.approx([3 / 8, 5 / 8, 4 / 8])
    assert np.array_equal(clean, under)
    assert table.metrics["wrong_adjectives_under_attack"] == pytest.approx(0.5)


def test_a_name_with_signs_is_said_in_its_words() -> None:
    with fixtures.context() as context:
        names = ("t-shirt/top", *"bcdefghij")
        made = fresh_captioner(replace(context, classes=names), "tiny-cnn", {}, 8, 12)
    model, test = made.module, fixtures.digits().test.select(np.arange(3))
    x, y = torch.from_numpy(test.unit()), torch.zeros(3, dtype=torch.int64)
    tones = torch.from_numpy(tones_of(test.unit()))
    model.greedy = lambda images: model.tokens[0, tones[: len(images)]]
    table = Captions(CaptionsParams(attack={"kind": "fgsm"})).run(made, make_batch(x, y), ThreatModel(norm="linf", eps=0.1), 0)
    assert "-" in made.captions[0][0]
    assert table.values[0][0] == 1
    assert table.metrics["wrong_names"] == 0


def test_a_classifier_says_nothing() -> None:
    test = fixtures.digits().test
    batch = make_batch(torch.from_numpy(test.unit()), torch.from_numpy(test.labels))
    with pytest.raises(TargetError, match="list caption models"):
        Captions(CaptionsParams()).run(fixtures.classifier(), batch, ThreatModel(norm="linf", eps=0.1), 0)
