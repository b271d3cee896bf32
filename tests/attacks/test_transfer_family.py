"""The attacks made for transfer since 2021: their first gradients by hand, and MI-FGSM where their idea is switched off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import Oracle
from robustkd.attacks.image.transferable.bsr import blocks_moved
from robustkd.attacks.image.transferable.ila import middle_block
from robustkd.attacks.image.transferable.ssa import SpectrumMeanGradient
from robustkd.contracts import Arrays, Attack, AttackResult, Batch, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget

THREAT = ThreatModel(eps=0.1)


@pytest.fixture
def target() -> ClassifierTarget:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(150, 4),
    )
    found = ClassifierTarget(network.double(), num_classes=4, input_shape=(2, 10, 10))
    found.never_adversarial = True  # as of a surrogate: every step is made
    return found


@pytest.fixture
def batch(target: ClassifierTarget) -> Batch:
    images = 0.2 + 0.6 * torch.rand(3, 2, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        labels = target(images).argmax(1)
    return Batch(images, labels, torch.arange(3))


def ran(target: ClassifierTarget, batch: Batch, kind: str, **params: object) -> AttackResult:
    attack: Attack = plugins.make("attacks", {"kind": kind, **params})
    return attack.run(target, batch, THREAT, SampleRng(0, batch.index))


def gradient(target: ClassifierTarget, x: Tensor, labels: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(target(x), labels, reduction="sum"), x)[0]


def estimated(target: ClassifierTarget, batch: Batch, kind: str, **params: object) -> Tensor:
    """What an attack takes for the gradient at its first step."""
    attack = plugins.make("attacks", {"kind": kind, **params})
    x, ball = batch.inputs, Ball.around(batch.inputs, THREAT.eps, "linf", (0.0, 1.0))
    zero, none = torch.zeros(3, dtype=x.dtype), torch.zeros(3, dtype=torch.bool)
    state = AttackState(torch.arange(3), ball, x, torch.zeros_like(x), zero, x, zero, none, none)
    return attack.estimator(THREAT, SampleRng(0, batch.index))(Oracle(target, batch), state, for_batch("ce", batch), 0)


SWITCHED_OFF = {
    "vni-fgsm": ({"decay": 0.0, "steps": 1}, {"decay": 0.0, "steps": 1}),
    "ssa": ({"rho": 0.0, "sigma": 0.0, "copies": 1}, {}),
    "pgn": ({"reach": 0.0, "balance": 0.0, "neighbours": 1}, {}),
    "bsr": ({"blocks": 1, "angle": 0.0, "copies": 1}, {}),
    "ila": ({"layer_steps": 0}, {}),
}


@pytest.mark.parametrize("kind", SWITCHED_OFF)
def test_without_its_idea_it_is_mi_fgsm(kind: str, target: ClassifierTarget, batch: Batch) -> None:
    params, plain = SWITCHED_OFF[kind]
    assert torch.allclose(
        ran(target, batch, kind, **params).adversarial, ran(target, batch, "mi-fgsm", **plain).adversarial, atol=1e-9
    )


def test_vni_without_neighbours_that_differ_is_ni_fgsm(target: ClassifierTarget, batch: Batch) -> None:
    near = ran(target, batch, "vni-fgsm", reach=1e-9, neighbours=2).adversarial
    assert torch.allclose(near, ran(target, batch, "ni-fgsm").adversarial, atol=1e-6)
    without = ran(target, batch, "vni-fgsm", decay=0.0, neighbours=3)
    assert torch.equal(without.adversarial, ran(target, batch, "vmi-fgsm", decay=0.0, neighbours=3).adversarial)


def test_the_gradient_of_ssa_is_that_of_the_changed_image(target: ClassifierTarget, batch: Batch) -> None:
    found = estimated(target, batch, "ssa", copies=1, rho=0.5, sigma=0.05)
    draws = SampleRng(0, batch.index).fork(0)
    noise = 0.05 * draws.normal((2, 10, 10), dtype=torch.float64)
    mask = draws.uniform((2, 10, 10), 0.5, 1.5, dtype=torch.float64).numpy()

    def changed(x: np.ndarray) -> np.ndarray:  # of SciPy, in the place of the matrices
        return idctn(mask * dctn(x, axes=(-2, -1), norm="ortho"), axes=(-2, -1), norm="ortho")

    at = gradient(target, torch.from_numpy(changed((batch.inputs + noise).numpy())), batch.labels)
    assert torch.allclose(found, torch.from_numpy(changed(at.numpy())), atol=1e-10)  # it is symmetric
    several = SpectrumMeanGradient(SampleRng(0, batch.index), 3, 0.0, 0.0)
    assert several.copies == 3


def test_the_gradient_of_pgn_is_a_mean_of_two(target: ClassifierTarget, batch: Batch) -> None:
    found = estimated(target, batch, "pgn", reach=0.0, neighbours=1, balance=0.25)
    first = gradient(target, batch.inputs, batch.labels)
    down = 0.01 * first / first.abs().mean((1, 2, 3), keepdim=True)  # eps / steps
    second = gradient(target, (batch.inputs - down).clamp(0, 1), batch.labels)
    assert torch.allclose(found, 0.75 * first + 0.25 * second, atol=1e-10)


def test_bsr_moves_every_pixel_once_where_it_does_not_rotate() -> None:
    x = torch.rand(5, 3, 9, 12, dtype=torch.float64)
    moved = blocks_moved(x, SampleRng(3, torch.arange(5)), blocks=3, angle=0.0)
    assert torch.allclose(moved.flatten(2).sort(2).values, x.flatten(2).sort(2).values, atol=1e-9)
    assert not torch.allclose(moved, x)
    alone = blocks_moved(x[2:3], SampleRng(3, torch.tensor([2])), blocks=3, angle=0.0)
    assert torch.equal(alone, moved[2:3])


def test_bsr_rotates_a_block_around_its_centre() -> None:
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    rng = SampleRng(0, torch.arange(4))
    turned = blocks_moved(x, rng, blocks=1, angle=30.0)
    draws = SampleRng(0, torch.arange(4))
    for shape in ((1,), (1,), (1, 1), (1, 1)):
        draws.uniform(shape)
    angle = np.deg2rad(30) * draws.uniform((1, 1), -1.0, 1.0, dtype=torch.float64).flatten()
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros(4, dtype=torch.float64)
    matrix = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(matrix, [4, 1, 8, 8], align_corners=False)
    expected = nn.functional.grid_sample(x, grid, align_corners=False)
    inner = (slice(None), slice(None), slice(2, 6), slice(2, 6))
    assert torch.allclose(turned[inner], expected[inner], atol=1e-9)


def test_the_gradient_of_bsr_is_taken_through_its_copy(target: ClassifierTarget, batch: Batch) -> None:
    found = estimated(target, batch, "bsr", copies=1)
    x = batch.inputs.clone().requires_grad_()
    moved = blocks_moved(x, SampleRng(0, batch.index).fork(0), 2, 24.0)
    loss = nn.functional.cross_entropy(target(moved), batch.labels, reduction="sum")
    assert torch.allclose(found, torch.autograd.grad(loss, x)[0], atol=1e-10)


def test_ila_goes_on_along_the_features_of_a_linear_layer(batch: Batch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(200, 7, bias=False), nn.Tanh(), nn.Linear(7, 4)).double()
    target = ClassifierTarget(network, num_classes=4, input_shape=(2, 10, 10))
    target.never_adversarial = True
    assert middle_block(network) is network[1]
    first = ran(target, batch, "mi-fgsm", steps=1)
    found = ran(target, batch, "ila", steps=1, layer_steps=1, step_size=0.03, decay=0.0)
    begun = ran(target, batch, "mi-fgsm", steps=1, step_size=0.03, decay=0.0).adversarial
    weight = network[1].weight.detach()
    change = (begun - batch.inputs).flatten(1) @ weight.T
    direction = (change @ weight).view_as(batch.inputs)  # of a linear layer, the gradient of the projection is W^T W (x' - x)
    expected = (begun + 0.03 * direction.sign()).clamp(batch.inputs - 0.1, batch.inputs + 0.1).clamp(0, 1)
    assert torch.allclose(found.adversarial, expected, atol=1e-9)
    assert found.backwards.tolist() == [2] * 3
    assert first.backwards.tolist() == [1] * 3


class Branched(nn.Module):
    """A block of two layers, which gives something else beside its features, as a transformer's do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.second(torch.tanh(self.first(x))), None


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(200, 8), nn.ModuleList(Branched() for _ in range(4)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x, _ = block(x)
        logits: Tensor = self.head(x)
        return logits


def test_ila_follows_the_whole_block_in_the_middle_and_not_a_layer_of_its_branch(batch: Batch) -> None:
    torch.manual_seed(0)
    network = Residual().double()
    target = ClassifierTarget(network, num_classes=4, input_shape=(2, 10, 10))
    target.never_adversarial = True
    assert middle_block(network) is network.blocks[1]
    found = ran(target, batch, "ila", steps=2, layer_steps=3).adversarial
    assert torch.equal(found, ran(target, batch, "ila", steps=2, layer_steps=3, layer="blocks.1").adversarial)
    assert not torch.equal(found, ran(target, batch, "ila", steps=2, layer_steps=3, layer="blocks.1.second").adversarial)


def test_ila_names_the_layers_where_there_is_none_of_that_name(target: ClassifierTarget, batch: Batch) -> None:
    with pytest.raises(TargetError, match="no layer 'layer9'"):
        ran(target, batch, "ila", layer="layer9")


def fitted_admix(target: ClassifierTarget, images: Tensor, labels: Tensor, **params: object) -> Attack:
    attack: Attack = plugins.make("attacks", {"kind": "admix", **params})
    data = Arrays(images.float().numpy(), labels.numpy())
    return attack.fit(target, data, THREAT, SampleRng(0, torch.arange(len(data)), "fit"))


def test_the_first_step_of_admix_is_the_mean_over_images_of_other_classes_and_scales(
    target: ClassifierTarget, batch: Batch
) -> None:
    others = torch.rand((6, 2, 10, 10), generator=torch.Generator().manual_seed(2))
    labels = torch.cat([batch.labels[:1].expand(2), (batch.labels[:1] + 1) % 4, batch.labels[:1].expand(3)])
    one = batch.select(torch.tensor([0]))
    found = fitted_admix(target, others, labels, steps=1, mixed=1, copies=2, strength=0.3).run(
        target, one, THREAT, SampleRng(0, one.index)
    )
    mixture = one.inputs + 0.3 * others[2].double()  # the only one of another class
    slope = gradient(target, mixture, one.labels) + 0.5 * gradient(target, mixture / 2, one.labels)
    by_hand = (one.inputs + THREAT.eps * slope.sign()).clamp(0, 1)
    assert torch.allclose(found.adversarial, by_hand, atol=1e-9)


def test_admix_with_nothing_of_the_others_is_si_fgsm(target: ClassifierTarget, batch: Batch) -> None:
    attack = fitted_admix(target, batch.inputs, batch.labels, strength=0.0, mixed=2)
    found = attack.run(target, batch, THREAT, SampleRng(0, batch.index)).adversarial
    assert torch.allclose(found, ran(target, batch, "si-fgsm").adversarial, atol=1e-9)
    with pytest.raises(UsageError, match="images to mix in"):
        ran(target, batch, "admix")


def test_what_learns_is_made_on_surrogates_too() -> None:
    data = fixtures.digits()
    assert data.train is not None
    network = fixtures.classifier().module
    report = robustkd.attack(
        {"kind": "transfer", "surrogates": "other", "attacks": [{"kind": "admix", "steps": 3, "samples": 20}, "universal"]},
        network,
        data.test.unit(),
        data.test.labels,
        eps=0.3,
        models={"other": fixtures.classifier(1).module},
        fit_data=(data.train.unit(), data.train.labels),
    )
    assert report.outcome.success.any()
