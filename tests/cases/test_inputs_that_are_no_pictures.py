"""Inputs that are not (C, H, W), images of two or four channels, and exported models: a right number, or one clear sentence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd.contracts import TargetError, UsageError

SHAPES = ((16,), (4, 4), (1, 2, 2, 4))


class Linear(nn.Module):
    """Sixteen numbers in whatever shape."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3, bias=False)
        self.head.weight.data = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    x = torch.rand(12, 16, generator=torch.Generator().manual_seed(1))
    return x, Linear()(x).argmax(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["square", "di2-fgsm", "ti-fgsm", "corruption"])
def test_an_attack_on_images_says_so(name: str, shape: tuple[int, ...], samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    with pytest.raises(TargetError, match=r"is for images \(C, H, W\), and the inputs have the shape \("):
        robustkd.attack(name, Linear(), x.reshape(-1, *shape), y, eps=0.1)


@pytest.mark.usefixtures("no_remedies")
@pytest.mark.parametrize("shape", SHAPES)
def test_other_attacks_do_not_mind(shape: tuple[int, ...], samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    for attack in ({"kind": "pgd", "steps": 5}, {"kind": "autoattack", "version": "rand", "steps": 3}):
        found = robustkd.attack(attack, Linear(), x.reshape(-1, *shape), y, eps=0.1)
        assert found.robust_accuracy == robustkd.attack(attack, Linear(), x.reshape(-1, 1, 4, 4), y, eps=0.1).robust_accuracy
    report = robustkd.audit(Linear(), x.reshape(-1, *shape), y, attacks=["fgsm", "square"], eps=0.1)
    assert report.failed.keys() == {"square"}
    assert not [finding.name for finding in report.findings if not finding.ran]


@pytest.mark.parametrize("channels", [2, 4])
def test_corruptions_of_images_that_are_neither_grey_nor_coloured(channels: int, samples: tuple[Tensor, Tensor]) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(channels * 256, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    torch.manual_seed(0)
    net, x = Wide(), torch.rand(4, channels, 16, 16)
    found = robustkd.attack({"kind": "corruption", "severity": 3}, net, x, net(x).argmax(1))
    assert 0 <= found.robust_accuracy <= 1
    assert not torch.equal(torch.as_tensor(found.adversarial), x)


def test_an_exported_model(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    program = torch.export.export(Linear(), (x[:4],), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}})
    with pytest.raises(UsageError, match=r"the model is of type ExportedProgram\n  fix: pass its module, model.module\(\)"):
        robustkd.attack("pgd", program, x, y, eps=0.1)
    given = {"eps": 0.1, "steps": 5}
    found = robustkd.attack("pgd", program.module(), x, y, **given)
    assert found.robust_accuracy == robustkd.attack("pgd", Linear(), x, y, **given).robust_accuracy


@pytest.mark.usefixtures("no_remedies")
@pytest.mark.parametrize("sharp", [1.0, 5.0])
def test_an_ensemble_of_somebody_else_that_averages_probabilities(sharp: float, samples: tuple[Tensor, Tensor]) -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([Linear(), Linear()])
            self.members[1].head.weight.data.mul_(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(sharp * member(x)).softmax(1) for member in self.members]).mean(0)

    class Logits(Ensemble):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(sharp * member(x)).log_softmax(1) for member in self.members]).logsumexp(0)

    x, y = samples
    mine, known = (
        robustkd.evaluate(net, x, y, attacks=[{"kind": "pgd", "steps": 5}], eps=0.1) for net in (Ensemble(), Logits())
    )
    assert (mine.standing == known.standing).all()
    assert mine.verdict == known.verdict
    (told,) = [finding for finding in mine.findings if finding.name == "output-type"]
    assert "whose logarithm takes the place of its logits" in told.explanation
