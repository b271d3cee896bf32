from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustkd.campaigns.file import presets, spec

THREE_SEEDS = {  # its models are tiny
    "distilled-generators-small",
    "erasers-small",
    "language-students-small",
    "refusal-distillation-small",
    "refusal-training-small",
    "sentence-judges-small",
    "text-detectors-small",
}
ENSEMBLE = Path(presets.__file__).parents[1] / "starters" / "ensemble.yaml"
COMPARED = {"ard", "rslad", "iad", "adaad", "mtard", "ciard", "kd"}


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid_and_compares_over_seeds(name: str) -> None:
    campaign = spec.load(name)
    assert campaign.name == name
    assert campaign.description
    # A model that answers costs too much for three; its requests are many, and its intervals are over them.
    assert campaign.seeds == ((0, 1, 2) if campaign.data.modality == "images" or name in THREE_SEEDS else (0,))


@pytest.mark.parametrize("source", [*presets.names(), ENSEMBLE], ids=str)
def test_every_preset_has_a_row_that_the_others_must_be_better_than(source: str | Path) -> None:
    """Of an ensemble of plain networks, or of a model that has only learnt to refuse, the kind does not say it."""
    campaign = spec.load(source)
    assert any(not campaign.excluded(row, attack) for row in campaign.undefended for attack in campaign.attacks)


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


@pytest.mark.parametrize("name", ["robust-distillation-small", "newest-distillation-small"])
def test_the_small_comparison_trains_every_student_alike(name: str) -> None:
    students = [use.plugin.params for use in spec.load(name).defenses.values() if "teacher" not in use.name]
    for key in ("epochs", "batch_size", "optimiser", "lr", "schedule"):
        assert len({getattr(params, key) for params in students}) == 1, key
    assert len({params.inner.steps for params in students if hasattr(params, "inner")}) == 1


def test_the_newest_methods_are_in_their_comparison() -> None:
    uses = spec.load("newest-distillation-small").defenses
    assert {use.kind for use in uses.values()} >= {"akd2", "iad-ii", "adaad", "adaiad"}


NEWEST_WITHOUT_THEIR_IDEA = [
    ("newest-distillation-small", "rslad-igdm", "rslad", {"igdm"}),
    ("newest-distillation-small", "saad", "saad-even", {"adaptive"}),
    ("newest-distillation-small", "peeraid", "peeraid-own", {"peer_examples"}),
]
WITHOUT_THEIR_IDEA = [
    ("representation-students-small", "m2mkd-robust", "m2mkd-control", {"alpha"}),
    ("representation-students-small", "krr-st", "krr-st-control", {"learnt"}),
    ("representation-students-small", "ssld", "ssld-control", {"unlabelled"}),
    ("representation-students-small", "robust-finetuned", "robust-probe", {"stages"}),
    ("representation-students-small", "dmae-robust", "dmae-whole", {"mask"}),
    ("representation-students-small", "logits-robust", "kd-robust", {"alpha", "epochs"}),
    ("representation-students-small", "hybrid-robust", "features-robust", {"relations"}),
    ("representation-students-small", "further", "further-control", {"weight"}),
    ("representation-students-small", "weighted", "weighted-control", {"power"}),
    ("adaptive-students-small", "acm", "acm-control", {"entropy_weight", "diversity_weight"}),
    ("adaptive-students-small", "multi-exit", "multi-exit-control", {"weight"}),
    ("adaptive-students-small", "elastic", "elastic-control", {"trained"}),
    ("long-tail-small", "mdcs", "plain", {"priors", "weight"}),
    ("long-tail-small", "mdcs", "priors", {"weight"}),
    ("long-tail-small", "mdcs", "agreement", {"priors"}),
    ("continual-small", "wa", "replay", {"distil", "align"}),
    ("continual-small", "wa-at", "replay-at", {"distil", "align"}),
    ("continual-small", "replay", "finetune", {"memory"}),
    ("continual-small", "replay-infinite", "replay", {"infinite", "schedule"}),
    ("continual-small", "onpro", "onpro-control", {"prototypes", "feedback"}),
    ("continual-small", "flair", "flair-control", {"beta"}),
    ("continual-small", "taba", "taba-control", {"gamma"}),
    ("unlabelled-small", "wad", "wad-equal", {"weigh"}),
    ("unlabelled-small", "wad", "labels-alone", {"unlabelled"}),
    ("unlabelled-small", "unfused", "unfused-labels", {"cluster_epochs"}),
    ("unlabelled-small", "unfused", "unfused-encoder", {"fresh"}),
]
OTHERS_WITHOUT_IT = [
    # By another plug-in, with the parameters that both have.
    ("representation-students-small", "dmae-robust", "mae"),
    ("representation-students-small", "mi-alpha-robust", "kd-robust"),
    ("representation-students-small", "voting", "standard"),
    ("representation-students-small", "nearest", "weighted-control"),
    ("continual-small", "pcr", "replay"),
    ("continual-small", "hpcr", "pcr"),
]


