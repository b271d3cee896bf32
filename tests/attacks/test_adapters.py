"""Other packages' attacks behind our contract: every one runs, is counted, verified, and leaves the model alone."""

from __future__ import annotations

import importlib
import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkd import plugins
from robustkd.attacks.adapters import foolbox as foolbox_adapter
from robustkd.attacks.adapters import torchattacks as torchattacks_adapter
from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.contracts import AttackError, Batch, PluginError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.judging import judge
from robustkd.targets import ClassifierTarget

EPS = {"linf": 0.05, "l2": 1.0, "l1": 10.0, "l0": 2}
# Every attack in its smallest form: what is tested is the way in and out, not its strength.
SMALL = {
    "steps": 5,
    "max_iterations": 20,
    "binary_search_steps": 2,
    "n_queries": 30,
    "popsize": 4,
    "population": 4,
    "nb_sample": 4,
    "restarts": 3,
    "directions": 10,
    "repeats": 3,
    "initial_gradient_eval_steps": 10,
    "max_gradient_eval_steps": 20,
    "version": "rand",  # of AutoAttack, without its 5,000 queries
}
COMPILED = "BrendelBethge"  # numba takes a minute to compile them
families = pytest.mark.parametrize("family", ["torchattacks", "foolbox"])


def family_of(name: str):
    adapter = {"torchattacks": torchattacks_adapter, "foolbox": foolbox_adapter}[name]
    pytest.importorskip(name, reason=f"{name} is not installed: robustkd doctor --fix")
    return adapter.FAMILY


@pytest.fixture
def target() -> ClassifierTarget:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(100, 5)
    )
    return ClassifierTarget(network, num_classes=5, input_shape=(3, 10, 10))


