"""A defense that cannot be trained under the campaign's threat model was planned, and its cells failed once the others had run."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from robustkd import plugins
from robustkd.cli import cli
from robustkd.contracts import ThreatModel
from support.campaigns import tiny_campaign

CASES = {
    "ibp in l2": (
        "{kind: ibp, model: tiny-cnn}",
        "{norm: l2, eps: 0.5}",
        "trains for balls in linf, and the threat model is l2 eps 0.5",
    ),
    "sabr in l1": ("{kind: sabr, model: tiny-cnn}", "{norm: l1, eps: 2}", "trains for balls in linf"),
    "free in l0": ("{kind: free, model: tiny-cnn}", "{norm: l0, eps: 3}", "is trained with PGD, which"),
    "a stage of pgd-at in l0": (
        "{kind: stages, model: tiny-cnn, stages: [{recipe: {kind: pgd-at}}]}",
        "{norm: l0, eps: 3}",
        "is trained with PGD, which",
    ),
    "pgd-at on condensed data in l0": (
        "{kind: train-on-condensed, data: set, recipe: {kind: pgd-at, model: tiny-cnn}}",
        "{norm: l0, eps: 3}",
        "is trained with PGD, which",
    ),
    "pgd-at in l0": ("{kind: pgd-at, model: tiny-cnn}", "{norm: l0, eps: 3}", "is trained with PGD, which"),
}


@pytest.mark.parametrize(("defense", "threat", "said"), CASES.values(), ids=CASES)
def test_it_is_refused_before_anything_runs(defense: str, threat: str, said: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    others = {
        "plain": "{kind: standard, model: tiny-cnn}",
        "set": "{kind: condensed-data, condenser: {kind: random-subset, images_per_class: 2}}",
    }
    text = tiny_campaign(
        defenses={**others, "mine": defense}, attacks={"pgd": "{kind: pgd}"}, matrix="{exclude: [{defense: set}]}"
    )
    (tmp_path / "c.yaml").write_text(text.replace("{norm: linf, eps: 0.1}", threat))
    assert threat in (tmp_path / "c.yaml").read_text()
    done = CliRunner().invoke(cli, ["plan", "c.yaml"])
    told = done.output + str(done.exception)
    assert done.exit_code != 0
    assert "defense 'mine'" in told
    assert said in told


def test_what_has_no_budget_of_its_own_trains_under_any() -> None:
    for kind in ("standard", "randomised-smoothing"):
        defense = plugins.make("defenses", {"kind": kind, "model": "tiny-cnn"})
        assert defense.refusal(ThreatModel("l0", 3)) is None