@pytest.mark.parametrize(("preset", "row", "control", "idea"), NEWEST_WITHOUT_THEIR_IDEA + WITHOUT_THEIR_IDEA)
def test_a_row_and_its_control_differ_by_the_idea_alone(preset: str, row: str, control: str, idea: set[str]) -> None:
    uses = spec.load(preset).defenses
    with_it, without = (uses[each].plugin.params.model_dump() for each in (row, control))
    assert uses[row].kind == uses[control].kind
    assert {key for key in with_it.keys() | without.keys() if with_it.get(key) != without.get(key)} == idea


@pytest.mark.parametrize(("preset", "row", "control"), OTHERS_WITHOUT_IT)
def test_a_row_whose_control_is_another_plug_in_shares_its_settings(preset: str, row: str, control: str) -> None:
    uses = spec.load(preset).defenses
    with_it, without = (uses[each].plugin.params.model_dump() for each in (row, control))
    assert uses[row].kind != uses[control].kind
    shared = with_it.keys() & without.keys()
    assert {"epochs", "lr", "batch_size", "optimiser", "schedule"} <= shared
    assert {key for key in shared if with_it[key] != without[key]} == set()


@pytest.mark.parametrize("preset", sorted({preset for preset, *_ in WITHOUT_THEIR_IDEA}))
def test_every_method_of_these_presets_has_a_control(preset: str) -> None:
    """What has none is a teacher, a control itself, or trained as usual."""
    uses = spec.load(preset).defenses
    answered = {uses[row].kind for _, row, *_ in (*WITHOUT_THEIR_IDEA, *OTHERS_WITHOUT_IT) if row in uses}
    assert {use.kind for use in uses.values()} - answered <= {"standard", "pgd-at", "mae", "kd", "sub-network"}


def ideas(uses: Any, pairs: list[tuple[str, str, set[str]]]) -> None:
    """Each first one differs from the second in these parameters alone, those of a further kind left out."""
    for name, control, idea in pairs:
        with_it, without = (uses[each].plugin.params.model_dump() for each in (name, control))
        assert {key for key in with_it if key in without and with_it[key] != without[key]} <= idea, name
        assert idea <= {key for key in with_it if with_it[key] != without.get(key)}, name


def test_each_training_of_refusals_stands_beside_itself_without_its_idea() -> None:
    ideas(
        spec.load("refusal-training-small").defenses,
        [
            ("refat", "refusal-sft", {"removal_rate"}),
            ("circuit-breakers", "circuit-breakers-off", {"broken"}),
            ("mixat", "c-advul", {"rephrased", "templates"}),
            ("er-cat", "c-advul", {"spread_weight"}),
            ("sft-taid", "sft-forward", {"interpolation"}),
            ("sft-sinkd", "sft-forward-ce", {"sinkhorn"}),
            ("sft-ddk", "sft-ddk-even", {"domains"}),
            ("sft-osd-rejected", "sft-osd-all", {"source"}),
        ],
    )


