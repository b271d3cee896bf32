"""Every campaign tells the worst class, and the worst group where its file names some."""

import numpy as np
import pytest

from robustkd import plugins
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.contracts import UsageError
from robustkd.reporting.markdown import markdown
from robustkd.reporting.summary import summary_rows
from robustkd.scoring.results import Results
from support.campaigns import tiny_campaign

DEFENSES = {"plain": "{kind: standard, model: tiny-cnn, epochs: 6, optimiser: adam, lr: 0.02, batch_size: 20}"}


def planned(tmp_path, **sections):
    text = tiny_campaign(train=400, test=60, defenses=DEFENSES, **sections)
    return plan.build(spec.from_text(text, "tiny.yaml", tmp_path))


def test_it_is_told_of_each_defense(tmp_path):
    laid = planned(tmp_path, groups="{low: [0, 1, 2], high: ['7', 8, 9]}")
    results = run(laid, tmp_path / "out", plugins.load("engines", "inline")(0))
    (one,) = results.defenses
    (cell,) = laid.of("attack")
    outcome = samples.read(Store(tmp_path / "out").get(cell.id)).outcome
    shares = {label: outcome.standing[outcome.label == label].mean() for label in np.unique(outcome.label)}
    assert one.worst_class.robust_accuracy == min(shares.values())
    assert shares[int(one.worst_class.name)] == min(shares.values())
    groups = {"low": [0, 1, 2], "high": [7, 8, 9]}
    of = {name: outcome.standing[np.isin(outcome.label, members)].mean() for name, members in groups.items()}
    assert of[one.worst_group.name] == one.worst_group.robust_accuracy == min(of.values())
    assert one.worst_group.of == 2
    assert {name: one.groups[name].robust_accuracy for name in groups} == of
    right = {name: outcome.clean_share[np.isin(outcome.label, members)].mean() for name, members in groups.items()}
    assert {name: one.groups[name].clean_accuracy for name in groups} == pytest.approx(right)
    assert one.groups["low"].n == np.isin(outcome.label, groups["low"]).sum()
    assert one.groups["low"].ci_low < of["low"] < one.groups["low"].ci_high
    assert Results.from_dict(results.to_dict()) == results
    page = markdown(results, summary_rows(results))
    assert "## Worst class" in page
    assert f"{one.worst_group.name}: " in page
    assert [now.id for now in laid.cells] == [cell.id for cell in planned(tmp_path).cells]  # groups change no cell


def test_a_group_of_a_class_that_there_is_not_is_placed(tmp_path):
    with pytest.raises(UsageError, match=r"tiny\.yaml: groups\.odd: the data have no class '12'"):
        planned(tmp_path, groups="{odd: [1, 12]}")
