"""Model parsing tells victims apart that leave a trace, and none that leave none."""

import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.contracts import ThreatModel
from robustkd.evaluation.images import make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget

THREAT = ThreatModel("linf", 0.1)


def striped(horizontal, seed):
    """A linear network that looks at stripes alone, so that the sign of its gradient is striped."""
    torch.manual_seed(seed)
    along = torch.randn(2, 8, 1).expand(2, 8, 8) if horizontal else torch.randn(2, 1, 8).expand(2, 8, 8)
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        linear.weight.copy_((along + 0.01 * torch.randn(2, 8, 8)).flatten(1))
        linear.bias.zero_()
    return ClassifierTarget(nn.Sequential(nn.Flatten(), linear), num_classes=2, input_shape=(1, 8, 8))


def data(target, n=80):
    torch.manual_seed(1)
    x = torch.rand(n, 1, 8, 8)
    with torch.no_grad():
        y = target(x).argmax(1)
    return with_clean_logits(target, make_batch(x, y))


def parsed(target, families, **params):
    names = {f"{family}-{number}": one for family, members in families.items() for number, one in enumerate(members)}
    told = {family: [f"{family}-{number}" for number in range(len(members))] for family, members in families.items()}
    made = plugins.make("analyses", {"kind": "model-parsing", "families": told, "attack": "fgsm", "epochs": 10, **params})
    return made.with_targets(names).run(target, data(target), THREAT, 0)


def families():
    return {
        kind: [striped(kind == "rows", 10 * number + (kind == "rows")) for number in range(4)] for kind in ("rows", "columns")
    }


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_a_victim_that_was_not_seen_goes_to_its_family(kind):
    table = parsed(striped(kind == "rows", 99), families())
    assert table.rows[0] == "this model"
    assert dict(zip(table.columns, table.values[0], strict=True))[kind] > 0.9
    assert table.metrics[f"attributed_to_{kind}"] > 0.9
    assert table.metrics["chance"] == 0.5
    for row in table.values:
        assert sum(row) == pytest.approx(1)


def test_without_a_perturbation_one_family_gets_all():
    table = parsed(striped(True, 99), families())
    assert sorted(table.values[2]) == [0, 1]


def test_labels_in_a_random_order_teach_nothing():
    """The share of the right family over victims of both kinds is that of chance."""
    right = []
    for number in range(3):
        for kind in ("rows", "columns"):
            table = parsed(striped(kind == "rows", 200 + number), families(), epochs=3)
            right.append(dict(zip(table.columns, table.values[1], strict=True))[kind])
    assert sum(right) / len(right) == pytest.approx(0.5, abs=0.25)
