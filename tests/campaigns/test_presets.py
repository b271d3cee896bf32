from __future__ import annotations

import pytest

from robustkd.campaigns import presets, spec

COMPARED = {"ard", "rslad", "iad", "adaad", "mtard", "ciard", "kd"}


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid_and_compares_over_three_seeds(name: str) -> None:
    campaign = spec.load(name)
    assert campaign.name == name
    assert campaign.description
    assert campaign.seeds == (0, 1, 2)


def test_the_family_is_compared_with_the_same_teachers() -> None:
    for name in ("robust-distillation-small", "robust-distillation-cifar10"):
        campaign = spec.load(name)
        taught = {use.kind: use for use in campaign.defenses.values() if use.references}
        assert set(taught) == COMPARED
        assert {use.plugin.params.form for use in campaign.defenses.values() if use.kind == "mtard"} == {
            "conference",
            "journal",
        }
        for use in taught.values():
            assert set(use.references) <= {"clean-teacher", "robust-teacher"}
            assert "robust-teacher" in use.references
            assert "teacher" not in use.plugin.params.student
        assert {"fgsm", "cw", "auto"} < set(campaign.attacks)


def test_the_small_comparison_trains_every_student_alike() -> None:
    students = [
        use.plugin.params for use in spec.load("robust-distillation-small").defenses.values() if "teacher" not in use.name
    ]
    for key in ("epochs", "batch_size", "optimiser", "lr", "schedule"):
        assert len({getattr(params, key) for params in students}) == 1, key
    assert len({params.inner.steps for params in students if hasattr(params, "inner")}) == 1


@pytest.mark.parametrize("name", ["defensive-distillation-report", "defensive-distillation-report-small"])
def test_the_report_has_the_temperature_on_its_axis(name: str) -> None:
    distilled = [use.plugin.params for use in spec.load(name).defenses.values() if use.kind == "defensive-distillation"]
    assert [params.temperature for params in distilled] == [1, 5, 10, 20, 50, 100]
    assert len({params.model_dump_json(exclude={"temperature"}) for params in distilled}) == 1
