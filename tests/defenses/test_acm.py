"""ACM: learners that add up, gates that say how many, and a cost that is what a reader would count."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from robustkd.contracts import UsageError
from robustkd.defenses.image.adaptive.acm import (
    ACM,
    ACMParams,
    ACMRecipe,
    GatesRecipe,
    LearnersRecipe,
    choice_entropy,
    cost_shares,
    labels_of,
    sums,
    taught,
)
from robustkd.targets import ClassifierTarget
from robustkd.targets.sub_network import ComputationTarget, SubNetworkTarget

SMALL = {"patch": 4, "width": 8, "depth": 2, "heads": 2}
BRIEF = {"epochs": 1, "gate_epochs": 1, "finish_epochs": 1, "optimiser": "adam", "lr": 0.003, "batch_size": 120}


def made(model: str = "acm-vit", seed: int = 0, **params: object) -> ClassifierTarget:
    torch.manual_seed(seed)
    target = ClassifierTarget.from_model(model, SMALL | params, input_shape=(1, 8, 8), num_classes=10)
    target.module.eval()
    return target


def choosy(learners: int = 3) -> ClassifierTarget:
    """A network whose gates choose every number for some tokens."""
    target = made(learners=learners)
    with torch.no_grad():
        for block in target.module.blocks:
            block.adaptive.gate.weight.mul_(8)
    return target


def test_a_token_gets_its_first_learners_and_the_cost_is_that_of_the_layers_called(minibatch):
    target = choosy()
    network = target.module
    logits, choice, likely = network.gated(minibatch.x)
    assert torch.equal(logits, target(minibatch.x))
    assert choice.sum(3).eq(1).all()
    assert torch.allclose(likely.sum(3), torch.ones_like(likely.sum(3)))
    numbers = choice.argmax(3)
    assert set(numbers.flatten().tolist()) == {0, 1, 2, 3}
    # By hand, token by token, and counted on the way.
    cost = torch.zeros(32, dtype=torch.int64)
    tokens = network.embedded(minibatch.x)
    cost += network.embed(minibatch.x)[0].numel() * 16
    for block, number in zip(network.blocks, numbers, strict=True):
        tokens = tokens + block.attention(block.norm1(tokens))
        x = block.norm2(tokens)
        more = torch.zeros_like(x)
        for row in range(32):
            for place in range(4):
                cost[row] += 4 * 8 * 8 + 8 * 4  # attention, gate
                for learner in list(block.adaptive.learners)[: int(number[row, place])]:
                    more[row, place] += learner(x[row, place])
                    cost[row] += sum(layer.weight.numel() for layer in learner if isinstance(layer, nn.Linear))
        tokens = tokens + more
    cost += network.linear.weight.numel()
    assert torch.allclose(network.linear(network.norm(tokens).mean(1)), logits, atol=1e-5)
    assert torch.equal(network.spent(minibatch.x), cost)
    assert set(cost.tolist()) <= set(network.budgets)
    assert network.budgets[-1] - network.budgets[0] == 3 * 8 * network.learner_cost


def test_a_fixed_number_of_learners_is_the_network_whose_gates_say_so(minibatch):
    target = choosy()
    network = target.module
    assert network.names == ("learners-1", "learners-2", "learners-3")
    for number in (1, 2, 3):
        sure = copy.deepcopy(target)
        for block in sure.module.blocks:
            with torch.no_grad():
                block.adaptive.gate.weight.zero_()
                block.adaptive.gate.bias.copy_(torch.eye(4)[number])
        part = SubNetworkTarget(target, f"learners-{number}")
        assert torch.allclose(part(minibatch.x), sure(minibatch.x), atol=1e-6)
        gates = 2 * 4 * 8 * 4
        assert sure.module.spent(minibatch.x).unique().tolist() == [network.multiply_adds[number - 1] + gates]


def test_what_is_beyond_a_budget_is_what_spends_more_and_it_has_a_slope(minibatch):
    target = choosy()
    network, x = target.module, minibatch.x
    spent = network.spent(x)
    assert len(spent.unique()) > 5
    for budget in (1.0, *(float(cost + off) for cost in spent.unique().tolist() for off in (-1, 0, 1))):
        assert torch.equal(network.beyond(x, budget) > 0, spent > budget)
        assert torch.equal(ComputationTarget(target, budget)(x).argmax(1) == 1, spent > budget)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.beyond(x, float(spent.median())).sum(), x)
    assert (gradient != 0).flatten(1).any(1).all()


def test_the_learners_fit_what_is_left_and_each_gets_the_gradient_of_its_own_sum(minibatch):
    base, target = made("tiny-vit", 1), made(learners=3)
    loss, _ = LearnersRecipe(base).loss(target, minibatch)
    expected, own = 0.0, []
    for block, (x, wanted) in zip(target.module.blocks, taught(base.module, minibatch.x), strict=True):
        total = torch.zeros_like(wanted)
        for learner in block.adaptive.learners:
            made_of_it = learner(x)
            own.append((((total.detach() + made_of_it - wanted) ** 2).mean() / 6, list(learner.parameters())))
            total = total + made_of_it
            expected += ((total - wanted) ** 2).mean().item() / 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for term, weights in own:
        for weight, gradient in zip(weights, torch.autograd.grad(term, weights), strict=True):
            assert torch.allclose(weight.grad, gradient, atol=1e-7)


def test_a_perceptron_that_is_its_learners_leaves_no_error(minibatch):
    """Cut in N, the base's own perceptron is N learners whose whole sum has no error."""
    base, target = made("tiny-vit", 1), made(learners=4)
    with torch.no_grad():
        for block, old in zip(target.module.blocks, base.module.layers, strict=True):
            for number, learner in enumerate(block.adaptive.learners):
                rows = slice(8 * number, 8 * number + 8)
                learner[0].weight.copy_(old.linear1.weight[rows])
                learner[0].bias.copy_(old.linear1.bias[rows])
                learner[2].weight.copy_(old.linear2.weight[:, rows])
                learner[2].bias.copy_(old.linear2.bias / 4)
    kept = {name: weight for name, weight in base.module.state_dict().items() if ".linear" not in name}
    assert target.module.load_state_dict(kept, strict=False).unexpected_keys == []
    x, wanted = taught(base.module, minibatch.x)[1]
    assert torch.allclose(sums(target.module.blocks[1].adaptive.each(x))[-1], wanted, atol=1e-5)
    assert torch.allclose(SubNetworkTarget(target, "learners-4")(minibatch.x), base(minibatch.x), atol=1e-5)


