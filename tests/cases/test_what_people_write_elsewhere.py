"""Names, units and shapes as other libraries and habits have them: they work, or one sentence says what to write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkd
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.cli import cli, main
from robustkd.contracts import Patch, PixelBudget, RobustkdError, suggestion
from robustkd.plugins import names
from robustkd.targets import ClassifierTarget
from support.campaigns import external, tiny_campaign

MODEL = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"


@pytest.fixture
def samples() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    x = torch.rand(8, 3, 4, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    return network, x, network(x).argmax(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    return tmp_path


def said(*argv: str) -> str:
    with pytest.raises(RobustkdError) as caught:
        CliRunner().invoke(cli, [*argv], catch_exceptions=False)
    return str(caught.value)


ONE = ("attack", "fgsm", "--model", "net.py:build", "--n", "10")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("PGD", "pgd"), ("AutoAttack", "autoattack"), ("aa", "autoattack"), ("apgd_ce", "apgd-ce"), ("CarliniWagnerL2Attack", "cw-l2"),
        ("LinfPGD", "pgd"), ("FGSMAttack", "fgsm"), ("DeepFool", "deepfool"), ("SquareAttack", "square"),
    ],
)  # fmt: skip
def test_an_attack_by_another_librarys_name(written: str, meant: str) -> None:
    assert suggestion(written, names("attacks")) == f"did you mean '{meant}'?"


def test_a_name_like_no_other_is_not_guessed_at() -> None:
    assert suggestion("nope", names("attacks")) is None


@pytest.mark.parametrize("eps", ["8/255", "8 / 255", np.float64(8 / 255), np.full(8, 8 / 255), [8 / 255] * 8])
@pytest.mark.parametrize("norm", ["Linf", "L_inf", np.inf])
def test_a_budget_and_a_norm_in_other_spellings(samples, eps, norm) -> None:
    network, x, y = samples
    expected = robustkd.attack("fgsm", network, x, y, eps=8 / 255, norm="linf").adversarial
    assert torch.allclose(robustkd.attack("fgsm", network, x, y, eps=eps, norm=norm).adversarial, expected, atol=1e-7)


@pytest.mark.parametrize(("eps", "norm"), [(8, "linf"), (1.5, "linf"), (8, "l2"), (50, "l1")])
def test_a_budget_beyond_all_images_is_questioned(samples, folder, eps, norm) -> None:
    network, x, y = samples
    with pytest.raises(RobustkdError, match=r"more than the distance between any two images.*0\.\.255\?"):
        robustkd.attack("pgd", network, x, y, eps=eps, norm=norm)


def test_a_budget_of_pixels_means_its_norm_its_eps_and_its_region(samples, folder) -> None:
    """It is in the user's unit, and looked at like these, however it is given."""
    network, x, y = samples
    wide = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    wide.load_state_dict(network.state_dict())
    wide[1].weight.data /= 255
    expected = robustkd.attack("pgd", wide, 255 * x, y, norm="l2", eps=50, bounds=(0, 255)).adversarial
    found = robustkd.attack("pgd", wide, 255 * x, y, budget=PixelBudget("l2", 50), bounds=(0, 255)).adversarial
    assert torch.equal(found, expected)
    for budget, told in (
        (PixelBudget("linf", 8), "more than the distance"),
        (PixelBudget(where=Patch(9)), "is not inside images"),
    ):
        with pytest.raises(RobustkdError, match=told):
            robustkd.attack("pgd" if budget.where is None else "patch-pgd", network, x, y, budget=budget)


def test_a_budget_of_more_pixels_than_there_are_is_questioned(samples, folder) -> None:
    network, x, y = samples
    with pytest.raises(RobustkdError, match="more pixels than an image has, 16"):
        robustkd.attack("fmn", network, x, y, eps=50, norm="l0")


@pytest.mark.parametrize(
    "change",
    [
        ("{norm: linf, eps: 0.1}", "{norm: linf, eps: 8}"),
        ("{norm: linf, eps: 0.1}", "{norm: l2, eps: 8.1}"),
        ("{norm: linf, eps: 0.1}", "{norm: linf, eps: 0.1, curve: [2]}"),
        ("{kind: fgsm}", "{kind: fgsm, threat: {norm: linf, eps: 4}}"),
        ("{kind: standard, model: tiny-cnn, epochs: 1}", "{kind: pgd-at, model: tiny-cnn, epochs: 1, inner: {eps: 8}}"),
    ],
)
def test_in_a_campaign_too(folder: Path, change: tuple[str, str]) -> None:
    (folder / "c.yaml").write_text(tiny_campaign().replace(*change))
    assert "is it meant in 0..255?" in said("plan", "c.yaml")


def test_in_a_command_too(folder: Path) -> None:
    assert "8/255" in said(*ONE, "--eps", "8")
    assert CliRunner().invoke(cli, [*ONE, "--eps", "8 / 255", "--norm", "L2"]).exit_code == 0


