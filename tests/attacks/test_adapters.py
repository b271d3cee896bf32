"""Other packages' attacks behind our contract: every one runs, is counted, verified, and leaves the model alone."""

from __future__ import annotations

import importlib
import random
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustkd import plugins
from robustkd.attacks.adapters import foolbox as foolbox_adapter
from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.attacks.adapters.family import PeerFamily
from robustkd.cli import cli
from robustkd.contracts import AttackError, Batch, PluginError, TargetError, ThreatModel
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
    # adversarial-library and ART
    "num_steps": 10,
    "n_iter": 5,
    "iter": 5,
    "max_iter": 2,
    "max_eval": 60,
    "init_eval": 10,
    "init_size": 20,
    "query_limit": 100,
    "num_trial": 5,
    "nb_random_init": 1,
    "const_factor": 100.0,
    "sample_size": 5,
    "nb_parallel": 8,
    "es": 1,
}
SLOW = (
    "BrendelBethge",
    "art:AutoAttack",
    "art:VirtualAdv",
    "str_attack",
)  # numba takes a minute to compile; others have no small form
FAMILIES = ["torchattacks", "foolbox", "adv-lib", "art"]
MODULES = {"foolbox": "foolbox.attacks", "adv-lib": "adv_lib.attacks", "art": "art.attacks.evasion"}
families = pytest.mark.parametrize("family", FAMILIES)


def family_of(name: str) -> PeerFamily:
    found = plugins.family("attacks", name)
    assert isinstance(found, PeerFamily)
    try:
        found.members()
    except PluginError as error:
        pytest.skip(str(error))
    return found


def members_of(family: str) -> list[type[PeerAttack]]:
    """The members that can be had here: some need a further package."""
    made = []
    for name in family_of(family).members():
        if not any(slow in f"{family}:{name}" for slow in SLOW):
            try:
                made.append(family_of(family).member(name))
            except PluginError as error:
                if " needs " not in error.message:
                    raise
    return made


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
    if plugin.name == "adv-lib:str_attack":  # it fails with two steps of its search
        del chosen["binary_search_steps"]
    return plugin(plugin.Params(**chosen, **more))


@families
@pytest.mark.slow
def test_every_member_answers_under_each_of_its_threat_models(family: str, target: ClassifierTarget, batch: Batch) -> None:
    for plugin in members_of(family):
        attack, name = small(plugin), plugin.name
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
@pytest.mark.slow
def test_a_batch_that_is_not_contiguous_is_taken(family: str, target: ClassifierTarget, batch: Batch) -> None:
    last = batch.inputs.permute(0, 2, 3, 1).contiguous().numpy()
    asked = Batch(torch.tensor(last.transpose(0, 3, 1, 2)), batch.labels, batch.index)
    assert not asked.inputs.is_contiguous()
    for plugin in members_of(family):
        attack = small(plugin)
        if "untargeted" in attack.goals:
            threats = [ThreatModel(norm=norm, eps=EPS[norm]) for norm in attack.norms[:2]]
            results = [attack.run(target, asked, threat, SampleRng(3, asked.index)) for threat in threats]
            same = [attack.run(target, batch, threat, SampleRng(3, asked.index)) for threat in threats]
            assert all(torch.equal(a.adversarial, b.adversarial) for a, b in zip(results, same, strict=True)), plugin.name


@families
def test_features_in_ranges_of_their_own_are_refused_before_anything_runs(family: str, target: ClassifierTarget) -> None:
    target.bounds = torch.zeros(3, 1, 1), torch.tensor([1.0, 0.5, 0.2]).reshape(3, 1, 1)
    for plugin in members_of(family):
        attack = small(plugin)
        assert "one range for all features" in (attack.unfit(target.input_shape, one_range=False) or "")
        with pytest.raises(TargetError, match="one range for all features"):
            attack.require(target)


@families
def test_every_export_is_a_member_or_has_a_reason(family: str) -> None:
    found = family_of(family)
    peer = importlib.import_module(MODULES.get(family, family))
    kind = types.FunctionType if family == "adv-lib" else type
    exported = {name for name, value in vars(peer).items() if isinstance(value, kind) and name != "Attack"}
    # What is for segmentation is in a module of its own; ART exports one attack only where numba is.
    assert (
        exported | {"alma_prox", "asma", "dag", "BrendelBethgeAttack"} >= set(found.members()) | set(found.unusable) >= exported
    )
    for name, reason in found.unusable.items():
        with pytest.raises(PluginError, match=f"{family}:{name} cannot be used: ") as caught:
            found.member(name)
        assert reason in caught.value.message
    with pytest.raises(KeyError):
        found.member("NoSuchAttack")


