"""Input transforms in front of a model: what they compute, how they are stored, and how they fall to an adaptive attack."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import TargetError, UsageError
from robustkd.targets import (
    ClassifierTarget,
    PipelineTarget,
    TransformSpec,
    declared_surrogates,
    fingerprint,
    load_target,
    save_target,
)
from support.campaigns import tiny_campaign

ALL = [
    {"kind": "bit-depth", "bits": 2},
    {"kind": "jpeg", "quality": 60},
    {"kind": "gaussian-noise", "std": 0.05},
    {"kind": "resize-pad", "smallest": 0.8},
]


def stage(kind, shape=(1, 8, 8), **params):
    plugin = plugins.load("transforms", kind)
    return plugin(plugin.Params(**params)).build(shape)


def base(classes=10):
    torch.manual_seed(0)
    target = ClassifierTarget.from_model("tiny-cnn", {}, input_shape=(1, 8, 8), num_classes=classes)
    target.module.eval()
    return target


def pipeline(*specs):
    return PipelineTarget(base(), [TransformSpec.model_validate(item) for item in specs])


def test_bit_depth_leaves_so_many_levels_and_the_nearest_of_them():
    x = torch.rand(2, 1, 8, 8)
    for bits in (1, 3, 8):
        found = stage("bit-depth", bits=bits)(x)
        levels = torch.arange(2**bits) / (2**bits - 1)
        assert torch.isin(found, levels).all()
        assert torch.equal(found, levels[(x.unsqueeze(-1) - levels).abs().argmin(-1)])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_the_real_one(channels):
    x = torch.rand(3, channels, 16, 24, requires_grad=True)
    found = stage("jpeg", (channels, 16, 24), quality=30)(x)
    file = io.BytesIO()
    pixels = (x[1].detach().permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(file, "jpeg", quality=30)
    wanted = np.asarray(Image.open(file)).reshape(16, 24, channels) / 255
    assert found.shape == x.shape
    assert np.allclose(found[1].detach().permute(1, 2, 0).numpy(), wanted, atol=1e-6)
    with pytest.raises(UsageError, match="grey and RGB"):
        stage("jpeg", (2, 8, 8))


def test_noise_has_its_size_and_is_new_each_time():
    torch.manual_seed(0)
    x, noisy = torch.rand(200, 1, 8, 8), stage("gaussian-noise", std=0.2)
    one, other = noisy(x) - x, noisy(x) - x
    assert float(one.std()) == pytest.approx(0.2, rel=0.03)
    assert not torch.equal(one, other)


def test_resizing_keeps_every_image_inside_the_canvas_at_its_own_size():
    torch.manual_seed(0)
    white = torch.ones(400, 1, 20, 20)
    area = stage("resize-pad", (1, 20, 20), smallest=0.5)(white).flatten(1).mean(1)
    assert 0.2 < float(area.min()) < 0.35
    assert 0.85 < float(area.max()) <= 1
    assert float(area.sqrt().mean()) == pytest.approx(0.75, abs=0.03)  # sizes are uniform in [0.5, 1]


def test_a_pipeline_comes_back_the_same(tmp_path):
    target = pipeline(*ALL[:2])
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    x = torch.rand(4, 1, 8, 8)
    assert isinstance(again, PipelineTarget)
    assert torch.equal(target(x), again(x))
    assert fingerprint(again) == fingerprint(target) != fingerprint(pipeline(*ALL[:1]))
    assert (again.num_classes, again.input_shape, again.bounds) == (10, (1, 8, 8), (0.0, 1.0))
    seen = again.features(x, ["transforms.0", "model"])
    assert torch.equal(seen["model"], again(x))
    assert len(seen["transforms.0"].unique()) <= 4


@pytest.mark.parametrize("kind", ["jpeg", "bit-depth"])
def test_a_step_has_a_zero_gradient_rather_than_none(kind):
    """So that an attack that knows nothing of it runs, and its failure is seen."""
    x = torch.rand(3, 1, 8, 8)
    target = pipeline({"kind": kind})
    found = robustkd.attack("fgsm", target, x, target(x).argmax(1), eps=0.3)
    assert not found.success.any()
    assert (found.outcome.backwards > 0).all()


def test_what_declares_a_surrogate_and_what_needs_none():
    assert list(declared_surrogates(pipeline(*ALL))) == ["transforms.0", "transforms.1"]


def test_a_module_of_ones_own_will_do_until_it_is_saved(tmp_path):
    target = PipelineTarget(base(), [nn.Hardtanh(0, 0.5)])
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(target(x), base()(x.clamp_max(0.5)))
    assert fingerprint(target)
    with pytest.raises(TargetError, match="cannot be saved"):
        save_target(target, tmp_path)
    with pytest.raises(UsageError, match=r"pixels in \[0, 1\]"):
        PipelineTarget(ClassifierTarget(nn.Identity(), num_classes=2, input_shape=(2,), bounds=(-1.0, 1.0)), [])


CAMPAIGN = tiny_campaign(
    "transforms",
    {
        "plain": "{kind: standard, model: tiny-cnn, epochs: 12}",
        "coarse": "{kind: input-transform, base: plain, transforms: [{kind: bit-depth, bits: 2}]}",
        "noisy": "{kind: input-transform, base: coarse, transforms: [resize-pad, {kind: gaussian-noise, std: 0.1}]}",
    },
    {
        "pgd": "{kind: pgd}",
        "bpda": "{kind: bpda, attack: pgd}",
        "eot": "{kind: eot, attack: {kind: bpda, attack: pgd}, samples: 4}",
    },
    train=1000,
    test=80,
    matrix="{exclude: [{defense: plain, attack: bpda}, {defense: plain, attack: eot}]}",
)


def test_in_a_campaign_masks_and_falls(tmp_path):
    campaign = spec.from_text(CAMPAIGN, "transforms.yaml", tmp_path)
    planned = plan.build(campaign)
    assert [cell.defense for cell in planned.of("train")] == ["plain", "coarse", "noisy"]
    results = run(planned, tmp_path / "out", plugins.load("engines", "inline")(0))
    robust = {(cell.defense, cell.attack): cell.robust_accuracy for cell in results.cells}
    assert robust["coarse", "bpda"] < robust["coarse", "pgd"] - 0.15
    assert robust["noisy", "eot"] < robust["noisy", "pgd"] - 0.1


def test_a_mistake_is_placed(tmp_path):
    wrong = CAMPAIGN.replace("bits: 2", "bitz: 2")
    with pytest.raises(UsageError, match=r"transforms\.yaml:9: .*transforms\.0: transform 'bit-depth': bitz"):
        spec.from_text(wrong, "transforms.yaml", tmp_path)


def test_the_python_interface_takes_a_pipeline():
    x = torch.rand(20, 1, 8, 8)
    target = pipeline(ALL[0])
    y = target(x).argmax(1)
    found = robustkd.attack("bpda", target, x, y, eps=0.3)
    assert found.success.sum() > 5
