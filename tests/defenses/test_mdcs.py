"""MDCS: the losses by hand, what priors of balanced data change, and who agrees with whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robustkd.defenses.image.ensembles.mdcs import MDCS, MDCSParams, MDCSRecipe, agreeing, harder
from robustkd.defenses.training.members import PlainMembersRecipe
from robustkd.targets import EnsembleTarget

COUNTS = np.array([90, 70, 50, 40, 30, 20, 10, 5, 2, 0])


def params(**changes: object) -> MDCSParams:
    return MDCSParams(model="tiny-cnn", warmup=0, **changes)


def test_the_loss_is_the_formula(linear, softmax, minibatch):
    target = EnsembleTarget([linear(seed, 3) for seed in range(3)])
    loss, measured = MDCSRecipe(COUNTS, params()).loss(target, minibatch)
    views, y = (minibatch.x, harder(minibatch)), minibatch.y.numpy()
    log, hard, agreement = np.log(np.maximum(COUNTS, 1)), 0.0, 0.0
    for member, prior in zip(target.members, (-0.5, 1.0, 2.5), strict=True):
        easy, other = (softmax(member(x).detach() + prior * torch.from_numpy(log)) for x in views)
        hard += -(np.log(easy[np.arange(32), y]).mean() + np.log(other[np.arange(32), y]).mean()) / 2
        right = easy.argmax(1) == y
        if right.any():
            agreement += (easy * np.log(easy / other)).sum(1)[right].mean()
    assert agreement > 0.01
    assert measured["loss_agreement"].item() == pytest.approx(agreement, rel=1e-4)
    assert loss.item() == pytest.approx(hard + 0.6 * agreement, rel=1e-4)


def test_without_priors_and_agreement_both_views_are_plain_members(linear, minibatch):
    target = EnsembleTarget([linear(seed, 3) for seed in range(3)])
    loss, _ = MDCSRecipe(COUNTS, params(priors=(0, 0, 0), weight=0)).loss(target, minibatch)
    plain = [PlainMembersRecipe().loss(target, replace(minibatch, x=x))[0] for x in (minibatch.x, harder(minibatch))]
    assert torch.allclose(loss, sum(plain) / 2)


def test_the_priors_of_balanced_classes_change_nothing(linear, minibatch):
    target = EnsembleTarget([linear(seed, 3) for seed in range(3)])
    found = [
        MDCSRecipe(np.full(10, 40), params(priors=priors)).loss(target, minibatch)[0] for priors in ((0, 0, 0), (-2, 1, 5))
    ]
    assert torch.allclose(*found, rtol=1e-5)


def test_an_expert_agrees_where_it_is_right_and_its_easy_view_gets_no_gradient():
    easy = torch.tensor([[2.0, 0.0], [2.0, 0.0]], requires_grad=True)
    hard = torch.tensor([[0.0, 0.0], [0.0, 3.0]], requires_grad=True)
    loss = agreeing(easy, hard, torch.tensor([0, 1]))  # right on the first sample alone
    p = torch.tensor([2.0, 0.0], dtype=torch.float64).softmax(0)
    assert loss.item() == pytest.approx(float((p * (p / 0.5).log()).sum()), rel=1e-5)
    loss.backward()
    assert easy.grad is None
    assert (hard.grad[1] == 0).all()
    assert agreeing(easy, hard, torch.tensor([1, 1])).item() == 0


def test_the_agreement_rises_over_its_epochs(linear, minibatch):
    target = EnsembleTarget([linear(seed, 3) for seed in range(3)])
    recipe = MDCSRecipe(COUNTS, MDCSParams(model="tiny-cnn", warmup=4))
    first, second, last = (recipe.loss(target, replace(minibatch, epoch=epoch)) for epoch in (0, 2, 8))
    hard = [
        (loss - share * 0.6 * measured["loss_agreement"]).item()
        for (loss, measured), share in ((first, 0), (second, 0.5), (last, 1))
    ]
    again = MDCSRecipe(COUNTS, params(weight=0))
    for epoch, found in zip((0, 2, 8), hard, strict=True):
        assert found == pytest.approx(again.loss(target, replace(minibatch, epoch=epoch))[0].item(), rel=1e-4)


def test_the_harder_view_lacks_a_square_and_is_drawn_for_each_sample(minibatch):
    white = replace(minibatch, x=torch.ones(32, 1, 16, 16))
    seen = harder(white)
    assert (seen == 0).flatten(1).sum(1).min() >= 16  # a quarter of the square at least, in a corner
    assert len({tuple(row.tolist()) for row in seen.flatten(1)}) > 20
    assert torch.equal(seen, harder(white))
    assert not torch.equal(seen, harder(replace(white, epoch=7)))


def test_priors_that_do_not_fit_the_members_are_refused():
    with pytest.raises(ValidationError, match="2 priors for 3 experts"):
        MDCSParams(model="tiny-cnn", priors=(0, 1))


def test_the_expert_for_rare_classes_names_them_more_often(context, digits):
    """On a long tail, lambda 2.5 moves answers to the rare classes, and -0.5 to the frequent ones."""
    keep = np.flatnonzero((digits.train.labels < 5) | (np.arange(len(digits.train)) % 9 == 0))
    given = context(train=digits.train.select(keep))
    target = MDCS(params(epochs=4, model_params={"width": 4}, optimiser="adam", lr=0.01, batch_size=30, weight=0)).fit(given)
    x = torch.from_numpy(given.validation.unit())
    rare = [(member(x).argmax(1) >= 5).float().mean().item() for member in target.members]
    assert rare[0] < rare[1] < rare[2]