def test_a_gate_learns_the_smallest_number_that_is_worth_its_cost(minibatch):
    errors = torch.tensor([[8.0, 4.0, 3.9, 1.0], [5.0, 4.9, 1.0, 0.9], [8.0, 4.0, 2.0, 1.0]]).T
    assert labels_of(errors, 1.1).tolist() == [1, 0, 3]
    base, target = made("tiny-vit", 1), made(learners=3)
    loss, measured = GatesRecipe(base, 1.05).loss(target, minibatch)
    terms = []
    for block, (x, wanted) in zip(target.module.blocks, taught(base.module, minibatch.x), strict=True):
        found = (sums(block.adaptive.each(x)) - wanted).norm(dim=3)
        log = block.adaptive.gate(x).log_softmax(2)
        terms.append(-log.gather(2, labels_of(found, 1.05).unsqueeze(2)).mean())
    assert torch.allclose(loss, torch.stack(terms).mean())
    assert 0 <= measured["labels"] <= 3
    loss.backward()
    touched = {name.split(".")[3] for name, weight in target.module.named_parameters() if weight.grad is not None}
    assert touched == {"gate"}


def test_costs_entropy_and_budget_by_hand(minibatch):
    numbers = torch.tensor([[[0, 0], [2, 1]]])  # one block, two images, two tokens; N = 2
    choice = torch.nn.functional.one_hot(numbers, 3).float()
    assert cost_shares(choice).tolist() == [0.0, 0.75]
    assert choice_entropy(choice).item() == pytest.approx((0 + np.log(2)) / 2 / np.log(3))
    target = made(learners=3)
    torch.manual_seed(5)
    _, drawn, _ = target.module.train().gated(minibatch.x)
    params = ACMParams(base="b", budget=0.25, budget_weight=2, entropy_weight=0.3, diversity_weight=0.4)
    torch.manual_seed(5)
    loss, measured = ACMRecipe(params).loss(target, minibatch)
    shares = cost_shares(drawn)
    torch.manual_seed(5)
    hard = torch.nn.functional.cross_entropy(target(minibatch.x), minibatch.y)
    different = (shares[:, None] - shares[None]).abs().mean()
    expected = hard + 2 * (shares.mean() - 0.25).abs() - 0.3 * choice_entropy(drawn) - 0.4 * different
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert measured["cost"].item() == pytest.approx(shares.mean().item())


def test_what_is_no_perceptron_is_the_base_and_the_gates_are_taught_before_all_learns_together(context, monkeypatch):
    base, seen = made("tiny-vit", 3), []
    kind = ACM._stages

    def watched(self, student, of):
        for stage in kind(self, student, of):
            seen.append((stage.name, copy.deepcopy(student.module.state_dict())))
            yield stage
        seen.append(("end", copy.deepcopy(student.module.state_dict())))

    monkeypatch.setattr(ACM, "_stages", watched)
    ACM(ACMParams(base="base", learners=2, **BRIEF)).fit(context(targets={"base": base}))
    assert [name for name, _ in seen] == ["learners", "gates", "together", "end"]
    first, old = seen[0][1], base.module.state_dict()
    kept = [name for name in old if ".linear" not in name]
    assert set(kept) <= set(first)
    assert all(torch.equal(first[name], old[name]) for name in kept)

    def moved(number: int) -> set[str]:
        one, other = seen[number][1], seen[number + 1][1]
        return {name for name in one if not torch.equal(one[name], other[name])}

    assert moved(0) == {name for name in first if ".learners." in name}
    assert moved(1) == {name for name in first if ".gate." in name}
    assert moved(2) > {"embed.weight", "linear.bias", "positions"}


def test_a_network_without_patches_is_refused(context, linear):
    with pytest.raises(UsageError, match="this network has none"):
        ACM(ACMParams(base="plain", **BRIEF)).fit(context(targets={"plain": linear(0)}))


def test_killed_while_the_gates_learn_it_goes_on_there(context, survives_kills):
    def fit(folder: str):
        return ACM(ACMParams(base="base", learners=2, **BRIEF)).fit(
            context(folder=folder, targets={"base": made("tiny-vit", 3)})
        )

    assert survives_kills(fit, GatesRecipe, [1])


@pytest.mark.slow
def test_the_budget_is_kept_and_more_learners_fit_better(context):
    base = made("tiny-vit", 3, width=16)
    settings = BRIEF | {"epochs": 15, "gate_epochs": 3, "finish_epochs": 25, "batch_size": 30}
    logs: list[dict[str, float]] = []
    target = ACM(ACMParams(base="base", budget=0.3, **settings)).fit(
        context(targets={"base": base}, log=lambda epoch, metrics: logs.append(dict(metrics)))
    )
    assert logs[-1]["cost"] == pytest.approx(0.3, abs=0.1)
    assert target.module.names[-1] == "learners-4"
