"""``credible`` means that strong attacks of different kinds were tried and add nothing, and never that nobody tried."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import robustkd
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.store import Store
from robustkd.cli import cli
from robustkd.contracts import Finding
from robustkd.scoring.verdict import RULES, unexamined, verdict
from support.campaigns import external, tiny_campaign
from support.disguises import DISGUISES, Linear, Network, opaque
from support.nearest_mean import NEAREST_MEAN

EPS = 0.15
WEAK = {"kind": "square", "queries": 30}
STRONG = {"kind": "autoattack", "version": "adaptive"}


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear.of_digits(100)


def audited(linear: Linear, attacks, disguise=None) -> robustkd.EvaluationReport:
    return robustkd.audit(Network(linear, disguise), linear.x, linear.y, eps=EPS, attacks=attacks)


def reference(report: robustkd.EvaluationReport) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.name == "reference-attack"]
    return finding


def test_a_weak_attack_on_an_honest_network_is_called_weak_and_not_masked(linear):
    report = audited(linear, WEAK)
    truth = linear.robust_accuracy(EPS)
    assert report.robust_accuracy > truth + 0.05
    assert report.verdict == "not credible"
    assert [finding.name for finding in report.findings if finding.fired] == ["reference-attack"]
    assert "too weak" in reference(report).explanation
    assert "misleads" not in reference(report).explanation
    assert truth <= report.remedy.robust_accuracy <= truth + 0.02
    # The loss that is projected is no more than the whole, which is known here.
    assert reference(report).evidence["share"] <= report.robust_accuracy - truth + 0.01


@pytest.mark.slow
def test_a_strong_attack_on_an_honest_network_is_believed_and_costs_little(linear):
    report = audited(linear, STRONG)
    assert report.robust_accuracy == pytest.approx(linear.robust_accuracy(EPS), abs=0.02)
    assert report.verdict == "credible"
    finding = reference(report)
    assert set(finding.evidence["run_by_the_campaign"]) == {"margin-pgd", "square", "autoattack"}
    (attack,) = report.attacks.values()
    spent = int(attack.outcome.passes.sum())
    assert finding.forward_passes + finding.backward_passes < 0.15 * spent


@pytest.mark.parametrize(
    ("attacks", "disguise"),
    [
        ("fgsm", opaque),
        pytest.param("fgsm", DISGUISES["noise"], marks=pytest.mark.slow),
        pytest.param("fgsm", DISGUISES["detached"], marks=pytest.mark.slow),
        pytest.param(WEAK, opaque, marks=pytest.mark.slow),
    ],
)
def test_a_hidden_gradient_is_never_believed_and_the_remedy_reaches_the_truth(linear, attacks, disguise):
    report = audited(linear, attacks, disguise)
    truth = linear.robust_accuracy(EPS)
    assert report.robust_accuracy > truth + 0.05
    assert report.verdict == "not credible"
    assert truth <= report.remedy.robust_accuracy <= truth + 0.05
    assert "misleads" in reference(report).explanation


def finding(name: str, **more) -> Finding:
    return Finding(name, "severe", False, **more)


def test_nothing_is_credible_by_absence():
    quiet, away = finding("a", decisive=True), finding("b", decisive=True, applicable=False, evidence={"reason": "no attack"})
    other = finding("c")
    assert verdict([quiet, other]) == "credible"
    assert verdict([quiet, away]) == "suspect"
    assert unexamined([quiet, away]) == "b: no attack"
    assert verdict([other]) == "suspect"
    assert "no check that decides" in unexamined([other])
    assert verdict([other], rules=1) == "credible"  # as it was judged then


CAMPAIGN = tiny_campaign(
    "judged",
    external("m.py:build"),
    {"pgd": "{kind: pgd, steps: 40, restarts: 2, loss: margin}"},
    train=20,
    test=40,
    eps=0.15,
    checks=None,
)


def test_a_verdict_of_former_rules_is_shown_as_theirs_until_it_is_judged_again(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(NEAREST_MEAN)
    Path("c.yaml").write_text(CAMPAIGN)

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    call("run", "c.yaml", "--out", "o", "--workers", "0", "--no-track", "-q")
    assert call("report", "c.yaml", "--out", "o", "--rejudge").startswith("every verdict is by the present rules")
    (findings,) = [path for path in Path("o").rglob("findings.json") if "reference-attack" in path.read_text()]
    _as_a_former_version(findings)

    def row(*more: str) -> dict:
        call("report", "c.yaml", "--out", "o", *more)
        page = Path("o/report.html").read_text()
        return {"former": "is by former rules" in page, "not examined": "not examined" in page}

    assert row() == {"former": True, "not examined": False}
    told = call("report", "c.yaml", "--out", "o", "--rejudge")
    assert re.search(rf"mine \(seed 0\): credible by rules 1, suspect by rules {RULES}; .*robustkd run", told)
    assert row("--rejudge") == {"former": False, "not examined": True}
    # A run does what judging cannot: it looks, and nothing else is done again.
    assert "2 cells to do, 1 finished before" in call("run", "c.yaml", "--out", "o", "--workers", "0", "--no-track")
    assert json.loads(Path("o/results.json").read_text())["defenses"][0]["verdict_rules"] == RULES


def _as_a_former_version(findings: Path) -> None:
    """Make the cell one that was written before there was a reference attack: other checks, so another cell, and no rules."""
    store, cell = Store(Path("o")), findings.parent
    content = json.loads(findings.read_text())
    content["findings"] = [item for item in content["findings"] if item["name"] != "reference-attack"]
    for item in content["findings"]:
        del item["decisive"]
    meta = store.get(cell.name).meta
    checks = [check for check in meta.identity["checks"] if check["kind"] != "reference-attack"]
    identity = {**meta.identity, "checks": checks}
    former = meta.model_copy(update={"id": digest(identity), "identity": identity, "rules": None})
    shutil.rmtree(cell)
    with store.write(former.id, former) as folder:
        (folder / "findings.json").write_text(json.dumps(content))
