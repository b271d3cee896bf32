"""Students of features: nothing of a masked patch is seen, losses vanish where they must, and stages begin where they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import UsageError
from robustkd.defenses.image.representations import masking
from robustkd.defenses.image.representations.distill_weighted import similarity, weights_of
from robustkd.defenses.image.representations.dmae import DMAE, DMAEParams, DMAERecipe
from robustkd.defenses.image.representations.further_pretraining import FurtherPretraining, FurtherPretrainingParams
from robustkd.defenses.image.representations.hybrid_distill import (
    HybridDistillParams,
    HybridDistillRecipe,
    attended,
    relation,
    relation_divergence,
)
from robustkd.defenses.image.representations.mae import MAE, MaskedParams
from robustkd.defenses.image.representations.masking import Decoder, MaskedRecipe, encoded, split, taken
from robustkd.defenses.image.representations.mi_alpha import MIAlphaParams, MIAlphaRecipe, mutual_information
from robustkd.defenses.image.representations.ssld import SSLD, SSLDParams, jensen_shannon
from robustkd.defenses.training import Teacher
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.stages import LabelRecipe, Stage, StagedParams, finishing, run_stages
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear

SMALL = {"patch": 2, "width": 16, "depth": 4, "heads": 2}
BRIEF = {"epochs": 2, "optimiser": "adam", "lr": 0.003, "batch_size": 60, "finish_epochs": 2}


def vit(seed: int = 0, **params: object) -> ClassifierTarget:
    torch.manual_seed(seed)
    made = ClassifierTarget.from_model("tiny-vit", SMALL | params, input_shape=(1, 8, 8), num_classes=10)
    made.module.eval()
    return made


# Stages.


def test_a_stage_trains_its_part_alone_and_a_probe_leaves_the_body(context):
    student = vit()
    before = {name: weight.clone() for name, weight in student.module.state_dict().items()}
    given = context()
    run_stages(given, [finishing(student, StagedParams(finish="probe", **BRIEF))])
    moved = {name for name, weight in student.module.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {"linear.weight", "linear.bias"}
    assert all(weight.requires_grad for weight in student.module.parameters())


def test_the_epochs_of_all_stages_are_counted_through_and_each_has_its_length(context, curve):
    log = curve()
    student, settings = vit(), StagedParams(**(BRIEF | {"finish_epochs": 3}))
    first = Stage("first", student, LabelRecipe(), settings)
    run_stages(context(log=log), [first, finishing(student, settings)])
    assert log.epochs == [0, 1, 2, 3, 4]


def test_the_next_stage_is_asked_for_when_the_one_before_is_done(context):
    student, seen = vit(), []

    def stages():
        seen.append(student.module.linear.weight.detach().clone())
        yield Stage("first", student, LabelRecipe(), StagedParams(**BRIEF))
        seen.append(student.module.linear.weight.detach().clone())
        yield Stage("second", student, LabelRecipe(), StagedParams(**BRIEF))

    run_stages(context(), stages())
    assert not torch.equal(*seen)


@pytest.mark.parametrize("after", [[3], [14], [20, 2]])  # in the first stage, in the second, in both
def test_killed_in_any_stage_it_goes_on_there(after, context, survives_kills, monkeypatch):
    def fit(folder: str):
        return MAE(MaskedParams(model_params=SMALL, **BRIEF)).fit(context(folder=folder))

    recipe = MaskedRecipe if after[0] < 12 else LabelRecipe
    assert survives_kills(fit, recipe, after if recipe is MaskedRecipe else [count - 12 for count in after if count > 12])


# Masked images.


def test_each_patch_is_visible_or_masked_and_what_is_masked_changes_with_the_epoch(minibatch):
    visible, masked = split(minibatch, 16, 0.75)
    assert (visible.shape[1], masked.shape[1]) == (4, 12)
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(16).expand(32, 16))
    again = split(minibatch.__class__(**{**vars(minibatch), "epoch": 2}), 16, 0.75)[0]
    assert not torch.equal(visible, again)
    assert len({tuple(row) for row in visible.tolist()}) > 10


def test_nothing_of_a_masked_patch_reaches_the_encoder(minibatch):
    network = vit().module
    visible, masked = split(minibatch, 16, 0.75)
    hidden = torch.zeros(32, 16, dtype=torch.bool).scatter(1, masked, True).view(32, 1, 4, 4)
    changed = torch.where(hidden.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.rand_like(minibatch.x), minibatch.x)
    assert not torch.equal(changed, minibatch.x)
    for one, other in zip(encoded(network, minibatch.x, visible), encoded(network, changed, visible), strict=True):
        assert torch.equal(one, other)
    every = torch.arange(16).expand(32, 16)
    assert torch.allclose(
        network.linear(network.norm(encoded(network, minibatch.x, every)[-1]).mean(1)), network(minibatch.x), atol=1e-5
    )


def test_patches_are_those_that_the_tokens_are_made_of(minibatch):
    network = vit().module
    patches = network.patches(minibatch.x)
    embedded = patches @ network.embed.weight.flatten(1).T + network.embed.bias + network.positions
    assert torch.allclose(network.tokens(minibatch.x), embedded, atol=1e-6)


def test_the_reconstruction_is_of_masked_patches_alone(minibatch, monkeypatch):
    network = vit().module
    visible, masked = split(minibatch, 16, 0.75)
    patches = network.patches(minibatch.x)
    wanted = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()

    class Knows(torch.nn.Module):
        def forward(self, tokens, places):
            return wanted + 9 * torch.zeros_like(wanted).scatter(1, places.unsqueeze(2).expand(-1, -1, 4), 1.0)

    last = encoded(network, minibatch.x, visible)[-1]
    assert masking.reconstruction(network, Knows(), minibatch.x, last, visible, masked) == 0
    decoder = Decoder(network)
    error = (taken(decoder(network.norm(last), visible), masked) - taken(wanted, masked)).square().mean()
    assert torch.allclose(masking.reconstruction(network, decoder, minibatch.x, last, visible, masked), error)


def test_the_features_of_a_student_that_is_its_teacher_are_no_distance_away(minibatch):
    student, params = vit(), DMAEParams(teacher="t", depth=0.75)
    same = torch.nn.Linear(16, 16)
    with torch.no_grad():
        same.weight.copy_(torch.eye(16))
        same.bias.zero_()
    trained = with_auxiliary(student, decoder=Decoder(student.module), projection=same)
    _, measured = DMAERecipe(student, student, params).loss(trained, minibatch)
    assert measured["loss_features"] == 0
    loss, measured = DMAERecipe(student, vit(1), params).loss(trained, minibatch)
    visible, _ = split(minibatch, 16, 0.75)
    expected = (encoded(student.module, minibatch.x, visible)[2] - encoded(vit(1).module, minibatch.x, visible)[2]).abs().mean()
    assert torch.allclose(measured["loss_features"], expected)  # block 3 of 4
    assert torch.allclose(loss, measured["loss_reconstruction"] + expected)


def test_a_teacher_with_other_patches_is_refused(context, linear):
    given = context(targets={"teacher": vit(patch=4), "plain": linear(0)})
    with pytest.raises(UsageError, match="16 patches, its teacher 4"):
        DMAE(DMAEParams(teacher="teacher", model_params=SMALL, **BRIEF)).fit(given)
    with pytest.raises(UsageError, match="this network has none"):
        DMAE(DMAEParams(teacher="plain", model_params=SMALL, **BRIEF)).fit(given)


def test_the_second_further_pretraining_starts_from_the_first_weights(context, monkeypatch):
    start, began = vit(3), []
    kind = FurtherPretraining._stages

    def watched(self, *arguments):
        for stage in kind(self, *arguments):
            network = stage.recipe.student.module if hasattr(stage.recipe, "student") else stage.trained.module
            began.append((stage.name, {name: weight.clone() for name, weight in network.state_dict().items()}))
            yield stage

    monkeypatch.setattr(FurtherPretraining, "_stages", watched)
    FurtherPretraining(FurtherPretrainingParams(start="start", **BRIEF)).fit(context(targets={"start": start}))
    first = start.module.state_dict()
    assert [name for name, _ in began] == ["further", "taught", "finetune"]
    for name, weights in began:
        assert all(torch.equal(weights[key], first[key]) for key in first) == (name != "finetune")


# Hybrid Distill.


def test_relations_are_distributions_and_a_teacher_of_itself_has_no_loss(minibatch):
    student = vit()
    blocks, last = attended(student.module, minibatch.x)
    rows = relation(blocks[0][0], blocks[0][1]).exp().sum(2)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)
    assert torch.allclose(student.module.linear(last.mean(1)), student(minibatch.x), atol=1e-5)
    params = HybridDistillParams(relation_teacher="r", feature_teacher="f", features=0.0)
    projection = torch.nn.Linear(16, 16)
    trained = with_auxiliary(student, projection=projection)
    loss, _ = HybridDistillRecipe(student, student, vit(1), params).loss(trained, minibatch)
    assert abs(float(loss.detach())) < 1e-6
    loss, measured = HybridDistillRecipe(student, vit(2), vit(1), params).loss(trained, minibatch)
    theirs, _ = attended(vit(2).module, minibatch.x)
    expected = torch.zeros(())
    for mine, there in zip(blocks[:-1], theirs[:-1], strict=True):
        for a, b in ((0, 1), (2, 2)):
            p, q = relation(there[a], there[b]).double().exp(), relation(mine[a], mine[b]).double()
            expected = expected + (p * (p.log() - q)).sum(2).mean() / 3
    assert torch.allclose(loss.double(), expected, rtol=1e-4)
    assert relation_divergence(relation(blocks[0][0], blocks[0][1]), relation(blocks[0][0], blocks[0][1])) == 0
    alone = HybridDistillParams(relation_teacher="r", feature_teacher="f", relations=0.0)
    loss, measured = HybridDistillRecipe(student, vit(2), vit(1), alone).loss(trained, minibatch)
    assert torch.equal(loss, measured["loss_features"])


# SSLD.


def test_the_jensen_shannon_divergence_is_symmetric_and_bounded():
    first, second = torch.randn(40, 6) * 4, torch.randn(40, 6) * 4
    found = jensen_shannon(first, second)
    p, q = first.double().softmax(1), second.double().softmax(1)
    m = (p + q) / 2
    assert torch.allclose(found.double(), ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2, atol=1e-5)
    assert torch.allclose(found, jensen_shannon(second, first), atol=1e-6)
    assert jensen_shannon(first, first).abs().max() < 1e-6
    apart = jensen_shannon(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]]))
    assert apart.item() == pytest.approx(math.log(2), rel=1e-5)


def test_labels_that_are_taken_away_are_never_read(context, digits, linear, same_weights):
    def fit(folder: str, wrong: bool):
        data = digits.train
        order = np.random.default_rng(0)
        labels = data.labels.copy()
        if wrong:
            kind = SSLD(params)
            kept = next(iter(_finishing(kind, context())))
            hidden = ~np.isin(np.arange(len(labels)), kept)
            labels[hidden] = order.integers(10, size=hidden.sum())
            assert 100 < hidden.sum() < 300
        return SSLD(params).fit(context(folder=folder, train=replace(data, labels=labels), targets={"teacher": linear(0)}))

    params = SSLDParams(teacher="teacher", student="tiny-cnn", labelled=0.5, **BRIEF)
    assert same_weights(fit("right", False), fit("wrong", True))


def _finishing(kind: SSLD, given):
    """The rows whose labels are used."""
    for stage in kind._stages(
        given, ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=10), Teacher(vit())
    ):
        if stage.name == "finetune":
            images = {image.tobytes(): row for row, image in enumerate(given.train.images)}
            yield [images[image.tobytes()] for image in stage.data["train"].images]


# MI-alpha.


def test_the_bound_is_below_the_information_of_gaussian_features_and_near_it():
    generator = torch.Generator().manual_seed(0)
    rho, dims, batch = 0.6, 4, 256
    truth = -dims / 2 * math.log(1 - rho**2)
    means = {}
    for a in (0.0, 0.1, 0.5, 1.0):
        bounds = []
        for _ in range(60):
            s = torch.randn(batch, dims, generator=generator, dtype=torch.float64)
            t = rho * s + math.sqrt(1 - rho**2) * torch.randn(batch, dims, generator=generator, dtype=torch.float64)
            # The best critic is log p(t | s) / p(t).
            gap = (t.unsqueeze(0) - rho * s.unsqueeze(1)) ** 2
            scores = (-gap / (2 * (1 - rho**2)) + t.unsqueeze(0) ** 2 / 2 - math.log(1 - rho**2) / 2).sum(2)
            bounds.append(float(mutual_information(scores, a)))
        means[a] = np.mean(bounds)
    assert truth == pytest.approx(0.893, abs=1e-3)
    for bound in means.values():
        assert bound < truth + 0.05
        assert bound > truth - 0.15


def test_at_one_it_is_infonce_and_at_most_the_logarithm_of_the_batch():
    scores = torch.randn(9, 9, dtype=torch.float64)
    nce = (scores.diagonal() - (scores.exp().mean(0)).log()).mean()
    assert torch.allclose(mutual_information(scores, 1.0), nce)
    sure = torch.eye(9, dtype=torch.float64) * 500
    assert float(mutual_information(sure, 1.0)) == pytest.approx(math.log(9))
    plain = 1 + scores.diagonal().mean() - (scores.exp().sum() - scores.diagonal().exp().sum()) / 72
    assert torch.allclose(mutual_information(scores, 0.0), plain)


def test_without_weight_it_is_plain_distillation(linear, minibatch):
    teacher, student = linear(0), linear(1)
    params = MIAlphaParams(teacher="t", student="tiny-cnn", weight=0.0)
    parts = {"own": torch.nn.Linear(64, 8), "theirs": torch.nn.Linear(64, 8)}
    kd = plugins.load("defenses", "kd")
    loss, measured = MIAlphaRecipe(Teacher(teacher), params, student).loss(with_auxiliary(student, **parts), minibatch)
    assert torch.allclose(
        loss, kd.recipe(Teacher(teacher), kd.Params(teacher="t", student="tiny-cnn")).loss(student, minibatch)[0]
    )
    assert measured["mutual_information"].item() <= math.log(32) + 1


# DistillNearest, DistillWeighted.


def test_the_weights_are_powers_of_the_similarities():
    assert weights_of([0.4, 0.4], 3.0) == [0.5, 0.5]
    assert weights_of([0.1, 0.3], 1.0) == pytest.approx([0.25, 0.75])
    assert weights_of([0.1, 0.3, 0.2], 0.0) == pytest.approx([1 / 3] * 3)
    assert weights_of([0.1, 0.3, -0.2], 2000.0) == pytest.approx([0, 1, 0])
    assert weights_of([-0.1, -0.3], 2.0) == [0.5, 0.5]
    nearest = plugins.load("defenses", "distill-nearest")
    made = nearest(nearest.Params(teachers=["a", "b", "c"], student="tiny-cnn"))
    assert made.weights([0.1, 0.3, -0.2]) == [0, 1, 0]


def test_features_that_are_the_labels_are_most_similar_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    exact = torch.nn.functional.one_hot(labels).float() @ torch.randn(4, 12, generator=generator)
    noise = torch.randn(120, 12, generator=generator)
    values = [similarity(features, labels) for features in (exact, exact + noise, noise)]
    assert values[0] > values[1] > values[2]
    assert abs(values[2]) < 0.1
    assert similarity(torch.ones(120, 12), labels) == 0


def test_identical_sources_count_alike_and_the_heads_are_dropped(context, linear):
    kind = plugins.load("defenses", "distill-weighted")
    source, rows = linear(0), []
    given = context(targets={"a": source, "b": source}, log=lambda epoch, metrics: rows.append(metrics))
    params = kind.Params(teachers=["a", "b"], student="tiny-cnn", epochs=2, optimiser="adam", batch_size=60)
    student = kind(params).fit(given)
    assert not any("heads" in name for name, _ in student.module.named_parameters())
    assert last_linear(student.module).out_features == 10
