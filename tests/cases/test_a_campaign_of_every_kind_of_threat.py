"""A patch, a few pixels, a rotation and an attack that sees decisions alone in one campaign, to its end; and results beyond each budget."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from torch import Tensor

import robustkd
from robustkd.contracts import Attack, AttackResult, Batch, SpatialBudget, Target, ThreatModel
from robustkd.contracts.image_changes import PARAMETERS
from robustkd.contracts.random import SampleRng
from robustkd.plugin_kit import fixtures

THREATS = {
    "patch": "linf <= 1 in a patch of 3 x 3 at the worst place",
    "pixels": "l0 <= 3",
    "turned": "rotation <= 15°, translation <= 5 %",
    "decisions": "linf <= 0.1",
}
CAMPAIGN = """\
version: 1
name: every-kind
data: {name: digits, train: 400, test: 24}
threat: {norm: linf, eps: 0.1}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 6, batch_size: 32, lr: 0.05}
attacks:
  patch: {kind: patch-pgd, steps: 5, threat: {where: {patch: 3}}}
  pixels: {kind: sparse-rs, queries: 60, threat: {norm: l0, eps: 3}}
  turned: {kind: rotate-grid, rotations: 3, translations: 3, threat: {rotation: 15, translation: 0.05}}
  decisions: {kind: hopskipjump, queries: 150}
"""


def test_each_is_in_the_table_the_report_the_gallery_mlflow_and_the_checks(
    only_checks: Callable[..., None], tmp_path: Path
) -> None:
    only_checks("threat-model-audit", "black-box-beats-white-box", "not-trained")
    results = robustkd.run(CAMPAIGN, out=tmp_path, workers=0)
    cells = {cell.attack: cell for cell in results.cells}
    plain = results.defenses[0]
    assert {name: cell.status for name, cell in cells.items()} == dict.fromkeys(THREATS, "done")
    assert all(cell.robust_accuracy < plain.clean_accuracy for cell in cells.values())
    assert plain.robust_accuracy == cells["decisions"].robust_accuracy  # the others are under threat models of their own
    assert plain.other_threats == {
        THREATS[name]: pytest.approx(cells[name].robust_accuracy) for name in ("patch", "pixels", "turned")
    }
    assert cells["decisions"].by_queries
    audit = next(finding for finding in plain.checks if finding.name == "threat-model-audit")
    assert audit.ran
    assert not audit.fired
    assert audit.evidence["largest_distance"]["pixels"] == 3
    assert audit.evidence["largest_distance"]["turned"] <= 1  # a share of the budget

    page = (tmp_path / "report.html").read_text()
    told = page.replace("&lt;=", "<=").replace("L∞ ≤", "linf <=").replace("L0 ≤", "l0 <=")
    gallery = told[told.index('<section id="gallery">') :]
    gallery = gallery[: gallery.index("</section>")]
    for name, threat in THREATS.items():
        assert threat in told, name
        assert name in gallery, name
    assert (tmp_path / "gallery.png").is_file()
    assert json.loads((tmp_path / "results.json").read_text())["cells"]

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = {run.info.run_name: run for run in client.search_runs(experiments)}
    for name, cell in cells.items():
        run = runs[f"plain × {name} · seed 0"]
        assert run.data.metrics["robust_accuracy"] == pytest.approx(cell.robust_accuracy), name
    assert runs["plain × patch · seed 0"].data.params["where"] == "in a patch of 3 x 3 at the worst place"


class _Beyond(Attack):
    """Keeps to the threat model but for one sample of twenty, which ``how`` takes beyond it."""

    regions = ("given", "chosen")
    norms = ("linf", "l0")

    def __init__(self, how: Callable[[Batch, ThreatModel], tuple[Tensor, dict[str, Tensor]]], space: str) -> None:
        super().__init__()
        self.how, self.space = how, space

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        found, extras = self.how(batch, threat)
        own = (batch.index == 3).view(-1, 1, 1, 1)
        count = torch.ones(len(batch), dtype=torch.int64)
        return AttackResult(torch.where(own, found, batch.inputs), own.flatten(), count, count, extras=extras)


def outside_the_mask(batch: Batch, threat: ThreatModel) -> tuple[Tensor, dict[str, Tensor]]:
    assert batch.movable is not None
    return torch.where(batch.movable, batch.inputs, 1 - batch.inputs), {}


def one_pixel_too_many(batch: Batch, threat: ThreatModel) -> tuple[Tensor, dict[str, Tensor]]:
    found = batch.inputs.clone()
    found.flatten(1)[:, : int(threat.eps) + 1] = 0.37
    return found, {}


def a_wider_angle(batch: Batch, threat: ThreatModel) -> tuple[Tensor, dict[str, Tensor]]:
    budget = threat.budget
    assert isinstance(budget, SpatialBudget)
    parameters = batch.inputs.new_zeros((len(batch), *budget.shape(tuple(batch.inputs.shape[1:]))))
    parameters[3, 0] = 1.1
    return budget.rendered(batch.inputs, parameters), {PARAMETERS: parameters}


@pytest.mark.parametrize(
    ("how", "space", "threat"),
    [
        (outside_the_mask, "pixels", {"eps": 1.0, "where": {"patch": 3, "place": "random"}}),
        (one_pixel_too_many, "pixels", {"norm": "l0", "eps": 3}),
        (a_wider_angle, "spatial", {"budget": SpatialBudget(15, 0.05)}),
    ],
    ids=["mask", "count", "angle"],
)
def test_the_audit_names_a_sample_outside_mask_count_or_angle(
    only_checks: Callable[..., None], how: Callable, space: str, threat: dict[str, object]
) -> None:
    only_checks("threat-model-audit")
    target = fixtures.classifier()
    data = fixtures.digits().train
    x, y = torch.as_tensor(data.unit()[:20]), torch.as_tensor(data.labels[:20])
    report = robustkd.audit(target, x, y, attacks=_Beyond(how, space), **threat)
    audit = next(finding for finding in report.findings if finding.name == "threat-model-audit")
    assert audit.fired
    assert list(audit.evidence["left_budget"].values()) == [[3]]
    assert report.verdict != "credible"
    right = float((target(x).argmax(1) == y).float().mean())
    assert report.robust_accuracy == pytest.approx(right)  # the sample does not count as broken
