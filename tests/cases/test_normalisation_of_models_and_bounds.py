"""``normalise`` where other models stand beside the attacked one, and where the inputs are not in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.contracts import UsageError
from robustkd.normalisation.layer import Normalise
from robustkd.targets import ClassifierTarget
from support.campaigns import external, tiny_campaign

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def samples() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    x = torch.rand(100, 3, 8, 8)
    return net, x, nn.Sequential(Normalise(MEAN, STD), net)(x).argmax(1)


def test_a_surrogate_is_normalised_as_the_model_is(samples: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = samples
    behind = nn.Sequential(Normalise(MEAN, STD), net)
    settings = {"surrogates": "other", "attacks": [{"kind": "pgd", "steps": 5}]}
    target = ClassifierTarget(behind, num_classes=10, input_shape=(3, 8, 8))

    def found(model: nn.Module, other: nn.Module | ClassifierTarget, normalise: str | None) -> Tensor:
        given = {"eps": 4 / 255, "models": {"other": other}, "params": settings}
        return robustkd.attack("transfer", model, x, y, normalise=normalise, **given).adversarial

    wanted = found(behind, behind, None)
    assert torch.equal(found(net, net, "imagenet"), wanted)
    assert torch.equal(found(net, target, "imagenet"), wanted)


def test_constants_for_pixels_are_not_applied_to_other_inputs(
    samples: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, say: Callable[..., tuple[int, str]]
) -> None:
    net, x, y = samples
    for call in (robustkd.attack, robustkd.evaluate):
        given = ("fgsm", net) if call is robustkd.attack else (net,)
        with pytest.raises(UsageError, match="normalise and bounds"):
            call(*given, x * 255, y, eps=1, bounds=(0, 255), normalise="imagenet")  # type: ignore[operator]
    (tmp_path / "net.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    command = ("attack", "fgsm", "--model", "net.py:build", "--n", 8, "--eps", 1, "--normalise", "mnist")
    for bounds in (("--bounds", "[0, 255]"), ("--data-set", "bounds=[0, 255]")):
        code, told = say(*command, *bounds)
        assert code == 2, told
        assert "--normalise, and" in told


def test_nor_are_they_in_a_campaign(say: Callable[..., tuple[int, str]]) -> None:
    Path("net.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    data = "{name: digits, test: 8, bounds: [0, 255]}"
    Path("c.yaml").write_text(tiny_campaign("c", external("net.py:build", normalise="mnist"), data=data, eps=1))
    code, told = say("run", "c.yaml", "--workers", "0", "--no-track", "--quiet")
    assert code != 0
    assert "the data have bounds, and this defense normalises pixels in [0, 1]" in told.replace("\n", " ")