def test_kd3_stands_beside_itself_without_its_ideas() -> None:
    uses = spec.load("web-distillation-small").defenses
    three = {"strictness", "alignment", "contrast"}
    ideas(
        uses,
        [
            ("kd3", "kd-web", three),
            ("kd3-choice", "kd-web", {"strictness"}),
            ("kd3-alignment", "kd-web", {"alignment"}),
            ("kd3-contrast", "kd-web", {"contrast"}),
        ],
    )
    assert uses["kd-own"].plugin.params.alpha == 1  # no label either


@pytest.mark.parametrize("name", ["defensive-distillation-report", "defensive-distillation-report-small"])
def test_the_report_has_the_temperature_on_its_axis(name: str) -> None:
    distilled = [use.plugin.params for use in spec.load(name).defenses.values() if use.kind == "defensive-distillation"]
    assert [params.temperature for params in distilled] == [1, 5, 10, 20, 50, 100]
    assert len({params.model_dump_json(exclude={"temperature"}) for params in distilled}) == 1


@pytest.mark.parametrize("name", ["dverge-small", "dverge-cifar10"])
def test_the_ensembles_are_attacked_from_networks_that_none_of_them_has_seen(name: str) -> None:
    campaign = spec.load(name)
    attacked = {defense for defense in campaign.defenses if not campaign.excluded(defense, "transfer")}
    assert {"dverge", "adp", "gal"} < attacked
    kinds = {campaign.defenses[defense].kind for defense in attacked}
    assert kinds <= {"ensemble", "dverge", "adp", "gal", "trs", "ensemble-at"}
    seen = {member for defense in attacked for member in campaign.defenses[defense].references}
    outside = {m for surrogate in campaign.attacks["transfer"].references for m in campaign.defenses[surrogate].references}
    assert len(outside) >= 3
    assert not seen & outside
    trained = [campaign.defenses[member] for member in (*seen, *outside)]
    assert len({use.training_seed(0) for use in trained}) == len(trained)
    assert set(campaign.analyses["transferability"].defenses) == attacked


@pytest.mark.parametrize("name", ["dverge-small", "dverge-cifar10"])
def test_the_transfer_takes_both_losses_restarts_and_diverse_inputs(name: str) -> None:
    attacks = [attack.params for attack in spec.load(name).attacks["transfer"].plugin.params.attacks]
    for loss in ("ce", "margin"):
        mine = [params for params in attacks if params.loss == loss]
        assert sum(hasattr(params, "probability") for params in mine) == 1
        assert len(mine) >= 3
    assert all(params.random_start and params.decay == 1 for params in attacks)
    white = spec.load(name).attacks
    assert white["mora"].kind == "mora"
    assert any(
        use.kind == "pgd" and use.plugin.params.loss == "margin" and use.plugin.params.steps == 50 for use in white.values()
    )


LOSSES = {
    "ps-kd", "bd-kd", "taid", "sinkd", "nd-loss", "ofa-kd", "meal-v2", "sla-sd", "iterated-self-distillation", "random-teacher",
    "quantised-distillation", "tgeo-kd", "dataset-reinforcement", "hard-augmentation",
}  # fmt: skip


def test_the_random_teacher_has_its_control_beside_it() -> None:
    uses = spec.load("distilled-students-small").defenses
    taught, control = (uses[name].plugin.params.model_dump() for name in ("random-teacher", "random-features"))
    assert taught.pop("lr") == 1e-3
    assert (
        control.pop("lr") <= 1e-8
    )  # the projection and the features stay as they were initialised; the probe has a rate of its own
    assert taught == control


