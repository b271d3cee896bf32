"""Attacks on an encoder alone: their losses in closed form, the optimum on a linear encoder, and what they never look at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.feature_losses import distance, high_frequencies, info_nce, symmetric_info_nce
from robustkd.contracts import Arrays, Batch, Patch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget
from robustkd.targets.encoder import EncoderTarget
from support.two_towers import images, towers


def data() -> Arrays:
    train = fixtures.digits().train
    assert train is not None
    return train


def fitted(kind: str, target, train: Arrays, threat: ThreatModel, **params):
    plugin = plugins.load("attacks", kind)
    rng = SampleRng(0, torch.arange(len(train)), "fit")
    return plugin(plugin.Params(**params)).fit(target, train, threat, rng)


def test_info_nce_is_the_formula() -> None:
    q = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    k = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    first = -math.log(math.exp(0.0) / (math.exp(0.0) + math.exp(0.6 / 0.5)))
    second = -math.log(math.exp(1.0 / 0.5) / (math.exp(0.8 / 0.5) + math.exp(1.0 / 0.5)))
    assert info_nce(q, k, 0.5).tolist() == pytest.approx([first, second], abs=1e-6)
    assert info_nce(torch.eye(7), torch.eye(7), 1e9).tolist() == pytest.approx([math.log(7)] * 7, abs=1e-5)


def test_the_symmetric_form_is_the_mean_of_two_cross_entropies() -> None:
    texts, images = torch.nn.functional.normalize(torch.randn(2, 5, 7, dtype=torch.float64), dim=2)
    scores = np.array([[float(a @ b) / 0.2 for b in images] for a in texts])
    by_row = -(np.diag(scores) - np.log(np.exp(scores).sum(1))).mean()
    by_column = -(np.diag(scores) - np.log(np.exp(scores).sum(0))).mean()
    assert float(symmetric_info_nce(texts, images, 0.2)) == pytest.approx((by_row + by_column) / 2)


def test_distances_are_1_minus_cos_and_the_squared_length() -> None:
    f, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert distance(f, g, "cos").item() == pytest.approx(1 - 24 / 25)
    assert distance(f, g, "l2").item() == pytest.approx(2.0)


def test_high_frequencies_are_what_a_fourier_mask_leaves() -> None:
    x = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(high_frequencies(x, 0), x, atol=1e-6)
    assert torch.allclose(high_frequencies(x, 1), x - x.mean((2, 3), keepdim=True), atol=1e-6)
    assert high_frequencies(torch.full_like(x, 0.7), 1).abs().max() < 1e-6
    assert high_frequencies(x, 7).abs().max() < 1e-6
    rows, columns = np.meshgrid(np.fft.fftfreq(9, 1 / 9), np.fft.fftfreq(8, 1 / 8), indexing="ij")
    theirs = np.fft.ifft2(np.fft.fft2(x.double().numpy()) * (np.hypot(rows, columns) >= 3)).real
    assert np.allclose(high_frequencies(x, 3), theirs, atol=1e-5)
    wave = torch.cos(2 * math.pi * 3 * torch.arange(8) / 8).expand(1, 1, 8, 8)
    assert torch.allclose(high_frequencies(wave, 3), wave, atol=1e-6)
    assert high_frequencies(wave, 3.5).abs().max() < 1e-6


def linear_encoder(seed: int = 0) -> tuple[ClassifierTarget, Tensor]:
    """One feature w . x, of which a last layer makes two classes; and w, (1, 3, 4)."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False), nn.Linear(1, 2))
    return ClassifierTarget(net, num_classes=2, input_shape=(1, 3, 4)), net[1].weight.detach().view(1, 3, 4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_encoder_the_furthest_point_is_known(norm: str) -> None:
    target, w = linear_encoder()
    with torch.no_grad():
        target.module[2].bias.copy_(torch.tensor([100.0, 0.0]))  # nothing is broken, so the last point is returned
    x, eps = torch.full((6, 1, 3, 4), 0.5), 0.1
    y = torch.zeros(6, dtype=torch.int64)
    found = robustkd.attack("feature-pgd", target, x, y, norm=norm, eps=eps, distance="l2", steps=20)
    moved = ((found.adversarial - x) * w).flatten(1).sum(1).abs()
    furthest = eps * (w.abs().sum() if norm == "linf" else w.norm())
    assert torch.allclose(moved, furthest.expand(6), rtol=0.02)
    assert not found.success.any()


def test_feature_pgd_moves_features_further_than_its_control_and_does_not_stop_at_the_first_success() -> None:
    target, x = fixtures.classifier(), images()
    with torch.no_grad():
        y, clean = target(x).argmax(1), EncoderTarget(target)(x)
    far = {}
    for steps in (0, 3, 20):
        found = robustkd.attack("feature-pgd", target, x, y, eps=0.15, steps=steps)
        with torch.no_grad():
            far[steps] = distance(EncoderTarget(target)(found.adversarial), clean, "cos")
    assert (far[20] > far[0]).all()
    assert far[20].mean() > far[3].mean()
    corners = robustkd.attack("feature-pgd", target, x, y, eps=0.15, steps=0).adversarial
    full = ((corners - x).abs() - 0.15).abs() < 1e-6
    assert (full | (corners == 0) | (corners == 1)).all()


def test_feature_pgd_looks_at_no_label_and_at_no_head() -> None:
    """Another head and other labels on the same encoder: the same points, but where a sample was misclassified and so is left alone."""
    target, x = towers(), images()
    other = target.with_vectors(target.vectors.roll(3, 0))
    points = []
    for one in (target, other):
        with torch.no_grad():
            points.append(robustkd.attack("feature-pgd", one, x, one(x).argmax(1), eps=0.1).adversarial)
    assert torch.allclose(*points, atol=1e-6)


@pytest.mark.parametrize("kind", ["adv-encoder", "adv-encoder-patch"])
def test_labels_of_the_training_images_are_never_read(kind: str) -> None:
    where = Patch(3) if kind.endswith("patch") else None
    threat = ThreatModel("linf", 1.0 if where else 0.1, where=where)
    target, train = fixtures.classifier(), data()
    wrong = Arrays(train.images, (train.labels + 1) % 10)
    made = [fitted(kind, target, each, threat, epochs=2, samples=64, batch_size=32) for each in (train, wrong)]
    first, second = (one.content if where else one.perturbation for one in made)
    assert torch.equal(first, second)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("params", [{"generator": True}, {"generator": False}, {"epochs": 0}], ids=str)
def test_the_perturbation_keeps_to_the_budget_and_is_the_same_for_all(norm: str, params: dict[str, object]) -> None:
    threat, target = ThreatModel(norm, 0.2 if norm == "linf" else 1.5), fixtures.classifier()
    attack = fitted("adv-encoder", target, data(), threat, **{"epochs": 3, "samples": 64, "batch_size": 32, **params})
    size = attack.perturbation.abs().max() if norm == "linf" else attack.perturbation.norm()
    assert size <= threat.eps + 1e-5
    assert size > 0.2 * threat.eps
    x = images()
    batch = Batch(x, fixtures.batch(target).labels, torch.arange(len(x)))
    found = attack.run(target, batch, threat, SampleRng(0, batch.index))
    with torch.no_grad():
        standing = target(x).argmax(1) == batch.labels
    assert torch.equal(found.adversarial[standing], (x + attack.perturbation).clamp(0, 1)[standing])


def test_it_leaves_less_of_new_images_features_than_its_control() -> None:
    threat, target, x = ThreatModel("linf", 0.2), fixtures.classifier(), images()
    encoder = EncoderTarget(target)
    told = {}
    for name, params in {
        "generator": {},
        "moved": {"generator": False},
        "random": {"epochs": 0},
    }.items():
        attack = fitted("adv-encoder", target, data(), threat, **{"epochs": 20, "batch_size": 40, **params})
        with torch.no_grad():
            told[name] = info_nce(encoder((x + attack.perturbation).clamp(0, 1)), encoder(x), 0.1).mean().item()
    assert told["generator"] > told["random"] + 0.1
    assert told["moved"] > told["random"] + 0.1


def test_the_patch_leaves_less_of_the_features_than_a_random_one() -> None:
    threat = ThreatModel("linf", 1.0, where=Patch(4))
    target, x = fixtures.classifier(), images()
    encoder = EncoderTarget(target)
    far = {}
    for epochs in (0, 15):
        attack = fitted("adv-encoder-patch", target, data(), threat, epochs=epochs, batch_size=40)
        assert attack.content.shape == (1, 4, 4)
        changed = x.clone()
        changed[:, :, 2:6, 2:6] = attack.content
        with torch.no_grad():
            far[epochs] = info_nce(encoder(changed), encoder(x), 0.1).mean().item()
    assert far[15] > far[0] + 0.1


def test_an_attack_without_the_head_carries_to_another_head_by_transfer() -> None:
    target, x = fixtures.classifier(), images()
    y = fixtures.batch(target).labels
    given = {"surrogates": "encoder", "attacks": [{"kind": "adv-encoder", "epochs": 3, "samples": 64, "batch_size": 32}]}
    train = data()
    found = robustkd.attack(
        "transfer",
        towers(),
        x,
        y,
        eps=0.2,
        models={"encoder": target},
        fit_data=(train.unit(), train.labels),
        params=given,
    )
    assert found.adversarial.shape == x.shape
