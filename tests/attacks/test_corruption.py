"""Common corruptions: as images, as an attack, and in a campaign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.analyses.corruption_robustness import CorruptionRobustness
from robustkd.attacks.image.corruptions.corruption import Corruption, CorruptionParams
from robustkd.attacks.image.corruptions.corruption_families import FAMILIES, GROUPS, corrupted
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import AttackError, AttackResult, Batch, CheckContext, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.data import load_splits
from robustkd.data.splits import SplitParams
from robustkd.evaluation.checks import make_check
from robustkd.evaluation.images import evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.evaluation.judging import judge
from robustkd.targets import ClassifierTarget

INDEX = torch.arange(16)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return torch.from_numpy(load_splits("digits", {}, SplitParams(train=100, test=16, validation=10)).test.unit())


def scene(count: int, channels: int, high: int, wide: int) -> Tensor:
    """Smooth images with an edge."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, high), torch.linspace(0, 1, wide), indexing="ij")
    one = 0.2 + 0.3 * rows + 0.3 * (columns > 0.75)
    return one.expand(count, channels, high, wide).clone() * torch.linspace(0.8, 1, channels).view(1, -1, 1, 1)


# --- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 40)])
def test_images_of_any_size_and_colour_stay_images_and_a_samples_corruption_is_its_own(
    family: str, shape: tuple[int, int, int]
) -> None:
    x = scene(6, *shape)
    for severity in (1, 5):
        whole = corrupted(x, family, severity, SampleRng(0, INDEX[:6]))
        assert whole.shape == x.shape
        assert whole.dtype == x.dtype
        assert torch.isfinite(whole).all()
        assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
        assert severity == 1 or not torch.allclose(whole, x, atol=1e-2)
        alone = corrupted(x[4:5], family, severity, SampleRng(0, INDEX[4:5]))
        torch.testing.assert_close(alone, whole[4:5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("elastic", "glass-blur", "pixelate")])
def test_the_highest_severity_is_worse_than_the_lowest(family: str) -> None:
    x = scene(16, 1, 28, 28)
    mild, hard = ((corrupted(x, family, severity, SampleRng(0, INDEX)) - x).norm() for severity in (1, 5))
    assert hard > 1.2 * mild


def test_noises_have_their_distributions() -> None:
    x = torch.full((16, 1, 64, 64), 0.4)
    noise = corrupted(x, "gaussian-noise", 2, SampleRng(0, INDEX)) - x
    assert noise.mean().item() == pytest.approx(0, abs=1e-3)
    assert noise.std().item() == pytest.approx(0.06, rel=0.02)
    counts = 50 * corrupted(x, "shot-noise", 5, SampleRng(0, INDEX))
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    assert counts.mean().item() == pytest.approx(20, rel=0.01)  # a Poisson's mean and variance are one
    assert counts.var().item() == pytest.approx(20, rel=0.05)
    assert corrupted(torch.zeros(16, 1, 8, 8), "shot-noise", 5, SampleRng(0, INDEX)).abs().max() == 0
    struck = corrupted(x, "impulse-noise", 4, SampleRng(0, INDEX))
    for value in (0.0, 1.0):
        assert (struck == value).float().mean().item() == pytest.approx(0.025, rel=0.1)
    assert ((struck == 0) | (struck == 1) | (struck == 0.4)).all()


def test_blurs_keep_what_is_even_and_soften_an_edge() -> None:
    even, edge = torch.full((4, 1, 32, 32), 0.3), scene(4, 1, 32, 32)
    for family in GROUPS["blur"]:
        torch.testing.assert_close(corrupted(even, family, 5, SampleRng(0, INDEX[:4])), even)
        if family != "glass-blur":
            steepest = (corrupted(edge, family, 5, SampleRng(0, INDEX[:4])).diff(dim=3).abs()).amax()
            assert steepest < 0.8 * edge.diff(dim=3).abs().amax()


def test_brightness_and_contrast_are_what_they_say() -> None:
    x, rng = scene(2, 3, 8, 8) * 0.7, SampleRng(0, INDEX[:2])
    brighter = corrupted(x, "brightness", 2, rng)
    torch.testing.assert_close(brighter.amax(1), x.amax(1) + 0.1)
    torch.testing.assert_close(brighter[:, 0] / brighter[:, 2], x[:, 0] / x[:, 2])  # the hue stays
    flat = corrupted(x, "contrast", 5, rng)
    torch.testing.assert_close(flat.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(flat.std((2, 3)), 0.15 * x.std((2, 3)))


def test_pixelate_has_fewer_pixels_and_zoom_goes_to_the_middle() -> None:
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert len(corrupted(noise, "pixelate", 5, SampleRng(0, INDEX[:1])).unique()) <= 20 * 20
    middle = torch.zeros(1, 1, 33, 33)
    middle[0, 0, 16, 16] = 1
    assert int(corrupted(middle, "zoom-blur", 3, SampleRng(0, INDEX[:1])).flatten().argmax()) == 16 * 33 + 16


# --- the attack --------------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """Darker than one half is class 0; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_several_corruptions_are_tried_until_one_breaks_the_sample() -> None:
    # fog and brightness lift the mean over one half; contrast leaves it.
    x = torch.linspace(0.25, 0.49, 16).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    net, labels = Watched(), torch.zeros(16, dtype=torch.int64)
    target = ClassifierTarget(net, num_classes=2, input_shape=(1, 8, 8))
    attack = Corruption(CorruptionParams(family=["contrast", "brightness"], severity="all"))
    found = attack.run(target, Batch(x, labels, INDEX), Corruption().threat_for(ThreatModel()), SampleRng(0, INDEX))
    needed = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.3])
    severity = ((x[:, 0, 0, 0, None] + needed) > 0.5).float().argmax(1)
    breaks = (x[:, 0, 0, 0, None] + needed > 0.5).any(1)
    assert torch.equal(found.success, breaks)
    assert torch.equal(found.forwards, torch.where(breaks, 2 * severity + 2, 10))
    assert found.backwards.sum() == 0
    assert net.seen == found.forwards.sum()
    torch.testing.assert_close(found.adversarial[:, 0, 0, 0], x[:, 0, 0, 0] + torch.where(breaks, needed[severity], needed[-1]))