@pytest.fixture
def batch(target: ClassifierTarget) -> Batch:
    images = torch.rand(6, 3, 10, 10)
    with torch.no_grad():
        labels = target.module.eval()(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5  # one that is wrong from the start
    return Batch(images, labels, torch.arange(6))


def small(plugin: type[PeerAttack], **more: object) -> PeerAttack:
    chosen = {key: value for key, value in SMALL.items() if key in plugin.Params.model_fields}
    return plugin(plugin.Params(**chosen, **more))


@families
def test_every_member_answers_under_each_of_its_threat_models(family: str, target: ClassifierTarget, batch: Batch) -> None:
    found = family_of(family)
    for name in found.members():
        if COMPILED in name:
            continue
        attack = small(found.member(name))
        for goal in attack.goals:
            for norm in attack.norms:
                threat = ThreatModel(norm=norm, eps=EPS[norm], goal=goal)
                goals = (batch.labels + 1) % 5 if goal == "targeted" else None
                asked = Batch(batch.inputs, batch.labels, batch.index, goals=goals)
                results = [attack.run(target, asked, threat, SampleRng(3, asked.index)) for _ in range(2)]
                assert torch.equal(results[0].adversarial, results[1].adversarial), f"{name} is not repeatable"
                outcome = judge(target, attack, asked, threat, results[0])  # raises when a bound is broken
                reached = outcome.after != outcome.label if goals is None else outcome.after == goals.numpy()
                assert (results[0].success.numpy() == reached)[outcome.correct].all(), name
                assert (results[0].forwards > 0).all(), name
                assert attack.gradients == bool(results[0].backwards.any()), f"{name}: gradients is {attack.gradients}"


@families
def test_every_export_is_a_member_or_has_a_reason(family: str) -> None:
    found, skipped = family_of(family), {"torchattacks": torchattacks_adapter, "foolbox": foolbox_adapter}[family].SKIPPED
    peer = importlib.import_module({"torchattacks": "torchattacks", "foolbox": "foolbox.attacks"}[family])
    exported = {name for name, value in vars(peer).items() if isinstance(value, type) and name != "Attack"}
    assert exported == set(found.members()) | set(skipped)
    for name in (*skipped, "NoSuchAttack"):
        with pytest.raises(KeyError):
            found.member(name)


@families
def test_parameters_are_the_peers_own_and_the_budget_is_not_among_them(family: str) -> None:
    found = family_of(family)
    for name in found.members():
        if COMPILED not in name:
            assert not {"eps", "epsilon", "model", "seed", "norm"} & set(found.member(name).Params.model_fields)
    pgd = plugins.load("attacks", f"{family}:{'PGD' if family == 'torchattacks' else 'LinfPGD'}")
    defaults = pgd.Params(steps=7).model_dump()
    assert defaults["steps"] == 7
    assert defaults["random_start"] is True
    with pytest.raises(ValueError, match="step_count"):
        pgd.Params(step_count=3)
    assert "step" in pgd.Params.model_fields["steps"].description


def test_torchattacks_whole_defaults_take_real_numbers() -> None:
    cw = family_of("torchattacks").member("CW")
    assert cw.Params(c=0.5).c == 0.5
    with pytest.raises(ValueError, match="steps"):
        cw.Params(steps=2.5)


def test_torchattacks_gives_what_torchattacks_gives(target: ClassifierTarget, batch: Batch) -> None:
    member = family_of("torchattacks").member("PGD")
    import torchattacks

    expected = torchattacks.PGD(target.module, eps=0.03, alpha=0.01, steps=6, random_start=False)(batch.inputs, batch.labels)
    attack = member(member.Params(alpha=0.01, steps=6, random_start=False))
    result = attack.run(target, batch, ThreatModel(eps=0.03), SampleRng(0, batch.index))
    assert torch.allclose(result.adversarial, expected, atol=1e-6)
    assert result.forwards.tolist() == [7] * 6  # six steps and the verification
    assert result.backwards.tolist() == [6] * 6


def test_foolbox_gives_what_foolbox_gives(target: ClassifierTarget, batch: Batch) -> None:
    import foolbox

    viewed = foolbox.PyTorchModel(target.module.eval(), bounds=(0, 1), device="cpu")
    peer = foolbox.attacks.LinfPGD(steps=6, random_start=False)
    _, expected, broken = peer(viewed, batch.inputs, batch.labels, epsilons=0.03)
    member = plugins.load("attacks", "foolbox:LinfPGD")
    attack = member(member.Params(steps=6, random_start=False))
    result = attack.run(target, batch, ThreatModel(eps=0.03), SampleRng(0, batch.index))
    assert torch.allclose(result.adversarial, expected, atol=1e-6)
    assert torch.equal(result.success, broken)
    assert result.forwards.tolist() == [7] * 6
    assert result.backwards.tolist() == [6] * 6


@pytest.mark.parametrize("name", ["torchattacks:PGD", "torchattacks:Pixle", "foolbox:LinfPGD", "foolbox:HopSkipJumpAttack"])
def test_the_model_and_the_random_states_are_left_as_found(name: str, target: ClassifierTarget, batch: Batch) -> None:
    family, _, member = name.partition(":")
    attack = small(family_of(family).member(member))
    network = target.module
    network.train()
    network[1].eval()  # a frozen batch norm in a network that trains
    for place, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(place % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if place % 2 == 0 else None
    before = {key: value.clone() for key, value in network.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    attack.run(target, batch, ThreatModel(norm=attack.norms[0], eps=0.1), SampleRng(0, batch.index))
    assert [module.training for module in network] == [True, False, True, True, True, True]
    for place, parameter in enumerate(network.parameters()):
        assert parameter.requires_grad is (place % 2 == 0)
        assert parameter.grad is None or torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_random_attacks_depend_on_the_seed(target: ClassifierTarget, batch: Batch) -> None:
    attack = small(plugins.load("attacks", "foolbox:LinfPGD"))
    threat = ThreatModel(eps=0.001)
    first, second = (attack.run(target, batch, threat, SampleRng(seed, batch.index)).adversarial for seed in (0, 1))
    assert not torch.equal(first, second)


def test_attacks_that_go_sample_by_sample_do_not_depend_on_the_batch(target: ClassifierTarget, batch: Batch) -> None:
    attack = small(family_of("torchattacks").member("Pixle"))
    threat = ThreatModel(norm="l0", eps=20)
    whole = attack.run(target, batch, threat, SampleRng(0, batch.index))
    rows = torch.tensor([4, 1])
    part = attack.run(target, batch.select(rows), threat, SampleRng(0, batch.index[rows]))
    assert torch.equal(part.adversarial, whole.adversarial[rows])
    assert torch.equal(part.forwards, whole.forwards[rows])


def dark_is_one() -> tuple[ClassifierTarget, Batch]:
    """A network to which a dark image is of class 1, and bright images that are far from dark."""

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            light = x.flatten(1).mean(1) - 0.3
            return 50 * torch.stack([light, -light], 1)

    images = 0.8 + 0.1 * torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(3, dtype=torch.int64)
    return ClassifierTarget(Bright(), num_classes=2, input_shape=(1, 4, 4)), Batch(images, labels, torch.arange(3))


def test_a_failed_cw_of_foolbox_is_the_clean_image_and_no_success() -> None:
    import foolbox

    target, batch = dark_is_one()
    settings = {"steps": 2, "binary_search_steps": 1, "stepsize": 1e-4}
    viewed = foolbox.PyTorchModel(target.module.eval(), bounds=(0, 1), device="cpu")
    raw, _, broken = foolbox.attacks.L2CarliniWagnerAttack(**settings)(viewed, batch.inputs, batch.labels, epsilons=None)
    assert (raw == 0).all() and broken.all()  # noqa: PT018  (the trap: failures that look like successes)
    member = plugins.load("attacks", "foolbox:L2CarliniWagnerAttack")
    result = member(member.Params(**settings)).run(target, batch, ThreatModel(norm="l2", eps=1), SampleRng(0, batch.index))
    assert torch.equal(result.adversarial, batch.inputs)
    assert not result.success.any()


class ConstantClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)


@pytest.mark.parametrize("name", ["HopSkipJumpAttack", "BoundaryAttack", "PointwiseAttack"])
def test_a_walk_without_a_start_is_a_failure_and_no_error(name: str) -> None:
    target = ClassifierTarget(ConstantClass(), num_classes=2, input_shape=(1, 4, 4))
    batch = Batch(torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    attack = small(plugins.load("attacks", f"foolbox:{name}"))
    result = attack.run(target, batch, ThreatModel(norm="l2", eps=1), SampleRng(0, batch.index))
    assert torch.equal(result.adversarial, batch.inputs)
    assert not result.success.any()


class Peer(PeerAttack):
    """A peer that answers whatever it is told to."""

    name = "peer"
    norms = ("linf", "l2", "l1", "l0")
    answer = staticmethod(lambda model, batch: batch.inputs)

    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        return self.answer(model, batch)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_an_answer_outside_the_budget_is_put_back(norm: str, target: ClassifierTarget, batch: Batch) -> None:
    attack, threat = Peer(), ThreatModel(norm=norm, eps=EPS[norm])
    attack.answer = lambda model, batch: batch.inputs + 0.5
    result = attack.run(target, batch, threat, SampleRng(0, batch.index))
    judge(target, attack, batch, threat, result)
    assert torch.equal(result.adversarial, batch.inputs) == (norm == "l0")


def test_an_answer_of_nan_is_the_clean_image(target: ClassifierTarget, batch: Batch) -> None:
    attack = Peer()
    attack.answer = lambda model, batch: batch.inputs * torch.nan
    result = attack.run(target, batch, ThreatModel(), SampleRng(0, batch.index))
    assert torch.equal(result.adversarial, batch.inputs)


def test_passes_are_counted_to_the_samples_that_they_are_about(target: ClassifierTarget, batch: Batch) -> None:
    model = CountedModel(target, batch)
    x = batch.inputs.clone().requires_grad_()
    logits = model(x)
    logits.sum().backward(retain_graph=True)
    logits[0].sum().backward()  # the second class of a Jacobian: one more backward pass
    with torch.no_grad():
        model(torch.cat([batch.inputs, batch.inputs]))  # two restarts at once
    assert model.forwards.tolist() == [3] * 6
    assert model.backwards.tolist() == [2] * 6
    with model.only(torch.tensor([1, 4])):
        model(x[[1, 4]]).sum().backward()
    assert model.forwards.tolist() == [3, 4, 3, 3, 4, 3]
    assert model.backwards.tolist() == [2, 3, 2, 2, 3, 2]
    model(batch.inputs[:4])  # nobody says which ones: shared out, the total stays exact
    assert model.forwards.sum() == 24
    assert model.forwards.max() - model.forwards.min() <= 2


def test_a_peer_cannot_reach_the_network(target: ClassifierTarget, batch: Batch) -> None:
    model = CountedModel(target, batch)
    model.train()
    model.zero_grad()
    model.requires_grad_(True)
    assert not target.module.training
    assert sum(parameter.numel() for parameter in model.parameters()) == 0


def test_the_peers_errors_are_ours() -> None:
    target = ClassifierTarget(nn.Flatten(), num_classes=16, input_shape=(1, 4, 4))
    batch = Batch(torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    attack = small(family_of("torchattacks").member("TIFGSM"))  # written for three channels
    with pytest.raises(AttackError, match="torchattacks:TIFGSM cannot attack this target: RuntimeError"):
        attack.run(target, batch, ThreatModel(), SampleRng(0, batch.index))
    target.bounds = (-1.0, 1.0)
    with pytest.raises(AttackError, match="pixels in"):
        attack.run(target, batch, ThreatModel(), SampleRng(0, batch.index))


def test_without_torchattacks_only_its_own_attacks_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(PluginError, match="torchattacks cannot be imported") as caught:
        plugins.load("attacks", "torchattacks:PGD")
    assert caught.value.fix == "robustkd doctor --fix"
    assert plugins.load("attacks", "foolbox:LinfPGD")


def test_attacks_that_need_numba_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    foolbox_adapter._plugin.cache_clear()
    with pytest.raises(PluginError, match="needs numba"):
        plugins.load("attacks", "foolbox:L2BrendelBethgeAttack")
