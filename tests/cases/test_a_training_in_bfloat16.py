"""Every training that may take its passes in bfloat16, which ``precision: auto`` does on CUDA, where lq-vae's loss was NaN at once."""

from __future__ import annotations

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import target_references
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.suite import subject
from robustkd.targets.training import bfloat16

ELSEWHERE = {
    "caption-competition",  # its teacher is no classifier: tests/defenses/test_caption_models.py
    "caption-distil",  # likewise
    "torchdistill",  # its library need not be installed: tests/defenses/test_torchdistill.py
}


def trained_in_either_precision() -> list[str]:
    found = []
    for name in plugins.names("defenses"):
        plugin = plugins.load("defenses", name)
        if plugins.modalities(plugin)[0] == "images" and "precision" in plugin.Params.model_fields and name not in ELSEWHERE:
            found.append(name)
    return found


OF_PATCHES = {"acm", "dmae", "further-pretraining", "hybrid-distill", "m2mkd"}
"""Students of networks that are made of patches."""


@pytest.mark.parametrize("name", trained_in_either_precision())
@pytest.mark.slow
def test_every_image_training_ends_in_bfloat16_with_weights_in_float32(name: str) -> None:
    defense = subject("defenses", name, {"precision": "bf16"}).make(fixtures.QUICK_TRAINING)
    teachers = "tiny-vit" if name in OF_PATCHES else "tiny-cnn"
    others = fixtures.classifiers(target_references(defense.params), teachers)
    with fixtures.context(targets=others) as context:
        target = defense.fit(context)
    target.module.eval()
    with torch.no_grad():
        logits = target(torch.from_numpy(fixtures.digits().test.unit()))
    assert {weight.dtype for weight in target.module.parameters()} == {torch.float32}
    assert logits.isfinite().all()


def test_weights_learn_after_a_pass_without_gradients() -> None:
    """With torch 2.8 autocast took the copies of the weights that the first pass had made, and the loss was a constant to them."""
    network, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)), torch.rand(8, 4)
    with bfloat16(x.device, enabled=True):
        with torch.no_grad():
            network(x)
        loss = network(x)[:, 0].square().sum()
    loss.backward()
    assert all(weight.grad is not None for weight in network.parameters())
