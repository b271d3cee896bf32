from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.results.collect import collect
from robustkd.campaigns.store.store import Store
from robustkd.contracts import Batch, TargetError, ThreatModel, UsageError
from robustkd.reporting import write_report
from robustkd.scoring.results import Results
from robustkd.targets import ClassifierTarget, EnsembleTarget
from robustkd.tracking.records import TrackedCampaign, defense_record
from support.campaigns import tiny_campaign

DEFENSES = {
    "one": "{kind: standard, model: tiny-cnn, epochs: 6, optimiser: adam, lr: 0.01}",
    "two": "{kind: standard, model: tiny-cnn, epochs: 6, optimiser: adam, lr: 0.01, replica: 1}",
    "both": "{kind: ensemble, members: [one, two]}",
}
ANALYSES = """\
analyses:
  transfer: {kind: transferability, defenses: [both], steps: 5, restarts: 2}
  wider: {kind: transferability, defenses: [both], steps: 5, restarts: 2, eps: 0.3}
  diversity: {kind: diversity, defenses: [both], samples: 40, steps: 2}
"""
TEXT = tiny_campaign("analysed", DEFENSES, train=300, test=60, matrix="{exclude: [{defense: one}, {defense: two}]}") + ANALYSES


class Log(Observer):
    def __init__(self) -> None:
        self.titles: list[str] = []

    def succeeded(self, cell, result) -> None:  # type: ignore[no-untyped-def]
        self.titles.append(cell.title)


def plan_of(text: str) -> planning.Plan:
    return planning.build(spec.from_text(text, "test.yaml", Path()))


def linear(weight: np.ndarray) -> ClassifierTarget:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(weight))
        module[1].bias.zero_()
    return ClassifierTarget(module, num_classes=2, input_shape=(1, 4, 4), bounds=(-9.0, 9.0))


def samples_of(members: Sequence[ClassifierTarget], n: int = 400) -> Batch:
    torch.manual_seed(1)
    x = torch.randn(n, 1, 4, 4)
    return Batch(x, members[0](x).argmax(1), torch.arange(n), logits=EnsembleTarget(list(members))(x))


@pytest.fixture(scope="module")
def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 16)), rng.normal(size=(2, 16))
    return [w.astype(np.float32) for w in (first, first + 0.6 * second, first - 0.6 * second)]


def test_the_matrix_of_linear_members_is_the_analytic_one(weights: list[np.ndarray]) -> None:
    # Between two classes the gradient's sign is the same everywhere, so that PGD ends in the ball's corner.
    members = [linear(w) for w in weights]
    batch = samples_of(members)
    target = EnsembleTarget(members)
    kind = plugins.load("analyses", "transferability")
    table = kind(kind.Params(steps=12, restarts=2, eps=0.2)).run(target, batch, ThreatModel(eps=9.0), 0)
    x, y = batch.inputs.flatten(1).numpy(), batch.labels.numpy()
    right = np.all([(x @ w.T).argmax(1) == y for w in weights], axis=0)
    assert 100 < right.sum() < 400
    x, y = x[right], y[right]
    expected = np.zeros((3, 4))
    for i, w in enumerate(weights):
        corner = x + 0.2 * np.sign(w[1 - y] - w[y])
        answers = [corner @ v.T for v in weights]
        shares = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in answers]
        expected[i] = [(p.argmax(1) != y).mean() for p in (*shares, sum(shares))]
    np.testing.assert_allclose(table.values, expected, atol=1e-9)
    assert table.metrics["transferability"] == pytest.approx((expected[:, :3].sum() - np.trace(expected[:, :3])) / 6)
    assert table.metrics["transferability_to_ensemble"] == pytest.approx(expected[:, 3].mean())
    assert f"of {right.sum()} samples" in table.caption
    assert (len(table.rows), table.columns[-1], table.shares) == (3, "ensemble", True)


