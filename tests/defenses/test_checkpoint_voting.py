"""Checkpoint voting: with one checkpoint it is the answer of the epoch before, and checkpoints come when they are due."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd.defenses.image.distillation.self_distillation.checkpoint_voting import (
    CheckpointVoting,
    CheckpointVotingParams,
    CheckpointVotingRecipe,
)
from robustkd.defenses.image.distillation.self_distillation.ps_kd import PSKDParams, PSKDRecipe
from robustkd.targets import ClassifierTarget


def student(seed: int = 0) -> ClassifierTarget:
    torch.manual_seed(seed)
    return ClassifierTarget.from_model("tiny-cnn", {"width": 3}, input_shape=(1, 8, 8), num_classes=10)


def test_one_checkpoint_of_the_epoch_before_is_the_target_of_ps_kd_without_labels(minibatch):
    network = student()
    network.module.eval()
    before = network(minibatch.x).detach().softmax(1)
    recipe = CheckpointVotingRecipe(network, CheckpointVotingParams(model="tiny-cnn", checkpoints=1, every=1))
    recipe.start_epoch(0, 1.0)
    recipe.start_epoch(1, 1.0)
    with torch.no_grad():
        for weight in network.module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    _, measured = recipe.loss(network, minibatch)
    other = PSKDRecipe(minibatch.y, 10, PSKDParams(model="tiny-cnn", alpha=1.0, epochs=2))
    other.answers = before.clone()
    soft, _ = other.loss(network, minibatch)  # in the last epoch nothing is left of the labels
    entropy = -(before * before.log()).sum(1).mean()
    assert torch.allclose(measured["loss_vote"], soft - entropy, atol=1e-5)


def test_the_vote_is_the_mean_probability_of_the_past(minibatch, softmax):
    network, params = student(), CheckpointVotingParams(model="tiny-cnn", checkpoints=2, weight=0.5, temperature=2.0)
    recipe, said = CheckpointVotingRecipe(network, params), []
    for epoch in range(4):
        with torch.no_grad():
            network.module.linear.weight.add_(torch.randn_like(network.module.linear.weight))
        said.append(softmax(network(minibatch.x), 2.0))
        recipe.start_epoch(epoch, 1.0)
    # Before epochs 1, 2 and 3 one was taken; two are held.
    assert recipe.held == 2
    vote = (said[2] + said[3]) / 2
    with torch.no_grad():
        network.module.linear.weight.mul_(0.3)
    z = network(minibatch.x)
    soft = (vote * np.log(vote / softmax(z, 2.0))).sum(1).mean()
    hard = -np.log(softmax(z, 1.0)[np.arange(32), minibatch.y.numpy()]).mean()
    loss, _ = recipe.loss(network, minibatch)
    assert loss.item() == pytest.approx(hard + 0.5 * 4 * soft, rel=1e-5)


def test_an_epoch_that_is_taken_up_again_takes_no_second_checkpoint():
    recipe = CheckpointVotingRecipe(student(), CheckpointVotingParams(model="tiny-cnn", checkpoints=5, every=2))
    for epoch in (0, 1, 2, 2, 3, 4, 4):
        recipe.start_epoch(epoch, 1.0)
    assert (recipe.held, recipe.taken) == (2, 4)


def test_killed_in_any_epoch_it_ends_with_the_same_weights(context, survives_kills):
    params = CheckpointVotingParams(
        model="tiny-cnn", model_params={"width": 3}, epochs=4, batch_size=120, optimiser="adam", checkpoints=2
    )
    assert survives_kills(
        lambda folder: CheckpointVoting(params).fit(context(folder=folder)), CheckpointVotingRecipe, [2, 5, 1]
    )