@pytest.mark.parametrize(("family", "module"), [("adv-lib", "adv_lib"), ("art", "art"), ("torchattacks", "torchattacks")])
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    family: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nowhere:
        @staticmethod
        def find_spec(name: str, *rest: object) -> None:
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError(f"No module named '{name}'", name=module)

    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Nowhere, *sys.meta_path])
    told = CliRunner().invoke(cli, ["list", "attacks", "--members"])
    assert told.exit_code == 0
    assert f"warning: {module} is not installed" in told.output
    assert ("doctor --fix" if family == "torchattacks" else "pip install ") in told.output
    assert f"    {family}:" not in told.output
    assert "    foolbox:LinfPGD" in told.output


@families
def test_parameters_are_the_peers_own_and_the_budget_is_not_among_them(family: str) -> None:
    for plugin in members_of(family):
        given = {"eps", "epsilon", "ε", "model", "seed", "targeted"}
        if plugin.kind == "minimum-norm":
            given -= {"eps", "epsilon", "ε"}  # of a step
        assert not given & set(plugin.Params.model_fields), plugin.name


@pytest.mark.parametrize("family", ["torchattacks", "foolbox"])
def test_parameters_are_checked_and_described_as_the_peer_does(family: str) -> None:
    family_of(family)
    pgd = plugins.load("attacks", f"{family}:{'PGD' if family == 'torchattacks' else 'LinfPGD'}")
    defaults = pgd.Params(steps=7).model_dump()
    assert defaults["steps"] == 7
    assert defaults["random_start"] is True
    with pytest.raises(ValueError, match="step_count"):
        pgd.Params(step_count=3)
    assert "step" in pgd.Params.model_fields["steps"].description


def test_adversarial_library_gives_what_it_gives(target: ClassifierTarget, batch: Batch) -> None:
    member = family_of("adv-lib").member("ddn")
    from adv_lib.attacks import ddn

    expected = ddn(target.module.eval(), batch.inputs, batch.labels, steps=20)
    result = member(member.Params(steps=20)).run(target, batch, ThreatModel(norm="l2", eps=1), SampleRng(0, batch.index))
    assert torch.allclose(result.adversarial, expected, atol=1e-6)
    assert "https://arxiv.org/abs/1811.09600" in member.source
    assert member.Params.model_fields["steps"].description


def test_adversarial_library_minimises_the_norm_that_it_is_told_to(target: ClassifierTarget, batch: Batch) -> None:
    member = family_of("adv-lib").member("fmn")
    threat = ThreatModel(norm="l2", eps=1)
    assert (member().minimises(threat), member(member.Params(norm="l1")).minimises(threat)) == ("l2", "l1")
    assert family_of("adv-lib").member("fab")().refusal(ThreatModel(norm="l0", eps=1))


def test_art_gives_what_art_gives(target: ClassifierTarget, batch: Batch) -> None:
    member = family_of("art").member("ProjectedGradientDescent")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    network = PyTorchClassifier(target.module, nn.CrossEntropyLoss(), (3, 10, 10), 5, clip_values=(0, 1), device_type="cpu")
    peer = ProjectedGradientDescent(network, eps=0.03, eps_step=0.01, max_iter=6, verbose=False)
    expected = peer.generate(batch.inputs.numpy(), nn.functional.one_hot(batch.labels, 5).float().numpy())
    result = member(member.Params(max_iter=6)).run(target, batch, ThreatModel(eps=0.03), SampleRng(0, batch.index))
    assert torch.allclose(result.adversarial, torch.as_tensor(expected), atol=1e-6)  # the step is a third of eps
    assert member.Params.model_fields["max_iter"].description


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


def test_attacks_that_need_numba_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    foolbox_adapter._plugin.cache_clear()
    with pytest.raises(PluginError, match="needs numba"):
        plugins.load("attacks", "foolbox:L2BrendelBethgeAttack")
