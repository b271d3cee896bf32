"""A condensed set is a cell of its own: stored, taken up again, and trained on by any recipe."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from robustkd import plugins
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.campaigns.store.store import Store
from robustkd.contracts import Arrays, DataError, SoftArrays, UsageError
from robustkd.defenses.training.batches import Minibatch
from robustkd.plugin_kit import fixtures
from robustkd.reporting.markdown import markdown
from robustkd.reporting.page import page
from robustkd.reporting.samples import SampleEvidence
from robustkd.reporting.summary import summary_rows
from robustkd.scoring.results import Results, TrainingSet
from robustkd.targets import fingerprint, load_target, save_target
from robustkd.targets.condensed import CondensedTarget

QUICK = {"model": "tiny-cnn", "epochs": 2, "batch_size": 16, "optimiser": "adam", "lr": 0.01}
CAMPAIGN = {
    "version": 1,
    "name": "condensed",
    "data": {"name": "digits", "train": 120, "test": 8, "validation": 20},
    "threat": {"norm": "linf", "eps": 0.1},
    "defenses": {
        "small-set": {"kind": "condensed-data", "condenser": {"kind": "random-subset", "images_per_class": 2}},
        "plain": {"kind": "train-on-condensed", "data": "small-set", "recipe": {"kind": "standard", **QUICK}},
        "robust": {
            "kind": "train-on-condensed",
            "data": "small-set",
            "recipe": {"kind": "pgd-at", **QUICK, "inner": {"steps": 2}},
        },
    },
    "attacks": {"pgd": {"kind": "pgd", "steps": 2}},
    "checks": "none",
    "matrix": {"exclude": [{"defense": "small-set"}]},
}


def soft_set(count=20, classes=10):
    rng = np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    return SoftArrays(rng.random((count, 1, 8, 8), dtype=np.float32), soft.argmax(1), soft)


def trained(arrays, recipe, **params):
    target = CondensedTarget(arrays, num_classes=10)
    defense = plugins.make("defenses", {"kind": "train-on-condensed", "data": "s", "recipe": recipe, **params})
    with fixtures.context(targets={"s": target}) as context:
        return defense.fit(context)


def campaign(**changes):
    return spec.from_text(yaml.safe_dump(CAMPAIGN | changes), "condensed.yaml", Path())


def test_the_set_is_a_cell_that_both_trainings_stand_on_and_is_made_once(tmp_path):
    planned = plan.build(campaign())
    cells = {cell.defense: cell for cell in planned.of("train")}
    assert cells["plain"].others == {"small-set": cells["small-set"].id} == cells["robust"].others
    first = run(planned, tmp_path, InlineEngine(), device="cpu")
    assert {result.defense: result.status for result in first.defenses} == {"plain": "done", "robust": "done"}
    # What the set takes, and took to make, is told of each training on it: 20 images of 64 numbers, and a label of one byte.
    kept = [result.training_set for result in first.defenses]
    stored = Store(tmp_path).get(cells["small-set"].id)
    assert kept == [TrainingSet(20, 20 * 64 * 4 + 20, stored.meta.wall_seconds)] * 2
    assert Results.from_dict(json.loads(first.to_json())).defenses == first.defenses
    assert "| plain | 20 | 5\u202f140 |" in markdown(first, summary_rows(first))
    assert "Condensed data</h3>" in page(first, summary_rows(first), (), SampleEvidence((), ()))
    # Another recipe on the same set: the set is not made again.
    more = CAMPAIGN["defenses"] | {"trades": CAMPAIGN["defenses"]["robust"] | {"recipe": {"kind": "trades", **QUICK}}}
    again = plan.build(campaign(defenses=more))
    assert {cell.id for cell in planned.of("train")} < {cell.id for cell in again.of("train")}
    # Another set is another cell, and so is what is trained on it.
    other = CAMPAIGN["defenses"] | {
        "small-set": {"kind": "condensed-data", "condenser": {"kind": "random-subset", "images_per_class": 3}}
    }
    assert {cell.id for cell in planned.of("train")} & {
        cell.id for cell in plan.build(campaign(defenses=other)).of("train")
    } == set()


def test_only_a_recipe_that_looks_at_the_threat_model_is_trained_again_for_another():
    ids = [
        {cell.defense: cell.id for cell in plan.build(campaign(threat={"norm": "linf", "eps": eps})).of("train")}
        for eps in (0.1, 0.2)
    ]
    assert [name for name in ids[0] if ids[0][name] != ids[1][name]] == ["robust"]


def test_all_data_in_the_place_of_a_subset_is_the_recipe_itself_bit_for_bit():
    """Knowledge distillation on the share 1 of the data is kd."""
    recipe = {"kind": "kd", "teacher": "t", "student": "tiny-cnn", "epochs": 2, "batch_size": 32, "augment": "crop-flip"}
    subset = plugins.make("defenses", {"kind": "condensed-data", "condenser": {"kind": "random-subset", "share": 1}})
    around = plugins.make("defenses", {"kind": "train-on-condensed", "data": "s", "recipe": recipe})
    with fixtures.context(targets={"t": fixtures.classifier()}) as context:
        alone = plugins.make("defenses", recipe).fit(context)
    with fixtures.context() as context:
        whole = subset.fit(context)
        assert whole.arrays.digest() == context.train.digest()
    with fixtures.context(targets={"t": fixtures.classifier(), "s": whole}) as context:
        assert fingerprint(around.fit(context)) == fingerprint(alone)


def test_an_epoch_has_as_many_steps_as_one_on_all_data():
    steps = []
    for arrays in (soft_set().hard(), soft_set(40).hard()):
        seen = []
        defense = plugins.make("defenses", {"kind": "train-on-condensed", "data": "s", "recipe": {"kind": "standard", **QUICK}})
        with fixtures.context(targets={"s": CondensedTarget(arrays, num_classes=10)}) as context:
            inner = defense._recipe.fit
            defense._recipe.fit = lambda given, inner=inner, seen=seen: seen.append(len(given.train)) or inner(given)
            defense.fit(context)
        steps += seen
    assert steps == [160, 160]  # 160 training images: 8 and 4 copies


@pytest.mark.slow
def test_soft_labels_reach_the_loss_and_hard_ones_take_their_place_when_asked():
    arrays = soft_set()
    as_labels = SoftArrays(arrays.images, arrays.labels, np.eye(10, dtype=np.float32)[arrays.labels])
    for kind in ("standard", "pgd-at", "trades"):
        recipe = {"kind": kind, **QUICK}
        distributions, one_hot, hard = (trained(data, recipe) for data in (arrays, as_labels, arrays.hard()))
        x = torch.from_numpy(arrays.images)
        assert torch.allclose(one_hot(x), hard(x), atol=1e-4)
        assert not torch.allclose(distributions(x), hard(x), atol=1e-2)
        assert torch.equal(trained(arrays, recipe, labels="hard")(x), hard(x))


def test_the_cross_entropy_with_distributions_is_its_definition():
    logits, soft = torch.randn(4, 3), torch.rand(4, 3).softmax(1)
    batch = Minibatch(torch.zeros(4, 1, 2, 2), soft.argmax(1), torch.arange(4), 0, 0, soft=soft)
    assert torch.allclose(batch.cross_entropy(logits), -(soft * logits.log_softmax(1)).sum(1).mean())
    assert torch.allclose(
        replace(batch, soft=None).cross_entropy(logits), torch.nn.functional.cross_entropy(logits, soft.argmax(1))
    )


def test_a_recipe_that_cannot_learn_from_distributions_says_so():
    with pytest.raises(UsageError, match="distributions for labels, which 'mart' cannot learn from") as told:
        trained(soft_set(), {"kind": "mart", **QUICK})
    assert "labels: hard" in told.value.fix


@pytest.mark.parametrize(
    ("recipe", "said"), [({"kind": "ensemble", "members": ["a", "b"]}, "trains nothing on images"), ("gcg", "gcg")]
)
def test_a_recipe_that_does_not_train_is_refused_when_the_file_is_read(recipe, said):
    bad = CAMPAIGN["defenses"] | {"plain": {"kind": "train-on-condensed", "data": "small-set", "recipe": recipe}}
    with pytest.raises(UsageError, match=said):
        campaign(defenses=bad)


def test_what_is_no_condensed_set_is_refused():
    defense = plugins.make("defenses", {"kind": "train-on-condensed", "data": "s", "recipe": {"kind": "standard", **QUICK}})
    with (
        fixtures.context(targets={"s": fixtures.classifier()}) as context,
        pytest.raises(UsageError, match="'s' is a classifier"),
    ):
        defense.fit(context)


def test_the_nearest_image_answers_and_a_class_without_one_is_never_named():
    images = np.array([0.0, 0.4, 1.0], dtype=np.float32).reshape(3, 1, 1, 1)
    target = CondensedTarget(Arrays(images, np.array([0, 2, 3])), num_classes=4)
    x = torch.tensor([0.1, 0.35, 0.8]).view(-1, 1, 1, 1)
    logits = target(x)
    assert logits.argmax(1).tolist() == [0, 2, 3]
    assert torch.allclose(logits[:, [0, 2, 3]], -(x.view(-1, 1) - torch.tensor([0.0, 0.4, 1.0])).square(), atol=1e-6)
    assert (logits[:, 1] < -1).all()


@pytest.mark.parametrize(
    "arrays", [soft_set(), soft_set().hard(), Arrays(np.full((2, 1, 8, 8), 255, np.uint8), np.array([0, 1]))]
)
def test_stored_and_loaded_it_is_the_same_set(arrays, tmp_path):
    target = CondensedTarget(arrays, num_classes=10)
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert again.arrays.digest() == arrays.digest() == target.arrays.digest()
    assert again.bytes == arrays.images.nbytes + (arrays.soft.nbytes if isinstance(arrays, SoftArrays) else len(arrays))


def made_by(arrays):
    """What ``condensed-data`` makes of a condenser that returns ``arrays``."""

    class Given:
        name = "given"

        def condense(self, context):
            return arrays

    defense = plugins.make("defenses", {"kind": "condensed-data", "condenser": "random-subset"})
    defense.params = type("P", (), {"condenser": type("C", (), {"make": staticmethod(Given)})})
    with fixtures.context() as context:
        return defense.fit(context)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (Arrays(np.full((10, 1, 8, 8), 2.0, np.float32), np.arange(10)), "outside"),
        (Arrays(np.zeros((2, 1, 8, 8), np.float32), np.array([0, 10])), "there are 10 classes"),
        (Arrays(np.zeros((2, 1, 4, 4), np.float32), np.array([0, 1])), "made images of shape"),
        (replace(soft_set(), soft=np.ones((20, 10), np.float32)), "distributions that are none"),
        (replace(soft_set(), soft=np.ones((20, 1), np.float32)), "distributions of shape"),
    ],
)
def test_a_set_that_is_none_is_refused_with_a_sentence(arrays, said):
    with pytest.raises(DataError, match=said):
        made_by(arrays)
