"""Receler: erasers that begin as nothing, vectors by torch's own Adam, masks by another computation, and a training that goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from robustkd.contracts import Request, UsageError
from robustkd.defenses.diffusion.one_step.drawing import in_one_step
from robustkd.defenses.diffusion.receler import (
    RecelerSettings,
    RecelerTarget,
    Vectors,
    attended,
    cross_attentions,
    outside,
    with_vectors,
)
from robustkd.defenses.training.steps import train_steps
from robustkd.targets import load_target, save_target
from support.drawing_world import asked, base, fitted

QUICK: dict[str, Any] = {
    "kind": "receler",
    "base": "base",
    "steps": 4,
    "batch_size": 2,
    "rank": 4,
    "tokens": 2,
    "attack_steps": 2,
}


@pytest.fixture(scope="module")
def erased() -> RecelerTarget:
    made: RecelerTarget = fitted({**QUICK, "lr": 1e-2}, base=base())
    return made


def test_an_eraser_begins_as_nothing() -> None:
    fresh = RecelerTarget(base(), RecelerSettings(rank=3))
    told = [Request("a photo of 8", seed=1)]
    assert torch.equal(fresh.respond(told)[0], base().respond(told)[0])
    assert len(fresh.erasers) == len(cross_attentions(base())) > 1
    for eraser in fresh.erasers:
        torch.nn.init.ones_(eraser[2].bias)
    assert not torch.allclose(fresh.respond(told)[0], base().respond(told)[0])
    seen: list[torch.Tensor] = []
    with fresh.added(seen), torch.no_grad():
        fresh.model.unet_output(torch.randn(1, *base().latent_shape), torch.tensor([3]), asked(base(), "8"))
    assert len(seen) == len(fresh.erasers)
    assert all(torch.equal(change, torch.ones_like(change)) for change in seen)


def test_nothing_but_the_erasers_is_trained(erased: RecelerTarget) -> None:
    before = base().module.state_dict()
    after = erased.module.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"erasers"}
    assert any(erased.erasers[0][2].weight.flatten() != 0)
    told = [Request("8", seed=1)]
    assert not torch.equal(erased.respond(told)[0], base().respond(told)[0])


def test_it_comes_back_from_its_file_and_draws_in_one_step(erased: RecelerTarget, tmp_path: Path) -> None:
    save_target(erased, tmp_path)
    again, told = load_target(tmp_path), [Request("8", seed=1)]
    assert isinstance(again, RecelerTarget)
    assert torch.equal(again.respond(told)[0], erased.respond(told)[0])
    assert torch.equal(copy.deepcopy(erased).respond(told)[0], erased.respond(told)[0])
    one = in_one_step(erased)
    assert isinstance(one, RecelerTarget)
    assert not torch.equal(one.respond(told)[0], in_one_step(base()).respond(told)[0])


def test_the_vectors_are_moved_by_adam() -> None:
    start = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = Vectors(("a", "b"), start.clone(), 0.1), torch.nn.Parameter(start[1].clone())
    adam = torch.optim.Adam([theirs], lr=0.1, weight_decay=0.1)
    for number in range(4):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
        ours.step(1, gradient)
        theirs.grad = gradient
        adam.step()
        if number == 1:
            state = ours.state_dict()
            ours = Vectors(("a", "b"), torch.zeros(2, 3, 4), 0.1)
            ours.load_state_dict(state)
    torch.testing.assert_close(ours.values[1], theirs.detach(), atol=1e-6, rtol=1e-5)
    assert torch.equal(ours.values[0], start[0])


def test_vectors_stand_behind_the_words() -> None:
    ids = base().tokenize(["8", "a photo of 8"])
    told = asked(base(), "8", "a photo of 8")
    found = with_vectors(base(), told, ids, torch.full((2, told.tokens.shape[2]), 7.0)).tokens
    changed = (found != told.tokens).any(2)
    assert [row.nonzero().flatten().tolist() for row in changed] == [[2, 3], [5, 6]]
    assert (found[changed] == 7).all()


def test_where_the_model_looks_is_its_softmax_over_the_words() -> None:
    """By hand for one layer: softmax of queries and keys, the mean over words and heads, scaled and cut."""
    z, t = torch.randn((2, *base().latent_shape), generator=torch.Generator().manual_seed(0)), torch.tensor([20, 20])
    ids, told = base().tokenize(["8", "a photo of 8"]), asked(base(), "8", "a photo of 8")
    layer, seen = cross_attentions(base()), {}

    def keep(module: Any, args: tuple[Any, ...], told: Any, output: Any) -> None:
        seen[module] = args[0]

    hooks = [one.register_forward_hook(keep, with_kwargs=True) for one in layer]
    with torch.no_grad():
        base().unet_output(z, t, told)
        maps = []
        for one in layer:
            hooks.pop(0).remove()
            heads = one.heads
            q, k = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (one.to_q(seen[one]), one.to_k(told.tokens)))
            scores = (q @ k.transpose(2, 3) * one.scale).softmax(-1).mean(1)
            maps.append(torch.stack([scores[0, :, 1:2].mean(1), scores[1, :, 1:5].mean(1)]))
    assert len({found.shape[1] for found in maps}) == 1  # of this model, all layers look at as many places
    mean = torch.stack(maps).mean(0)
    scaled = (mean - mean.amin(1, keepdim=True)) / (mean.amax(1, keepdim=True) - mean.amin(1, keepdim=True))
    found = attended(base(), z, t, told, ids, 0.4)
    assert len(found) == len(layer)
    assert all(torch.equal(mask, (scaled >= 0.4).float()) for mask in found)


def test_outside_counts_what_is_added_where_the_mask_is_nought() -> None:
    added = [torch.tensor([[[1.0, 1.0], [2.0, 2.0]]]), torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])]
    masks = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    assert float(outside(added, masks)) == pytest.approx((4.0 + (5.0 + 0.0) / 2) / 2)
    assert float(outside(added[:1], [torch.ones(1, 2)])) == 0


def test_a_training_that_is_interrupted_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {**QUICK, "steps": 6, "lr": 1e-2}
    whole = fitted(spec, base=base())
    monkeypatch.setattr("robustkd.defenses.diffusion.receler.train_steps", partial(train_steps, checkpoint_seconds=0.0))

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(spec, tmp_path, stop, base=base())
    again = fitted(spec, tmp_path, base=base())
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name


def test_without_a_search_there_are_no_vectors(erased: RecelerTarget) -> None:
    control = fitted({**QUICK, "lr": 1e-2, "attack_steps": 0}, base=base())
    told = [Request("8", seed=1)]
    assert not torch.equal(control.respond(told)[0], erased.respond(told)[0])
    with pytest.raises(UsageError, match="leaves no room for 40 vectors"):
        fitted({**QUICK, "tokens": 40}, base=base())
