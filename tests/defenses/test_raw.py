"""RAW: what the sensor records, how it is developed, and that an attack goes through it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

import robustkd
from robustkd import plugins
from robustkd.contracts import UsageError
from robustkd.plugin_kit import fixtures
from robustkd.targets import load_target, save_target


def stage(kind="demosaic", shape=(3, 8, 8), **params):
    plugin = plugins.load("transforms", kind)
    return plugin(plugin.Params(**params)).build(shape)


def test_the_sensor_keeps_one_value_of_three_in_bayers_order():
    x = torch.rand(2, 3, 6, 8)
    recorded = stage(shape=(3, 6, 8)).bayer.mosaic(x)
    assert (recorded != 0).float().mean() == pytest.approx(1 / 3)
    assert ((recorded != 0).sum(1) == 1).all()
    assert torch.equal(recorded[:, 0, 0, 0], x[:, 0, 0, 0])
    assert torch.equal(recorded[:, 1, 0, 1], x[:, 1, 0, 1])
    assert torch.equal(recorded[:, 1, 1, 0], x[:, 1, 1, 0])
    assert torch.equal(recorded[:, 2, 1, 1], x[:, 2, 1, 1])
    assert (recorded != 0).sum((0, 2, 3)).tolist() == [2 * 12, 2 * 24, 2 * 12]


def test_a_flat_image_comes_back_exactly():
    flat = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 7, 9)
    assert torch.allclose(stage(shape=(3, 7, 9))(flat), flat)


def test_demosaicing_is_bilinear_as_scipy_has_it():
    x = np.random.default_rng(0).random((3, 8, 8))
    rows, columns = np.indices((8, 8)) % 2
    red, blue = (rows == 0) & (columns == 0), (rows == 1) & (columns == 1)
    kernel = np.outer([1, 2, 1], [1, 2, 1])
    wanted = []
    for channel, mask in zip(x, (red, ~(red | blue), blue), strict=True):
        near = convolve(channel * mask, kernel, mode="constant") / convolve(mask.astype(float), kernel, mode="constant")
        wanted.append(np.where(mask, channel, near))
    found = stage()(torch.from_numpy(x).unsqueeze(0))[0].numpy()
    assert np.allclose(found, wanted)


def test_what_is_not_recorded_makes_no_difference():
    x, other = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    trip = stage()
    mask = trip.bayer.mask.bool()
    assert torch.equal(trip(x), trip(torch.where(mask, x, other)))


def test_of_a_grey_image_the_channels_mean_is_left_and_of_others_nothing():
    x = torch.rand(1, 1, 8, 8)
    assert torch.allclose(stage(shape=(1, 8, 8))(x), stage()(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True))
    with pytest.raises(UsageError, match="grey or RGB"):
        stage(shape=(2, 8, 8))


def test_alpha_mixes_both_developments():
    torch.manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(2, 3, 8, 8)
    whole, half = (stage("raw", alpha=alpha) for alpha in (1.0, 0.5))
    half.load_state_dict(whole.state_dict())
    assert torch.allclose(half(x), (whole(x) + stage()(x)) / 2, atol=1e-6)


@pytest.fixture(scope="module")
def behind():
    made = plugins.make("defenses", {"kind": "raw", "base": "plain", "epochs": 4, "lr": 0.01, "batch_size": 20})
    control = plugins.make("defenses", {"kind": "input-transform", "base": "plain", "transforms": ["demosaic"]})
    with fixtures.context(targets={"plain": fixtures.classifier()}) as context:
        return made.fit(context), control.fit(context)


def test_the_learned_development_is_nearer_to_the_image(behind):
    x = torch.from_numpy(fixtures.digits().test.unit())
    learned, plain = (target.module.transforms(x) for target in behind)
    assert (learned - x).square().mean() < 0.8 * (plain - x).square().mean()


def test_an_attack_goes_through_it_where_one_on_the_base_does_not(behind):
    """What was found on the base, which is how it was evaluated, and what is found on the whole."""
    held = fixtures.digits().validation
    x, y = torch.from_numpy(held.unit()), torch.from_numpy(held.labels)
    for target in behind:
        models = {"plain": fixtures.classifier()}
        unaware = robustkd.attack("transfer", target, x, y, eps=0.1, surrogates="plain", attacks="pgd", models=models)
        through = robustkd.attack("pgd", target, x, y, eps=0.1)
        assert through.success.sum() > unaware.success.sum()


def test_it_comes_back_from_its_files(behind, tmp_path):
    x = torch.from_numpy(fixtures.digits().test.unit())
    save_target(behind[0], tmp_path)
    assert torch.equal(load_target(tmp_path)(x), behind[0](x))
