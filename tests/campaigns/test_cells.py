"""A cell names what it stands on, and travels as JSON."""

from __future__ import annotations

import json

from robustkd.campaigns.plan.cells import AnalysisCell, AttackCell, Cell, ChecksCell, TrainCell

TRAIN = TrainCell(id="s", defense="student", seed=1, target="s", others={"teacher": "t"}, identity={"seed": 1})
ATTACK = AttackCell(
    id="a", defense="student", seed=1, target="s", others={"surrogate": "o"}, judges={"judge": "j"}, attack="transfer"
)
CHECKS = ChecksCell(id="c", defense="student", seed=1, target="s", judges={"judge": "j"}, attacks={"transfer": "a", "pgd": "p"})
ANALYSIS = AnalysisCell(id="n", defense="student", seed=1, target="s", others={"teacher": "t"}, analysis="fid")


def test_what_a_cell_needs_follows_from_what_it_names():
    assert TRAIN.needs == TRAIN.required == ("t",)
    assert ATTACK.needs == ATTACK.required == ("s", "o", "j")
    assert ANALYSIS.needs == ANALYSIS.required == ("s", "t")
    assert CHECKS.needs == ("s", "a", "p")
    assert CHECKS.required == ("s",)  # it also runs where attacks have failed


def test_a_cell_is_the_same_after_it_has_travelled():
    for cell in (TRAIN, ATTACK, CHECKS, ANALYSIS):
        arrived = Cell.from_json(json.loads(json.dumps(cell.to_json())))
        assert arrived == cell
        assert (type(arrived), arrived.identity, arrived.needs) == (type(cell), cell.identity, cell.needs)


def test_a_cell_has_a_title():
    titles = [cell.title for cell in (TRAIN, ATTACK, CHECKS, ANALYSIS)]
    assert titles == [
        "student train · seed 1",
        "student × transfer · seed 1",
        "student checks · seed 1",
        "student fid · seed 1",
    ]
