"""SSLD's control, without the images that have no label: it made a fifth of the steps, so that longer training looked like its idea."""

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, ThreatModel
from robustkd.data import SplitParams, load_splits
from robustkd.defenses.image.representations.ssld import SSLDRecipe

NETWORK = {"model": "tiny-cnn", "model_params": {"width": 4}, "epochs": 1}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    data = load_splits("digits", {}, SplitParams(train=250, test=50, validation=50))
    parts = data.train, data.validation, data.input_shape, data.num_classes
    asked, loss = [], SSLDRecipe.loss
    monkeypatch.setattr(SSLDRecipe, "loss", lambda recipe, target, batch: asked.append(batch) or loss(recipe, target, batch))

    def of(unlabelled):
        asked.clear()
        context = FitContext(*parts, ThreatModel(eps=0.1), 0, torch.device("cpu"), tmp_path / str(unlabelled))
        teacher = plugins.make("defenses", {"kind": "standard", **NETWORK}).fit(context)
        spec = {"kind": "ssld", "teacher": "t", "student": "tiny-cnn", "student_params": {"width": 4}, "labelled": 0.2}
        spec |= {"epochs": 2, "finish_epochs": 1, "batch_size": 32, "unlabelled": unlabelled}
        context = FitContext(
            *parts, ThreatModel(eps=0.1), 0, torch.device("cpu"), tmp_path / f"s{unlabelled}", targets={"t": teacher}
        )
        plugins.make("defenses", spec).fit(context)
        return list(asked)

    return of


def test_it_makes_as_many_steps_on_the_images_with_labels_alone(steps):
    with_others, alone = steps(True), steps(False)
    assert [len(batch.x) for batch in alone] == [len(batch.x) for batch in with_others]
    different = {image.numpy().tobytes() for batch in alone for image in batch.x}
    assert len(different) <= 50 < len({image.numpy().tobytes() for batch in with_others for image in batch.x})