def test_the_robust_students_of_cifar_train_with_their_authors_loss_and_selection() -> None:
    uses = {name: use.plugin.params for name, use in spec.load("robust-distillation-cifar10").defenses.items()}
    reductions = {name: uses[name].kl_reduction for name in ("ard", "rslad", "adaad", "mtard", "b-mtard", "ciard", "iad")}
    averaged = {"batch-and-class", "tenth"}  # the same on ten classes
    assert {name for name, reduction in reductions.items() if reduction in averaged} == set(reductions) - {"iad"}
    assert {name for name, params in uses.items() if getattr(params, "selection", None) == "weighted"} == {"b-mtard", "ciard"}


def test_the_students_of_the_small_presets_keep_the_loss_that_they_were_measured_with() -> None:
    small = spec.load("robust-distillation-small").defenses
    uses = [small[name] for name in ("ard", "rslad", "adaad")] + [spec.load("distilled-students-small").defenses["rslad"]]
    assert {use.plugin.params.kl_reduction for use in uses} == {"batch"}


def test_every_distillation_loss_is_ranked_beside_plain_training_and_robust_distillation() -> None:
    campaign = spec.load("distilled-students-small")
    attacked = {name: use for name, use in campaign.defenses.items() if not campaign.excluded(name, "auto")}
    assert {use.kind for use in attacked.values()} == LOSSES | {"standard", "kd", "rslad"}
    for use in attacked.values():
        params = use.plugin.params
        assert (params.student if hasattr(params, "student") else params.model) == "tiny-cnn"
        assert params.epochs == 8
    assert {use.kind for use in campaign.analyses.values()} == {"calibration", "corruption-robustness"}
    assert all(set(use.defenses) == set(attacked) for use in campaign.analyses.values())
    assert {name for name, use in campaign.attacks.items() if use.threat != campaign.threat} == {"corruptions"}
    assert 0 < min(campaign.attacks["auto"].curve) < campaign.threat.eps < 8 / 255


def test_what_is_certified_stands_beside_its_control() -> None:
    campaign = spec.load("certified-small")
    uses = {name: use.plugin.params for name, use in campaign.defenses.items()}
    assert {"standard", "ibp", "crown-ibp", "sabr"} <= {use.kind for use in campaign.defenses.values()}
    assert uses["no-bounds"].model_dump() == {**uses["ibp"].model_dump(), "kappa_end": 1.0}
    assert uses["whole-box"].model_dump() == {**uses["sabr"].model_dump(), "lam": 1.0}
    assert len({(params.epochs, params.batch_size, params.lr, params.schedule) for params in uses.values()}) == 1
    (proof,) = campaign.analyses.values()
    assert set(proof.defenses) == set(uses)
    assert proof.plugin.params.exact


def test_every_set_of_the_small_comparison_of_distilled_data_is_trained_on_alike() -> None:
    campaign = spec.load("distilled-data-small")
    uses = {name: use.plugin.params for name, use in campaign.defenses.items()}
    trained = {name: params for name, params in uses.items() if campaign.defenses[name].kind == "train-on-condensed"}
    assert {params.repeats for params in trained.values()} == {None}  # as many steps as on all data
    for name, reference in (("standard", "full"), ("pgd-at", "full-at")):
        recipes = [params.recipe.params for params in trained.values() if params.recipe.kind == name]
        assert len(recipes) > 8
        assert all(recipe == uses[reference] for recipe in recipes)
    sets = {name for name, use in campaign.defenses.items() if use.kind == "condensed-data"}
    # Each is trained on plainly at least, is of the same size, and is not attacked itself.
    assert sets == {params.data for params in trained.values()}
    assert {uses[name].condenser.params.images_per_class for name in sets} == {10}
    assert {item.defense for item in campaign.exclude if item.attack is None} == {*sets, "squeezed", "squeezed-at"}
    assert {"random", "random-at", "random-kd", "full", "full-at"} <= set(campaign.defenses)
