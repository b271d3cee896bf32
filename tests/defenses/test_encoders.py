"""Encoders: each loss is its formula, what stands still does not move, and labels and held-out classes are not looked at."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustkd.contracts import Arrays, FitContext, TargetError, ThreatModel, UsageError
from robustkd.data import SplitParams, load_splits
from robustkd.defenses.image.representations.encoders.clip_pretrain import ClipPretrain, ClipPretrainParams, ContrastiveRecipe
from robustkd.defenses.image.representations.encoders.dcd import DCDParams, DCDRecipe, contrast, hard_negatives, sample_weights
from robustkd.defenses.image.representations.encoders.encoder_head import EncoderHead, EncoderHeadParams
from robustkd.defenses.image.representations.encoders.fare import FARE, FAREParams, FARERecipe
from robustkd.defenses.image.representations.encoders.held_out import without_classes
from robustkd.defenses.image.representations.encoders.promptkd import PromptKD, PromptKDParams, PromptKDRecipe
from robustkd.defenses.image.representations.encoders.tecoa import TeCoA, TeCoAParams, TeCoARecipe
from robustkd.defenses.image.representations.encoders.towers import tuned_copy
from robustkd.defenses.image.representations.encoders.vl2v_adip import VL2VADiP, VL2VADiPParams, VL2VADiPRecipe
from robustkd.defenses.image.representations.encoders.vlm_ood import features_where_right, nearest_texts
from robustkd.defenses.training import Adversary, Minibatch, Teacher
from robustkd.plugin_kit import fixtures
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import TwoTowerTarget
from support.two_towers import images, towers

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 40, "optimiser": "adam", "lr": 0.01}


@pytest.fixture
def context(tmp_path):
    def make(**changes: Any) -> FitContext:
        with fixtures.context() as made:
            return replace(made, checkpoints=tmp_path / changes.pop("folder", "training"), **changes)

    return make


def batch(count: int = 6) -> Minibatch:
    test = fixtures.digits().test
    return Minibatch(images(count), torch.from_numpy(test.labels[:count]), torch.arange(count), seed=0, epoch=0)


def features(target: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return EncoderTarget(target, unit=False)(x)


def state(target: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in target.module.state_dict().items()}


def moved(before: dict[str, Tensor], target: Any) -> set[str]:
    return {name for name, tensor in target.module.state_dict().items() if not torch.equal(tensor, before[name])}


# What is held out.


def test_images_of_a_class_that_is_held_out_are_in_neither_part(context: Any) -> None:
    given = context(classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
    for named in (("Three", 7), ("three", "seven"), (3, "7")):
        left = without_classes(given, named)
        for part, whole in ((left.train, given.train), (left.validation, given.validation)):
            assert set(np.unique(part.labels)) == set(range(10)) - {3, 7}
            assert len(part) == np.isin(whole.labels, (3, 7), invert=True).sum()
    assert without_classes(given, ()) is given
    with pytest.raises(UsageError, match="no class 'thre'"):
        without_classes(given, ("thre",))
    with pytest.raises(UsageError, match="every class"):
        without_classes(given, tuple(range(10)))


def test_a_training_does_not_depend_on_what_is_held_out(context: Any) -> None:
    """Other images and labels of these classes, the same weights."""
    given = context()
    away = np.isin(given.train.labels, (1, 2))
    changed = Arrays(np.where(away[:, None, None, None], 0, given.train.images), np.where(away, 1, given.train.labels))
    made = []
    for number, train in enumerate((given.train, changed)):
        own = context(folder=str(number), train=train, targets={"encoder": towers()})
        made.append(FARE(FAREParams(encoder="encoder", held_out=(1, 2), inner={"steps": 1}, **QUICK)).fit(own))
    assert moved(state(made[0]), made[1]) == set()


# CLIP.


def test_the_contrastive_loss_is_the_formula(context: Any) -> None:
    from robustkd.data.captions import concept_of
    from robustkd.defenses.image.representations.encoders.pretraining import Pretraining
    from robustkd.targets import ClassifierTarget
    from robustkd.targets.two_tower import Texts

    concepts = [concept_of(str(digit)) for digit in range(10)]
    image = towers().module.image
    text = Texts(words=("two", "bright"), length=6, width=16, layers=1).build(4)
    module = Pretraining(image, text, [str(digit) for digit in range(10)], ("a {}",)).eval()
    target = ClassifierTarget(module, num_classes=10, input_shape=(1, 8, 8))
    recipe, given = ContrastiveRecipe(concepts, [0] * 6), batch()
    loss, _ = recipe.loss(target, given)
    with torch.no_grad():
        i = image(given.x).double().numpy()
        t = text(text.tokens(recipe.captions(given))).double().numpy()
    i /= np.linalg.norm(i, axis=1, keepdims=True)
    z = i @ t.T / 0.07
    rows, columns = (-np.diag(z) + np.log(np.exp(z).sum(axis)) for axis in (1, 0))
    assert loss.item() == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-4)
    again = recipe.captions(replace(given, epoch=1))
    assert recipe.captions(given) == recipe.captions(given)
    assert again != recipe.captions(given)


def test_it_learns_the_digits_from_captions_and_reads_other_templates(context: Any) -> None:
    data = load_splits("digits", {}, SplitParams(train=700, test=100, validation=60))
    settings = {"epochs": 20, "batch_size": 50, "optimiser": "adam", "lr": 0.005, "schedule": "cosine", "text_width": 32}
    clip = ClipPretrain(ClipPretrainParams(model="tiny-cnn", **settings)).fit(
        context(train=data.train, validation=data.validation)
    )
    with torch.no_grad():
        right = (clip(torch.from_numpy(data.test.unit())).argmax(1) == torch.from_numpy(data.test.labels)).float().mean()
    assert right >= 0.8
    same = EncoderHead(EncoderHeadParams(encoder="clip", head="text")).fit(context(targets={"clip": clip}))
    other = EncoderHead(EncoderHeadParams(encoder="clip", head="text", templates=("we see {}", "nothing but {}"))).fit(
        context(targets={"clip": clip})
    )
    assert torch.allclose(same.vectors, clip.vectors, atol=1e-5)
    assert not torch.allclose(other.vectors, clip.vectors, atol=1e-2)
    x = images()
    with torch.no_grad():
        assert (other(x).argmax(1) == clip(x).argmax(1)).float().mean() > 0.5


def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have \{\} once"):
        ClipPretrainParams(model="tiny-cnn", templates=("a photo",))


# Fine-tuning.


def test_tecoa_takes_the_cross_entropy_at_x_tilde_and_moves_the_image_tower_alone(context: Any) -> None:
    target, given = tuned_copy(towers()), batch()
    for adversarial in (True, False):
        p = TeCoAParams(encoder="encoder", adversarial=adversarial, inner={"steps": 2})
        adversary = Adversary.under(p.inner, ThreatModel(eps=0.1))
        loss, _ = TeCoARecipe(adversary, p).loss(target, given)
        x = adversary(target, given) if adversarial else given.x
        assert loss.item() == pytest.approx(F.cross_entropy(target(x), given.y).item())
    start = towers()
    before = state(start)
    tuned = TeCoA(TeCoAParams(encoder="encoder", inner={"steps": 1}, **QUICK)).fit(context(targets={"encoder": start}))
    assert moved(before, start) == set()
    assert {name.partition(".")[0] for name in moved(before, tuned)} == {"image"}
    assert tuned.kind == "two-tower"


def test_fare_s_loss_is_the_squared_distance_at_the_furthest_point() -> None:
    start, other, given = towers(0), towers(1), batch()
    p = FAREParams(encoder="encoder", inner={"steps": 3})
    adversary = Adversary.under(p.inner, ThreatModel(eps=0.1))
    teacher = Teacher(EncoderTarget(start, unit=False))
    with torch.no_grad():
        loss, _ = FARERecipe(teacher, adversary, p.model_copy(update={"adversarial": False})).loss(other, given)
        copied, _ = FARERecipe(teacher, adversary, p.model_copy(update={"adversarial": False})).loss(start, given)
    f, g = features(other, given.x).double().numpy(), features(start, given.x).double().numpy()
    assert loss.item() == pytest.approx(((f - g) ** 2).sum(1).mean(), rel=1e-5)
    assert copied.item() == 0.0
    attacked, _ = FARERecipe(teacher, adversary, p).loss(other, given)
    wanted = features(start, given.x)
    x = adversary.climb(given, EncoderTarget(other, unit=False), lambda z, rows: (z - wanted[rows]).square().sum(1))
    assert attacked.item() == pytest.approx((features(other, x) - wanted).square().sum(1).mean().item(), rel=1e-5)
    assert attacked > loss
    assert (x - given.x).abs().max() <= 0.1 + 1e-6


def test_fare_makes_features_that_move_less_and_reads_no_label(context: Any) -> None:
    start = TwoTowerTarget.of(fixtures.classifier())
    train = context().train
    p = FAREParams(encoder="encoder", inner={"steps": 3}, **{**QUICK, "epochs": 25, "batch_size": 20})
    made = []
    for number, labels in enumerate((train.labels, (train.labels + 1) % 10)):
        given = context(folder=str(number), train=Arrays(train.images, labels), targets={"encoder": start})
        made.append(FARE(p).fit(given))
    assert moved(state(made[0]), made[1]) == set()
    assert torch.allclose(made[0].vectors, start.vectors)
    adversary = Adversary.under(p.inner, ThreatModel(eps=0.1))
    seen = Minibatch(torch.from_numpy(train.unit()), torch.from_numpy(train.labels), torch.arange(len(train)), seed=0, epoch=0)
    told = [
        FARERecipe(Teacher(EncoderTarget(start, unit=False)), adversary, p).loss(one, seen)[0].item()
        for one in (start, made[0])
    ]
    assert told[1] < 0.9 * told[0]


def test_fare_trains_a_student_of_another_architecture(context: Any) -> None:
    given = context(targets={"encoder": towers()})
    p = FAREParams(encoder="encoder", student="tiny-cnn", student_params={"width": 4}, inner={"steps": 1}, **QUICK)
    student = FARE(p).fit(given)
    assert student.module.image.conv1.weight.shape[0] == 4
    assert torch.allclose(student.vectors, towers().vectors)


# Students.


def test_promptkd_is_the_divergence_over_the_teacher_s_vectors_times_its_weight() -> None:
    teacher, student, given = towers(0), towers(1), batch()
    p = PromptKDParams(teacher="teacher", student="tiny-cnn", temperature=2.0, weight=30.0)
    loss, _ = PromptKDRecipe(Teacher(teacher), p).loss(student, given)
    with torch.no_grad():
        t, s = (one(given.x).double().div(2).log_softmax(1) for one in (teacher, student))
    assert loss.item() == pytest.approx(30 / 10 * (t.exp() * (t - s)).sum(1).mean().item(), rel=1e-4)


def test_promptkd_reads_no_label_and_answers_by_the_teacher_s_texts(context: Any) -> None:
    train, teacher, made = context().train, towers(), []
    for number, labels in enumerate((train.labels, (train.labels + 3) % 10)):
        given = context(folder=str(number), train=Arrays(train.images, labels), targets={"teacher": teacher})
        made.append(PromptKD(PromptKDParams(teacher="teacher", student="tiny-cnn", **QUICK)).fit(given))
    assert moved(state(made[0]), made[1]) == set()
    order = torch.arange(10).roll(4)
    with torch.no_grad():
        assert torch.allclose(made[0].with_vectors(teacher.vectors[order])(images()), made[0](images())[:, order], atol=1e-5)


def test_vl2v_adip_s_loss_is_minus_1_at_alignment_and_weighs_image_and_text() -> None:
    teacher, given = towers(0), batch()
    student = towers(1)
    target = Teacher(EncoderTarget(teacher, unit=False))
    told, _ = VL2VADiPRecipe(target, teacher.vectors, 0.3, student.module.image).loss(student, given)
    f, i = features(student, given.x), features(teacher, given.x)
    v = teacher.vectors[given.y]
    wanted = -0.3 * F.cosine_similarity(f, i).mean() - 0.7 * F.cosine_similarity(f, v).mean()
    assert told.item() == pytest.approx(wanted.item(), rel=1e-5)
    aligned, _ = VL2VADiPRecipe(target, teacher.vectors, 1.0, teacher.module.image).loss(teacher, given)
    assert aligned.item() == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("stages", ["align", "both"])
def test_vl2v_adip_moves_one_part_in_each_stage(context: Any, stages: str) -> None:
    backbone = fixtures.classifier()
    given = context(targets={"teacher": towers(), "backbone": backbone})
    p = VL2VADiPParams(teacher="teacher", backbone="backbone", align_epochs=1, stages=stages, **QUICK)
    student = VL2VADiP(p).fit(given)
    first = VL2VADiP(p.model_copy(update={"stages": "align"})).fit(context(folder="first", targets=given.targets))
    body, projection = student.module.image[0], student.module.image[1]
    theirs = backbone.module.state_dict()
    same = all(torch.equal(tensor, theirs[name]) for name, tensor in body.state_dict().items())
    assert same == (stages == "align")
    # The projection is what the first stage made of it.
    assert torch.equal(projection.weight, first.module.image[1].weight)


def test_large_vlm_distillation_s_terms() -> None:
    s = F.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), dim=1)
    t = F.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), dim=1)
    vectors = torch.eye(2)
    # The teacher says 1 and 0: right of the first sample alone, then of both, then of none.
    assert features_where_right(s, t, vectors, torch.tensor([1, 1])).item() == pytest.approx(2.0)
    assert features_where_right(s, t, vectors, torch.tensor([1, 0])).item() == pytest.approx((2.0 + 0.8) / 2)
    assert features_where_right(s, t, vectors, torch.tensor([0, 1])).item() == 0.0
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    tau = 0.5
    ours = []
    for own, teachers in zip(s.tolist(), t.tolist(), strict=True):
        z = [sum(a * b for a, b in zip(teachers, text, strict=True)) / tau for text in texts.tolist()]
        near = sorted(range(3), key=lambda place: -z[place])[:2]
        p = [math.exp(z[place]) / sum(math.exp(z[other]) for other in near) for place in near]
        y = [sum(a * b for a, b in zip(own, texts[place].tolist(), strict=True)) / tau for place in near]
        log_sum = math.log(sum(math.exp(value) for value in y))
        ours.append(-sum(weight * (value - log_sum) for weight, value in zip(p, y, strict=True)))
    # Of the teacher's first vector, two texts are equally near: whichever is taken changes the value.
    assert nearest_texts(s[1:], t[1:], texts, 2, tau).item() == pytest.approx(ours[1], rel=1e-5)
    everything = -(t @ texts.T / tau).softmax(1).mul((s @ texts.T / tau).log_softmax(1)).sum(1).mean()
    assert nearest_texts(s, t, texts, 99, tau).item() == pytest.approx(everything.item(), rel=1e-5)


def test_dcd_weighs_hard_samples_more_as_the_training_goes_on_and_its_negatives_are_the_teacher_s() -> None:
    difficulty = torch.tensor([0.1, 0.9, 0.4])
    assert torch.allclose(sample_weights(difficulty, 0.0), torch.full((3,), 1 / 3))
    for slope in (1.0, 4.0):
        weights = sample_weights(difficulty, slope)
        assert weights.sum().item() == pytest.approx(1)
        assert weights.argsort().tolist() == difficulty.argsort().tolist()
    assert sample_weights(difficulty, 4.0)[1] > sample_weights(difficulty, 1.0)[1]
    texts = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    classes = torch.tensor([0, 1, 1, 2])
    t = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    negatives = hard_negatives(t, texts, classes, torch.tensor([0, 1]), 1)
    assert negatives.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert hard_negatives(t, texts, classes, torch.tensor([0, 1]), 9).tolist() == [
        [False, True, True, True],
        [True, False, False, True],
    ]
    s = torch.tensor([[0.6, 0.8]])
    told = contrast(s, texts[:1], texts, negatives[:1], 0.5).item()
    assert told == pytest.approx(-math.log(math.exp(1.2) / (math.exp(1.2) + math.exp(0.96 / 0.5))), rel=1e-5)


def test_dcd_s_loss_is_the_weighted_sum_and_the_divergence() -> None:
    teacher, student, given = towers(0), towers(1), replace(batch(), epoch=2)
    p = DCDParams(teacher="teacher", student="tiny-cnn", epochs=5, hard=3, growth=2.0, distil=0.5)
    classes = torch.arange(10)
    recipe = DCDRecipe(Teacher(EncoderTarget(teacher, unit=False)), p, teacher.vectors, teacher.vectors, classes)
    loss, _ = recipe.loss(student, given)
    s, t = (F.normalize(features(one, given.x), dim=1) for one in (student, teacher))
    theirs, ours = (z @ teacher.vectors.T / 0.07 for z in (t, s))
    weights = sample_weights(1 - theirs.softmax(1)[torch.arange(6), given.y], 2.0 * 2 / 4)
    each = contrast(s, teacher.vectors[given.y], teacher.vectors, hard_negatives(t, teacher.vectors, classes, given.y, 3), 0.07)
    divergence = (theirs.softmax(1) * (theirs.log_softmax(1) - ours.log_softmax(1))).sum(1).mean()
    assert loss.item() == pytest.approx(((weights * each).sum() + 0.5 * divergence).item(), rel=1e-4)


# Heads.


def test_a_probe_learns_the_labels_by_its_vectors_alone_from_the_prototypes_on(context: Any) -> None:
    encoder = towers()
    given = context(targets={"encoder": encoder})
    before = {name: weight.clone() for name, weight in encoder.module.state_dict().items()}
    heads = [
        EncoderHead(EncoderHeadParams(encoder="encoder", head=head, epochs=8)).fit(given) for head in ("prototypes", "probe")
    ]
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.module.state_dict().items())
    x, y = torch.from_numpy(given.train.unit()), torch.from_numpy(given.train.labels)
    with torch.no_grad():
        means, probed = (F.cross_entropy(one(x), y).item() for one in heads)
    assert probed < means
    kept = [{name: w for name, w in one.module.state_dict().items() if name != "vectors"} for one in heads]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert torch.allclose(heads[1].vectors.norm(dim=1), torch.ones(10))
    assert set(EncoderHeadParams(encoder="e").model_dump()) == {"encoder", "head", "templates", "shots"}


def test_a_prototype_is_the_mean_direction_of_a_class_s_first_images(context: Any) -> None:
    given = context(targets={"encoder": towers()})
    head = EncoderHead(EncoderHeadParams(encoder="encoder", shots=3)).fit(given)
    rows = np.flatnonzero(given.train.labels == 4)[:3]
    unit = F.normalize(features(towers(), torch.from_numpy(given.train.select(rows).unit())), dim=1)
    assert torch.allclose(head.vectors[4], F.normalize(unit.mean(0), dim=0), atol=1e-5)
    few = given.train.select(np.flatnonzero(given.train.labels != 5))
    with pytest.raises(UsageError, match="class 5 has no training images"):
        EncoderHead(EncoderHeadParams(encoder="encoder")).fit(replace(given, train=few))
    with pytest.raises(TargetError, match="no text tower"):
        EncoderHead(EncoderHeadParams(encoder="encoder", head="text")).fit(given)