def test_a_campaign_in_other_spellings(folder: Path) -> None:
    text = tiny_campaign(attacks={"aa": "fgsm"}).replace("{norm: linf, eps: 0.1}", "{norm: Linf, eps: 8 / 255}")
    (folder / "c.yaml").write_text(text)
    plan = planning.build(spec.load(str(folder / "c.yaml")))
    (folder / "c.yaml").write_text(tiny_campaign(attacks={"aa": "{kind: fgsm}"}).replace("eps: 0.1", "eps: 8/255"))
    assert [cell.id for cell in plan.cells] == [cell.id for cell in planning.build(spec.load(str(folder / "c.yaml"))).cells]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ((*ONE, "--device", "gpu"), ("device 'gpu' cannot be used here", "is called cuda")),
        ((*ONE, "--data", "npz"), ("dataset 'npz': file: Field required",)),
        ((*ONE, "--data", "image-folder"), ("dataset 'image-folder': root: Field required",)),
        ((*ONE, "--data", "npz", "--data-set", "fil=1"), ("'npz'", "file")),
        ((*ONE, "--data-set", "root"), ("--data-set root=my-images",)),
        ((*ONE, "--set", "eps=0.1"), ("--eps",)),
        (("attack", "PGD", *ONE[2:]), ("did you mean 'pgd'",)),
    ],
)
def test_one_sentence_and_no_traceback(folder: Path, argv: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert all(part in said(*argv) for part in parts)


def test_a_budget_in_the_block_of_an_attack(folder: Path) -> None:
    (folder / "c.yaml").write_text(tiny_campaign(attacks={"pgd": "{kind: pgd, eps: 8/255}"}))
    assert "attacks.pgd.eps: 'pgd' has no such parameter (write it into the threat" in said("plan", "c.yaml")


def test_images_with_their_channels_last(samples) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RobustkdError, match=r"x\.permute\(0, 3, 1, 2\)"):
        robustkd.attack("pgd", network, torch.rand(4, 8, 8, 3), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("name", ["attack", "run"])
def test_what_is_kept_when_somebody_stops_a_command(monkeypatch, capsys, name: str) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["robustkd", name])
    monkeypatch.setattr(cli, "main", stopped)
    with pytest.raises(SystemExit, match="130"):
        main()
    assert ("is kept" in capsys.readouterr().err) == (name == "run")


def test_one_logit_for_two_classes(samples, folder: Path) -> None:
    one = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    _, x, _ = samples
    assert robustkd.attack("fgsm", one, x, (one(x)[:, 0] > 0).long(), eps=0.0).robust_accuracy == 1
    for network in (one, nn.Sequential(one, nn.Flatten(0))):
        target = ClassifierTarget(network, num_classes=2, input_shape=(3, 4, 4))
        with pytest.raises(RobustkdError, match=r"torch\.zeros_like\(z\), z"):
            target(x)
    z = one(x)
    assert torch.equal(torch.stack([torch.zeros_like(z), z], dim=-1).reshape(-1, 2).argmax(1), (z[:, 0] > 0).long())


def test_pixels_that_left_the_range_by_rounding(samples) -> None:
    network, x, y = samples
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -3e-8, 1 + 2e-7
    found = robustkd.attack("pgd", network, x, y, eps=8 / 255).adversarial
    assert torch.equal(found, robustkd.attack("pgd", network, x.clamp(0, 1), y, eps=8 / 255).adversarial)
    with pytest.raises(RobustkdError, match=r"x\.clamp\(0, 1\)"):
        robustkd.attack("pgd", network, x - 1e-4, y)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0)])
def test_a_target_of_other_pixels(samples, bounds) -> None:
    network, x, y = samples
    target = ClassifierTarget(network, num_classes=5, input_shape=(3, 4, 4), bounds=bounds)
    low, high = bounds
    inputs, eps = low + (high - low) * x, 0.05 * (high - low)
    found = robustkd.attack("pgd", target, inputs, y, eps=eps)
    assert float((found.adversarial - inputs).abs().max()) <= eps * (1 + 1e-5)
    with pytest.raises(RobustkdError, match="outside the bounds"):
        robustkd.attack("pgd", target, inputs + (high - low), y, eps=eps)


def test_masked_classes(samples) -> None:
    network, x, y = samples

    class Masked(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return network(images).index_fill(1, torch.tensor([4]), -torch.inf)

    with pytest.raises(RobustkdError, match="classes that are masked"):
        robustkd.attack("pgd", Masked(), x, y.clamp(max=3))


def test_labels_from_1_to_k(folder: Path) -> None:
    pixels, labels = np.random.default_rng(0).random((20, 1, 8, 8)), 1 + np.arange(20) % 10
    np.savez(folder / "mine.npz", images=pixels, labels=labels)
    data = "{name: npz, file: mine.npz}"
    text = tiny_campaign(defenses=external("net.py:build"))
    (folder / "c.yaml").write_text(text.replace("{name: digits, train: 100, test: 20}", data))
    done = CliRunner().invoke(cli, ["run", "c.yaml", "--no-track", "--workers", "0"])
    assert "number the labels from 0" in " ".join((done.output + done.stderr).split())


def test_no_samples_to_measure_epochs_on(folder: Path) -> None:
    (folder / "c.yaml").write_text(tiny_campaign().replace("test: 20}", "test: 20, validation: 0}"))
    told = said("plan", "c.yaml")
    assert "'validation: 0'" in told
    assert "no training part" not in told
