"""Trainings in tasks: what a class's row of the last layer is when its task begins, and whose accuracy an epoch is chosen by."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, ThreatModel
from robustkd.data import SplitParams, load_splits
from robustkd.defenses.image.streams.wa import WA, WAParams
from robustkd.targets.activations import last_linear

BRIEF = {"model": "tiny-cnn", "model_params": {"width": 4}, "tasks": 5, "epochs": 2, "memory": 20}
ADAM = {"optimiser": "adam", "lr": 0.01, "schedule": "constant", "batch_size": 30}


@pytest.fixture
def context(tmp_path):
    data = load_splits("digits", {}, SplitParams(train=300, test=60, validation=100))

    def make(log=lambda epoch, metrics: None) -> FitContext:
        return FitContext(
            data.train,
            data.validation,
            data.input_shape,
            data.num_classes,
            ThreatModel(eps=0.1),
            0,
            torch.device("cpu"),
            tmp_path,
            log=log,
        )

    return make


class Watched(WA):
    """Replay that notes the rows of a task's classes as the task begins."""

    began: ClassVar[list[torch.Tensor]] = []

    def recipe(self, task):
        layer = last_linear(task.network.module)
        self.began.append(torch.cat([layer.weight, layer.bias[:, None]], 1).detach()[task.new].clone())
        return super().recipe(task)


def test_weight_decay_has_not_taken_their_rows(context):
    """Nothing but weight decay moves the row of a class that cannot be answered; new classes began with rows of length 0."""
    Watched.began = []
    Watched(WAParams(**BRIEF, **ADAM, distil=False, align=False)).fit(context())
    lengths = [float(torch.linalg.vector_norm(rows, dim=1).mean()) for rows in Watched.began]
    assert min(lengths) > 0.7 * lengths[0]


@pytest.mark.parametrize("method", ["pcr", "hpcr"])
def test_the_accuracy_of_an_epoch_is_that_of_the_classifier_that_is_deployed(context, method):
    """The rows' lengths and the bias have no part in the loss: before they were taken off, the epoch was chosen by chance."""
    logged: list[dict[str, Any]] = []
    given = context(lambda epoch, metrics: logged.append(dict(metrics)))
    settings = {"lr": 0.1, "batch_size": 30, "selection": "last"}
    target = plugins.make("defenses", {"kind": method, **BRIEF, **settings}).fit(given)
    with torch.no_grad():
        answers = target(torch.from_numpy(given.validation.unit())).argmax(1).numpy()
    assert logged[-1]["validation_accuracy"] == pytest.approx(np.mean(answers == given.validation.labels))