def test_a_copy_shares_every_feature_and_a_stranger_does_not(weights: list[np.ndarray]) -> None:
    kind = plugins.load("analyses", "diversity")
    diversity = kind(kind.Params(eps=4.0, steps=20))

    def table(*members: ClassifierTarget) -> np.ndarray:
        return np.array(diversity.run(EnsembleTarget(list(members)), samples_of(members), ThreatModel(eps=0.1), 0).values)

    copies = table(linear(weights[0]), linear(weights[0]))
    np.testing.assert_allclose(copies, copies[0, 0])
    strangers = table(linear(weights[1]), linear(weights[2]))
    assert strangers[0, 1] > 1.5 * strangers[0, 0]
    assert strangers[1, 0] > 1.5 * strangers[1, 1]


def test_an_analysis_of_a_single_network_is_refused(weights: list[np.ndarray]) -> None:
    member = linear(weights[0])
    for name in ("transferability", "diversity"):
        with pytest.raises(TargetError, match="members of an ensemble"):
            plugins.load("analyses", name)().run(member, samples_of([member]), ThreatModel(eps=0.1), 0)


def test_a_campaign_makes_its_analyses_once_and_shows_them(tmp_path: Path) -> None:
    plan, log = plan_of(TEXT), Log()
    results = run(plan, tmp_path, InlineEngine(), observers=[log])
    assert {"both transfer · seed 0", "both wider · seed 0", "both diversity · seed 0"} <= set(log.titles)
    (row,) = results.defenses
    assert (row.defense, row.status, list(row.analyses)) == ("both", "done", ["transfer", "wider", "diversity"])
    narrow, wide = (np.array(row.analyses[name].values) for name in ("transfer", "wider"))
    assert narrow.shape == (2, 3)
    assert (wide >= narrow).all()
    assert wide.mean() > narrow.mean()
    assert Results.from_dict(json.loads(json.dumps(results.to_dict()))) == results

    again = Log()
    run(plan, tmp_path, InlineEngine(), observers=[again])
    assert again.titles == []
    other = plan_of(TEXT.replace("eps: 0.3", "eps: 0.2"))
    run(other, tmp_path, InlineEngine(), observers=[again])
    assert again.titles == ["both wider · seed 0"]

    files = write_report(results, tmp_path / "report")
    assert files.analyses is not None
    assert files.analyses.stat().st_size > 5000
    page, text = files.html.read_text(), files.markdown.read_text()
    told = f"{100 * narrow[0, 1]:.1f}"
    assert f">{told}</td>" in page.partition("both: transfer")[2].partition("both: wider")[0]
    assert f"| {told} |" in text.partition("both: transfer")[2].partition("both: wider")[0]
    record = defense_record(TrackedCampaign("analysed", plan.id, TEXT, results.data), row)
    points = {(point.metric, point.step): point.value for point in record.metrics}
    assert points["transferability", 1] == pytest.approx((narrow[0, 1] + narrow[1, 0]) / 2, rel=1e-5)
    assert points["transferability", 2] == pytest.approx((wide[0, 1] + wide[1, 0]) / 2, rel=1e-5)
    assert ("diversity", 1) in points


def test_what_is_missing_makes_the_campaign_incomplete(tmp_path: Path) -> None:
    text = TEXT.replace("defenses: [both], samples", "defenses: [one], samples").replace(
        "exclude: [{defense: one}, ", "exclude: ["
    )
    plan = plan_of(text)
    results = run(plan, tmp_path, InlineEngine())
    assert results.incomplete
    row = next(item for item in results.defenses if item.defense == "one")
    assert row.status == "failed"
    assert row.robust_accuracy is not None
    assert "one diversity" in str(row.error)
    assert collect(plan, Store(tmp_path), {}).defenses[0].status == "pending"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("kind: diversity", "kind: diversty"), "unknown analysis 'diversty'.*'diversity'"),
        (("defenses: [both], samples", "defenses: [bth], samples"), "no defense 'bth'.*'both'"),
        (("defenses: [both], samples", "defenses: [two], samples"), "keeps 'two' out of every attack"),
        (("samples: 40", "sample: 40"), "unknown key.*'samples'"),
        (("defenses: [both], samples: 40", "samples: 40"), "analyses.diversity.*missing"),
    ],
)
def test_mistakes_in_the_block_are_told_with_their_place(change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)test.yaml:1[0-9].*{complaint}"):
        plan_of(TEXT.replace(*change))
