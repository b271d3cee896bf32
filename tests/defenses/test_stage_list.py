"""A list of stages: each trains its part, in its order, from where the one before has ended, and a list that is none is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import UsageError, target_references
from robustkd.defenses.image.adversarial.pgd_at import PGDATRecipe
from robustkd.defenses.image.representations.stage_list import StageList, StageListParams
from robustkd.defenses.training.stages import run_stages
from robustkd.targets import ClassifierTarget
from support.campaigns import tiny_campaign

BRIEF = {"epochs": 1, "optimiser": "adam", "lr": 0.01, "batch_size": 120}
PLAIN = {"recipe": {"kind": "standard", **BRIEF}}
ROBUST = {"recipe": {"kind": "pgd-at", **BRIEF, "inner": {"steps": 1}}}
MODEL = {"model": "convnet", "model_params": {"norm": "batch", "width": 3}}


def states(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The network before each stage, filled as they are trained."""
    seen: list[dict[str, torch.Tensor]] = []
    kind = StageList._stages

    def watched(self, context, student):
        for stage in kind(self, context, student):
            seen.append({name: weight.clone() for name, weight in student.module.state_dict().items()})
            yield stage

    monkeypatch.setattr(StageList, "_stages", watched)
    return seen


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_each_stage_trains_its_part_and_a_head_leaves_the_statistics_of_the_body(context, monkeypatch):
    seen = states(monkeypatch)
    stages = [ROBUST, {**PLAIN, "train": "body"}, {**PLAIN, "train": "head"}]
    target = StageList(StageListParams(**MODEL, stages=stages)).fit(context())
    end = target.module.state_dict()
    head = {name for name in end if name.startswith("linear")}
    assert len(head) == 2
    assert differing(seen[0], seen[1]) == set(end)
    assert differing(seen[1], seen[2]) == set(end) - head
    assert differing(seen[2], end) == head
    assert all(weight.requires_grad for weight in target.module.parameters())
    assert not any(part.training for part in target.module.modules())
    target.module.train()
    assert target.module.training  # what kept it still is gone


def test_one_stage_is_the_defense_by_itself(context, same_weights):
    alone = plugins.make("defenses", {"kind": "pgd-at", **MODEL, **ROBUST["recipe"]}).fit(context(folder="alone"))
    listed = StageList(StageListParams(**MODEL, stages=[ROBUST])).fit(context(folder="listed"))
    assert same_weights(alone, listed)


def test_a_list_may_start_from_another_defense_and_ask_a_teacher(context, monkeypatch, linear):
    seen, start = states(monkeypatch), linear(3)
    before = {name: weight.clone() for name, weight in start.module.state_dict().items()}
    stages = [{"recipe": {"kind": "kd", "teacher": "t", **BRIEF}}, {"name": "probe", **PLAIN, "train": "head"}]
    params = StageListParams(start="first", stages=stages)
    assert target_references(params) == ["first", "t"]
    target = StageList(params).fit(context(targets={"first": start, "t": linear(4)}))
    assert not differing(seen[0], before)
    assert not differing(start.module.state_dict(), before)
    assert differing(before, target.module.state_dict())


def test_what_is_trained_beside_the_network_is_trained_with_either_part(context):
    """The critic of mi-alpha is no part of the student."""
    stages = [{"recipe": {"kind": "mi-alpha", "teacher": "t", "width": 4, **BRIEF}, "train": "head"}]
    teacher = ClassifierTarget.from_model("tiny-cnn", {"width": 3}, input_shape=(1, 8, 8), num_classes=10)
    logs = []
    given = context(targets={"t": teacher}, log=lambda epoch, metrics: logs.append(metrics))
    target = StageList(StageListParams(model="tiny-cnn", model_params={"width": 3}, stages=stages)).fit(given)
    assert "mutual_information" in logs[0]
    assert not any("own" in name for name, _ in target.module.named_parameters())


MOVED = {
    "stages": {**MODEL, "stages": [{**PLAIN, "train": "head"}, {**PLAIN, "train": "body"}, PLAIN]},
    "m2mkd": {
        "teacher": "t",
        "student_params": {"patch": 4, "width": 8, "depth": 2, "heads": 2},
        **BRIEF,
        "meta_epochs": 1,
        "finish_epochs": 1,
    },
    "unfused": {
        "model": "tiny-cnn",
        "model_params": {"width": 3},
        **BRIEF,
        "known": 6,
        "labelled": 3,
        "contrast_epochs": 1,
        "cluster_epochs": 1,
    },
}


@pytest.mark.parametrize("kind", MOVED)
def test_a_device_whose_move_makes_other_weights_changes_nothing(kind, context, digits, same_weights):
    """On some devices a network has other parameters after the move, so none that was taken before it may be trained or frozen."""
    few = digits.train.select(np.arange(120))

    def fit(folder: str):
        params = {"patch": 4, "width": 8, "depth": 2, "heads": 2}
        teacher = ClassifierTarget.from_model("tiny-vit", params, input_shape=(1, 8, 8), num_classes=10)
        return plugins.make("defenses", {"kind": kind, **MOVED[kind]}).fit(
            context(folder=folder, train=few, targets={"t": teacher})
        )

    torch.manual_seed(0)
    here = fit("here")
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        torch.manual_seed(0)
        there = fit("there")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert same_weights(here, there)
    assert all(weight.requires_grad for weight in there.module.parameters())