def test_the_parameters_name_families_groups_or_all() -> None:
    assert CorruptionParams().families == FAMILIES
    assert CorruptionParams(family="fog").families == ("fog",)
    assert CorruptionParams(family=["fog", "weather"], severity="all").families == ("fog", "snow", "frost", "brightness")
    assert CorruptionParams(severity=4).severities == (4,)
    with pytest.raises(ValueError, match="did you mean 'motion-blur'"):
        CorruptionParams(family="motion-blurr")


def test_by_itself_it_needs_no_budget_and_other_attacks_cannot_use_its_threat_model(digits: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = robustkd.attack("corruption", net, digits, net(digits).argmax(1), family="fog", severity=5)
    assert found.success.any()
    with pytest.raises(UsageError, match="judged under corruptions"):
        robustkd.evaluate(net, digits, net(digits).argmax(1), attacks=["pgd", "corruption"])
    assert robustkd.attacks.image.gradient.pgd.PGD().refusal(Corruption().threat_for(ThreatModel())) is not None


def test_the_audit_of_the_threat_model_is_about_corruptions_too(digits: Tensor) -> None:
    torch.manual_seed(0)
    target = ClassifierTarget(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), num_classes=10, input_shape=(1, 8, 8))
    threat, attack = Corruption().threat_for(ThreatModel()), Corruption(CorruptionParams(family="weather", severity=5))
    batch = with_clean_logits(target, make_batch(digits, target(digits).argmax(1)))
    found = evaluate_attack(target, attack, batch, threat)
    images = found.adversarial.numpy()

    def fires(adversarial: np.ndarray) -> bool:
        evidence = evidence_of("snow", attack, threat, found.outcome, adversarial)
        return (
            make_check("threat-model-audit", None).run(CheckContext(target, batch, ThreatModel(), {"snow": evidence}, 0)).fired
        )

    assert found.outcome.success.any()
    assert not fires(images)
    assert fires(images + 0.5)
    with pytest.raises(AttackError, match="left the pixel range"):
        judge(target, attack, batch, threat, AttackResult(batch.inputs + 1, *[torch.zeros(16, dtype=torch.int64)] * 3))


def test_the_analysis_counts_each_family_at_each_severity(digits: Tensor) -> None:
    torch.manual_seed(0)
    target = ClassifierTarget(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), num_classes=10, input_shape=(1, 8, 8))
    labels = target(digits).argmax(1)
    table = CorruptionRobustness().run(target, Batch(digits, labels, INDEX), ThreatModel(), seed=3)
    assert (table.rows, len(table.columns)) == (list(FAMILIES), 5)
    for row, column in ((0, 4), (9, 2), (14, 0)):
        x = corrupted(digits, FAMILIES[row], column + 1, SampleRng(3, INDEX, "corruption"))
        assert table.values[row][column] == pytest.approx((target(x).argmax(1) != labels).float().mean().item())
    values = np.array(table.values)
    assert table.metrics["mean_corruption_accuracy"] == pytest.approx(1 - values.mean())
    assert table.metrics["noise_accuracy"] == pytest.approx(1 - values[:3].mean())
    assert values.max() > 0


# --- a campaign --------------------------------------------------------------------------------------------------------

CAMPAIGN = """
version: 1
name: corrupted
data: {name: digits, train: 200, test: 40}
threat: {norm: linf, eps: 0.1, curve: [0.05]}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 8, batch_size: 20, optimiser: adam, lr: 0.02}
attacks:
  fgsm: {kind: fgsm}
  fog:  {kind: corruption, family: fog, severity: 5}
  noise: {kind: corruption, family: noise, severity: 3}
checks: none
analyses:
  natural: {kind: corruption-robustness, defenses: [plain]}
  certainty: {kind: calibration, defenses: [plain]}
"""


def test_a_campaign_shows_adversarial_and_natural_robustness_side_by_side(tmp_path: Path) -> None:
    file = tmp_path / "corrupted.yaml"
    file.write_text(CAMPAIGN)
    results = run(plan.build(spec.load(file)), tmp_path / "run", InlineEngine())
    (plain,), cells = results.defenses, {cell.attack: cell for cell in results.cells}
    assert plain.attacks == ["fgsm"]
    assert plain.robust_accuracy == cells["fgsm"].robust_accuracy
    assert set(plain.other_threats) == {"corruptions"}
    assert plain.other_threats["corruptions"] <= min(cells["fog"].robust_accuracy, cells["noise"].robust_accuracy)
    assert cells["fog"].norm == "corruption"
    assert (cells["fog"].forward_passes, cells["fog"].backward_passes) == (40, 0)
    assert 0 < plain.analyses["natural"].metrics["mean_corruption_accuracy"] < 1
    assert plain.analyses["certainty"].metrics["ece"] > 0


def test_a_budget_for_a_corruption_is_refused_with_its_place(tmp_path: Path) -> None:
    text: Any = CAMPAIGN.replace("severity: 5}", "severity: 5, threat: {norm: l2, eps: 1}}")
    with pytest.raises(UsageError, match=r":10: attacks.fog.threat: 'corruption' has no budget to set"):
        spec.from_text(text, "c.yaml", tmp_path)
