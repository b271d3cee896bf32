"""m2mKD: modules make up the network, one that stands for itself has no loss, and each stage trains what it says."""

from __future__ import annotations

import copy

import pytest
import torch

from robustkd.contracts import UsageError
from robustkd.defenses.image.representations.m2mkd import M2MKD, Divided, M2MKDParams, M2MKDRecipe, hybrid
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.targets import ClassifierTarget

BRIEF = {"epochs": 1, "meta_epochs": 1, "finish_epochs": 1, "optimiser": "adam", "lr": 0.003, "batch_size": 120}


def vit(seed: int = 0, depth: int = 3, width: int = 16, patch: int = 4) -> ClassifierTarget:
    torch.manual_seed(seed)
    params = {"patch": patch, "width": width, "depth": depth, "heads": 2}
    made = ClassifierTarget.from_model("tiny-vit", params, input_shape=(1, 8, 8), num_classes=10)
    made.module.eval()
    return made


@pytest.mark.parametrize("count", [2, 3])
def test_the_modules_one_behind_the_other_are_the_network(count, minibatch):
    target = vit(depth=5)
    divided = Divided(target.module, count)
    assert torch.allclose(hybrid(divided, 1, lambda h: divided(1, h), minibatch.x), target(minibatch.x), atol=1e-6)
    held = [id(weight) for number in range(count) for part in divided.parts(number) for weight in part.parameters()]
    assert sorted(held) == sorted(id(weight) for weight in target.module.parameters())


@pytest.mark.parametrize("number", [0, 1])
def test_a_module_in_the_place_of_itself_has_no_loss_and_alone_gets_a_gradient(number, minibatch):
    meta, student = Divided(vit(1, 2).module.requires_grad_(False), 2), vit(2)
    teacher = vit(2)
    teacher.module.requires_grad_(False)
    same = {"into": torch.nn.Identity(), "out": torch.nn.Identity()}
    mine = Divided(student.module, 2)
    recipe = M2MKDRecipe(meta, Divided(teacher.module, 2), mine, number, M2MKDParams(teacher="t", modules=2))
    loss, measured = recipe.loss(with_auxiliary(student, **same), minibatch)
    assert abs(measured["loss_module"].item()) < 1e-6
    loss.backward()
    inside = {id(weight) for part in mine.parts(number) for weight in part.parameters()}
    moved = {id(weight) for weight in student.module.parameters() if weight.grad is not None}
    assert moved == inside
    # Of another teacher it is the divergence of the two hybrids.
    other = Divided(vit(5).module.requires_grad_(False), 2)
    _, measured = M2MKDRecipe(meta, other, mine, number, M2MKDParams(teacher="t", modules=2)).loss(
        with_auxiliary(student, **same), minibatch
    )
    p, q = (hybrid(meta, number, lambda h, of=of: of(number, h), minibatch.x).double().log_softmax(1) for of in (other, mine))
    assert measured["loss_module"].item() == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-4)


def test_each_stage_trains_one_module_and_the_meta_model_stays_as_it_is(context, monkeypatch):
    kind = M2MKD._stages
    seen: list[tuple[str, dict[str, torch.Tensor]]] = []

    def watched(self, given, student, teacher):
        for stage in kind(self, given, student, teacher):
            seen.append((stage.name, copy.deepcopy(student.module.state_dict())))
            yield stage
        seen.append(("end", copy.deepcopy(student.module.state_dict())))

    monkeypatch.setattr(M2MKD, "_stages", watched)
    student = {"patch": 4, "width": 8, "depth": 2, "heads": 2}
    M2MKD(M2MKDParams(teacher="t", student_params=student, **BRIEF)).fit(context(targets={"t": vit(3)}))
    assert [name for name, _ in seen] == ["meta", "module-1", "module-2", "finetune", "end"]

    def moved(first: int) -> set[str]:
        one, other = seen[first][1], seen[first + 1][1]
        return {name for name in one if not torch.equal(one[name], other[name])}

    assert moved(0) == set()
    assert {name.partition(".")[0] for name in moved(1)} == {"embed", "positions", "blocks"}
    assert all(name.startswith("blocks.0") for name in moved(1) if name.startswith("blocks"))
    assert {name.partition(".")[0] for name in moved(2)} == {"blocks", "norm", "linear"}
    assert all(name.startswith("blocks.1") for name in moved(2) if name.startswith("blocks"))
    assert len(moved(3)) == len(seen[0][1])


def test_killed_in_the_second_module_it_goes_on_there(context, survives_kills):
    def fit(folder: str):
        given = context(folder=folder, targets={"t": vit(3, depth=2)})
        return M2MKD(M2MKDParams(teacher="t", student_params={"patch": 4, "width": 8, "depth": 2, "heads": 2}, **BRIEF)).fit(
            given
        )

    assert survives_kills(fit, M2MKDRecipe, [4])  # three steps a module


def test_networks_that_do_not_fit_are_refused(context, linear):
    small = {"patch": 4, "width": 8, "depth": 1, "heads": 2}
    given = context(targets={"t": vit(3), "fine": vit(3, patch=2), "plain": linear(0)})
    with pytest.raises(UsageError, match="a network of 1 blocks cannot be divided into 2 modules"):
        M2MKD(M2MKDParams(teacher="t", student_params=small, **BRIEF)).fit(given)
    with pytest.raises(UsageError, match="4 patches, its teacher 16"):
        M2MKD(M2MKDParams(teacher="fine", student_params=small, **BRIEF)).fit(given)
    with pytest.raises(UsageError, match="this network has none"):
        M2MKD(M2MKDParams(teacher="plain", student_params=small, **BRIEF)).fit(given)