def test_it_looks_at_the_threat_where_a_recipe_does():
    assert StageList(StageListParams(**MODEL, stages=[PLAIN, ROBUST])).uses_threat
    assert not StageList(StageListParams(**MODEL, stages=[PLAIN])).uses_threat


def test_it_is_written_as_it_was_read():
    params = StageListParams(**MODEL, stages=[{"recipe": "standard"}, ROBUST])
    written = params.model_dump(mode="json")
    assert "model" not in written["stages"][1]["recipe"]
    assert written["stages"][1]["recipe"]["inner"]["steps"] == 1
    assert StageListParams.model_validate(written) == params


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": []}, "at least 1 item"),
        ({"start": "other"}, "one of the two"),
        ({"model": None, "model_params": {}}, "one of the two"),
        ({"stages": [{"recipe": {"kind": "mtard"}}]}, "'mtard' is no single loss on one network"),
        ({"stages": [{"recipe": {"kind": "standard", "model": "tiny-cnn"}}]}, "the list names the network, leave it out"),
        ({"stages": [{"recipe": {"kind": "kd", "teacher": "t", "student_params": {}}}]}, "the list names the network"),
        ({"stages": [{"recipe": {"kind": "standrad"}}]}, "did you mean 'standard'?"),
        ({"stages": [{"recipe": {"kind": "pgd-at", "epochs": 0}}]}, "defense 'pgd-at': epochs: Input should be greater"),
        ({"stages": [{**PLAIN, "train": "neck"}]}, "'all', 'body' or 'head'"),
        ({"stages": [{**PLAIN, "name": "a"}, {**PLAIN, "name": "a"}]}, "two stages are called 'a'"),
        ({"stages": [{"recipe": 3}]}, "write the kind of a defense"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_sentence(changes, said):
    with pytest.raises(ValidationError) as caught:
        StageListParams.model_validate({**MODEL, "stages": [PLAIN], **changes})
    assert said in str(caught.value)


LISTED = """
    kind: stages
    start: first
    stages:
      - {recipe: {kind: pgd-at, epochs: 2}, train: body}
      - {recipe: {kind: %s, epochs: 1}, train: head}"""
FIRST = "{kind: standard, model: tiny-cnn, epochs: 1}"
CAMPAIGN = tiny_campaign("stages", {"first": FIRST, "listed": LISTED}, test=10, checks=None)


def test_a_campaign_file_with_a_list_is_read_and_one_that_is_wrong_names_the_line(tmp_path):
    campaign = spec.from_text(CAMPAIGN % "standard", "c.yaml", tmp_path)
    assert campaign.defenses["listed"].plugin.uses_threat
    with pytest.raises(UsageError) as caught:
        spec.from_text(CAMPAIGN % "ensemble", "c.yaml", tmp_path)
    assert "c.yaml:12" in str(caught.value)
    assert "'ensemble' is no single loss on one network" in str(caught.value)


def test_a_campaign_with_a_list_is_planned_and_the_recipes_know_the_architecture(tmp_path):
    laid_out = plan.build(spec.from_text(CAMPAIGN % "standard", "c.yaml", tmp_path))
    assert {cell.defense for cell in laid_out.cells if cell.kind == "train"} == {"first", "listed"}
    made = StageList(StageListParams(model="elastic-cnn", stages=[{"recipe": {"kind": "elastic-student", "teacher": "t"}}]))
    assert made._recipes[0].params.student == "elastic-cnn"


def test_killed_in_its_second_stage_it_goes_on_there(context, survives_kills):
    def fit(folder: str):
        return StageList(StageListParams(model="tiny-cnn", model_params={"width": 3}, stages=[PLAIN, ROBUST])).fit(
            context(folder=folder)
        )

    assert survives_kills(fit, PGDATRecipe, [1, 1])


@pytest.mark.parametrize("kind", ["random-teacher", "sla-sd"])
def test_other_defenses_fit_their_head_by_the_same_probe(kind, context, monkeypatch):
    defense = plugins.make(
        "defenses", {"kind": kind, "model": "tiny-cnn", "model_params": {"width": 3}, "probe_epochs": 1, **BRIEF}
    )
    module, seen = sys.modules[type(defense).__module__], []

    def watching(given, stages):
        def each():
            for stage in stages:
                seen.append((stage.name, {name: weight.clone() for name, weight in stage.trained.module.state_dict().items()}))
                yield stage

        run_stages(given, each())

    monkeypatch.setattr(module, "run_stages", watching)
    target = defense.fit(context())
    assert seen[1][0] == "probe"
    moved = differing(seen[1][1], target.module.state_dict())
    assert {name.rpartition(".")[2] for name in moved} == {"weight", "bias"}
    assert all(".linear." in f".{name}" for name in moved)
    assert "probe_epochs" not in type(defense).Params(model="tiny-cnn").model_dump()  # cells of before keep their identity
