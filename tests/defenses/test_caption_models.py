"""Caption models: what they say is decoded greedily, classes are their captions' likelihoods, and preference is the formula."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustkd
from robustkd.contracts import Arrays, FitContext, UsageError
from robustkd.data import SplitParams, load_splits
from robustkd.defenses.image.representations.captions import caption_student
from robustkd.defenses.image.representations.captions.caption_competition import (
    CaptionCompetition,
    CaptionCompetitionParams,
    moved,
    right_words,
)
from robustkd.defenses.image.representations.captions.caption_distil import (
    CaptionDistil,
    CaptionDistilParams,
    PreferenceRecipe,
    preference_loss,
    wrong_captions,
)
from robustkd.defenses.image.representations.captions.caption_pretrain import (
    CaptionPretrain,
    CaptionPretrainParams,
    CaptionRecipe,
    captions_of,
    fresh_captioner,
    own_captions,
)
from robustkd.defenses.image.representations.captions.caption_student import MimicRecipe
from robustkd.defenses.training import Minibatch
from robustkd.plugin_kit import fixtures
from robustkd.targets import load_target, save_target
from robustkd.targets.captioner import CaptionerTarget

NAMES = ("0", "1", "two", "three", "four", "5", "6", "7", "8", "9")


@pytest.fixture
def context(tmp_path: Path) -> Any:
    def make(folder: str = "training", **changes: Any) -> FitContext:
        with fixtures.context() as made:
            return replace(made, checkpoints=tmp_path / folder, **changes)

    return make


def captioner(given: FitContext, role: str = "student") -> CaptionerTarget:
    target = fresh_captioner(given, "tiny-cnn", {}, 8, 12, role)
    target.module.eval()
    return target


def batch(count: int = 6) -> Minibatch:
    test = fixtures.digits().test
    images, labels = torch.from_numpy(test.unit()[:count]), torch.from_numpy(test.labels[:count])
    return Minibatch(images, labels, torch.arange(count), seed=0, epoch=0)


def test_a_class_is_as_likely_as_all_its_captions_together_and_all_that_can_be_said_sums_to_1(context: Any) -> None:
    target, x = captioner(context()), batch(2).x
    model = target.module
    with torch.no_grad():
        logits, features = target(x), model.image(x).flatten(1)
        for k in (0, 3):
            each = [model.log_likelihood(features, model.encode([text] * 2)) for text in captions_of(NAMES)[k]]
            assert torch.allclose(logits[:, k], torch.stack(each).logsumexp(0), atol=1e-5)
        words = model.head.out_features
        # The probabilities of all first two tokens, whatever is said after them.
        pairs = torch.tensor(list(product(range(words), repeat=2)))
        spread = features[:1].expand(len(pairs), -1)
        each = model.steps(spread, pairs).log_softmax(2).gather(2, pairs.unsqueeze(2)).squeeze(2).sum(1)
    assert each.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_the_greedy_caption_takes_the_likeliest_word_at_each_place(context: Any) -> None:
    target, x = captioner(context()), batch(3).x
    model = target.module
    with torch.no_grad():
        told = model.greedy(x)
        likeliest = model.steps(model.image(x).flatten(1), told).argmax(2)
    for row, best in zip(told.tolist(), likeliest.tolist(), strict=True):
        end = row.index(2) if 2 in row else len(row) - 1
        assert row[: end + 1] == best[: end + 1]
        assert all(token == 0 for token in row[end + 1 :])
    assert target.describe(x) == target.describe(x)
    assert model.decode(model.encode(["a dark two", "a bright 5"])) == ["a dark two", "a bright 5"]


def test_the_cell_is_a_gated_recurrent_unit() -> None:
    from robustkd.targets.caption_modules import GatedCell

    cell, theirs = GatedCell(5), torch.nn.GRUCell(5, 5)
    for ours, kind in ((cell.of_input, "ih"), (cell.of_state, "hh")):
        getattr(theirs, f"weight_{kind}").data = ours.weight.data
        getattr(theirs, f"bias_{kind}").data = ours.bias.data
    x, state = torch.randn(2, 3, 5)
    assert torch.allclose(cell(x, state), theirs(x, state), atol=1e-6)


def test_it_learns_to_say_what_it_sees_and_comes_back_from_its_files(context: Any, tmp_path: Path) -> None:
    data = load_splits("digits", {}, SplitParams(train=700, test=100, validation=60))
    settings = {"epochs": 25, "batch_size": 50, "optimiser": "adam", "lr": 0.005, "schedule": "cosine", "dimensions": 32}
    target = CaptionPretrain(CaptionPretrainParams(model="tiny-cnn", **settings)).fit(
        context(train=data.train, validation=data.validation)
    )
    x, y = torch.from_numpy(data.test.unit()), torch.from_numpy(data.test.labels)
    told = target.describe(x)
    assert sum(f" {NAMES[label]}" in text for label, text in zip(y.tolist(), told, strict=True)) > 70
    assert set(told) <= {text for texts in captions_of(NAMES) for text in texts}
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    again = load_target(tmp_path / "saved")
    assert isinstance(again, CaptionerTarget)
    assert again.describe(x) == told
    # An attack that sees the hidden layer alone, and its control.
    broken = {}
    for steps in (0, 20):
        found = robustkd.attack(
            "feature-target",
            target,
            x,
            y,
            eps=0.2,
            goals=(y + 1) % 10,
            fit_data=(data.train.unit(), data.train.labels),
            params={"steps": steps},
        )
        keywords = [f" {NAMES[(label + 1) % 10]}" for label in y.tolist()]
        said = target.describe(torch.as_tensor(found.adversarial))
        broken[steps] = (
            int(found.success.sum()),
            sum(word in text for word, text in zip(keywords, said, strict=True)),
        )
    assert broken[20][0] > broken[0][0] + 10
    assert broken[20][1] > broken[0][1] + 10


def test_the_training_s_loss_is_the_captions_negative_log_likelihood(context: Any) -> None:
    target, given = captioner(context()), batch()
    tones = torch.tensor([0, 1, 2, 0, 1, 2])
    loss, _ = CaptionRecipe(tones, None).loss(target, given)
    texts = [captions_of(NAMES)[label][tone] for label, tone in zip(given.y.tolist(), tones.tolist(), strict=True)]
    model = target.module
    with torch.no_grad():
        wanted = model.log_likelihood(model.image(given.x).flatten(1), model.encode(texts))
    assert model.decode(own_captions(model, given, tones)) == texts
    assert loss.item() == pytest.approx(-wanted.mean().item(), rel=1e-5)


def test_the_preference_is_the_formula_and_log_2_where_both_models_agree(context: Any) -> None:
    right, wrong, t_right, t_wrong = (torch.tensor([value]) for value in (-1.0, -3.0, -2.0, -2.5))
    wanted = -math.log(1 / (1 + math.exp(-0.1 * ((-1.0 + 2.0) - (-3.0 + 2.5)))))
    assert preference_loss(right, wrong, t_right, t_wrong, 0.1).item() == pytest.approx(wanted, rel=1e-5)
    teacher, given, tones = captioner(context()), batch(), torch.tensor([0, 1, 2, 0, 1, 2])
    same, _ = PreferenceRecipe(teacher.module, tones, 0.1).loss(teacher, given)
    assert same.item() == pytest.approx(math.log(2), rel=1e-5)
    imitated, _ = MimicRecipe(teacher.module, tones).loss(teacher, given)
    assert imitated.item() == pytest.approx(0, abs=1e-6)
    other = captioner(context(), "another")
    assert MimicRecipe(teacher.module, tones).loss(other, given)[0].item() > 0


def test_a_wrong_caption_has_one_thing_wrong(context: Any) -> None:
    model = captioner(context()).module
    test = fixtures.digits().train
    assert test is not None
    given = Minibatch(torch.from_numpy(test.unit()), torch.from_numpy(test.labels), torch.arange(len(test)), seed=0, epoch=0)
    tones = torch.arange(len(test)) % 3
    names = adjectives = 0
    for right, wrong in zip(
        model.decode(own_captions(model, given, tones)), model.decode(wrong_captions(model, given, tones)), strict=True
    ):
        differ = [a != b for a, b in zip(right.split(), wrong.split(), strict=True)]
        assert sum(differ) == 1
        names, adjectives = names + differ[2], adjectives + differ[1]
    assert min(names, adjectives) > len(test) / 3


def test_a_student_is_trained_in_both_stages_and_reads_its_teacher_alone(context: Any) -> None:
    settings = {"epochs": 2, "batch_size": 40, "optimiser": "adam", "lr": 0.01}
    teacher = CaptionPretrain(CaptionPretrainParams(model="tiny-cnn", **settings)).fit(context())
    before = {name: weight.clone() for name, weight in teacher.module.state_dict().items()}
    given = context("student", targets={"teacher": teacher})
    both = CaptionDistil(CaptionDistilParams(teacher="teacher", student="tiny-cnn", preference_epochs=1, **settings))
    first = CaptionDistil(both.params.model_copy(update={"preference_epochs": 0}))
    students = [
        one.fit(replace(given, checkpoints=given.checkpoints / str(number))) for number, one in enumerate((both, first))
    ]
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.module.state_dict().items())
    assert not torch.equal(students[0].module.head.weight, students[1].module.head.weight)
    with pytest.raises(UsageError, match="captioner"):
        both.fit(context("wrong", targets={"teacher": fixtures.classifier()}))


def test_a_training_against_attacks_climbs_the_caption_s_loss(context: Any) -> None:
    train = context().train
    given = context(train=Arrays(train.images[:40], train.labels[:40]))
    settings = {"epochs": 1, "batch_size": 40, "optimiser": "adam", "lr": 0.01, "inner": {"steps": 2}}
    logged: list[Any] = []
    for adversarial in (False, True):
        own = replace(given, checkpoints=given.checkpoints / str(adversarial), log=lambda _, metrics: logged.append(metrics))
        CaptionPretrain(CaptionPretrainParams(model="tiny-cnn", adversarial=adversarial, **settings)).fit(own)
    clean, attacked = logged
    assert attacked["train_loss"] > clean["train_loss"]
    assert "validation_robust_accuracy" in attacked
    assert "validation_robust_accuracy" not in clean


def test_the_right_words_of_a_caption_are_counted_at_their_places(context: Any) -> None:
    target, given = captioner(context()), batch(5)
    tones = torch.tensor([0, 1, 2, 0, 1])
    wanted = [captions_of(NAMES)[label][tone].split() for label, tone in zip(given.y.tolist(), tones.tolist(), strict=True)]
    told = [text.split() for text in target.describe(given.x)]
    by_hand = [sum(a == b for a, b in zip(said, right, strict=False)) for said, right in zip(told, wanted, strict=True)]
    # The end is a word as well, where both captions have it at the same place.
    ends = [len(said) == len(right) for said, right in zip(told, wanted, strict=True)]
    found = right_words(target.module, given.x.numpy(), tones, given.y).tolist()
    assert found == [count + end for count, end in zip(by_hand, ends, strict=True)]
    model = target.module
    likely = torch.stack([model.tokens[label, tone] for label, tone in zip(given.y, tones, strict=True)])
    model.greedy = lambda images: likely  # one that says what is right
    assert right_words(model, given.x.numpy(), tones, given.y).tolist() == [len(right) + 1 for right in wanted]


def test_a_moved_image_is_the_image_one_pixel_on_at_most() -> None:
    images = np.random.default_rng(0).random((40, 1, 5, 4)).astype(np.float32)
    found = moved(images, np.random.default_rng(1))
    assert found.shape == images.shape
    ways = set()
    for before, after in zip(images, found, strict=True):
        (way,) = [
            (dy, dx)
            for dy, dx in product((-1, 0, 1), repeat=2)
            if np.array_equal(after[:, 1:-1, 1:-1], before[:, 1 + dy : 4 + dy, 1 + dx : 3 + dx])
        ]
        ways.add(way)
    assert len(ways) == 9


@pytest.mark.parametrize("compete", [True, False])
def test_each_round_repeats_and_moves_the_images_where_the_teacher_is_ahead(
    context: Any, monkeypatch: pytest.MonkeyPatch, compete: bool
) -> None:
    pools: list[tuple[Arrays, torch.Tensor]] = []

    def ran(given: FitContext, stages: Any) -> None:
        for stage in stages:
            assert isinstance(stage.recipe, MimicRecipe)
            pools.append(((stage.data or {}).get("train", given.train), stage.recipe.tones))

    monkeypatch.setattr(caption_student, "run_stages", ran)
    teacher, given = captioner(context(), "another"), context()
    params = CaptionCompetitionParams(
        teacher="teacher", student="tiny-cnn", dimensions=8, width=12, epochs=2, rounds=2, compete=compete
    )
    student = CaptionCompetition(params).fit(replace(given, targets={"teacher": teacher}))
    images, labels = given.train.unit(), given.train.labels
    tones = pools[0][1]
    assert len(pools) == 3
    assert np.array_equal(pools[0][0].unit(), images)
    s, t = (right_words(one.module, images, tones, torch.from_numpy(labels)) for one in (student, teacher))
    behind = np.flatnonzero((s < t).numpy())
    assert 0 < len(behind) < len(images)
    for pool, drawn in pools[1:]:
        n, more = len(images), len(behind)
        assert len(pool) == len(drawn) == n + 2 * more
        assert np.array_equal(pool.images[:n], images)
        repeated = pool.images[n : n + more]
        assert np.array_equal(repeated, images[behind]) is compete
        assert np.array_equal(pool.labels[n : n + more], pool.labels[n + more :])
        assert torch.equal(drawn[n : n + more], drawn[n + more :])
        assert not np.array_equal(repeated, pool.images[n + more :])


def test_a_competition_trains_its_student_and_leaves_the_teacher(context: Any) -> None:
    train = context().train
    given = context(train=Arrays(train.images[:60], train.labels[:60]))
    settings = {"epochs": 1, "batch_size": 30, "optimiser": "adam", "lr": 0.01}
    teacher = captioner(given, "another")
    before = {name: weight.clone() for name, weight in teacher.module.state_dict().items()}
    logged: list[int] = []
    own = replace(given, targets={"teacher": teacher}, log=lambda epoch, metrics: logged.append(epoch))
    params = CaptionCompetitionParams(teacher="teacher", student="tiny-cnn", dimensions=8, width=12, rounds=1, **settings)
    student = CaptionCompetition(params).fit(own)
    fresh = fresh_captioner(given, "tiny-cnn", {}, 8, 12)
    assert logged == sorted(set(logged))
    assert len(logged) == 2
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.module.state_dict().items())
    assert not torch.equal(student.module.head.weight, fresh.module.head.weight)
    with pytest.raises(UsageError, match="captioner"):
        CaptionCompetition(params).fit(context("wrong", targets={"teacher": fixtures.classifier()}))
