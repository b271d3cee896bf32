"""Which teacher, and which student: entropies by SciPy, scores of networks that are each other, and what chance does."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import robustkd
from robustkd import plugins
from robustkd.analyses.diswot import score, similarities
from robustkd.contracts import TargetError, ThreatModel
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget

THREAT = ThreatModel("linf", 0.1)


def made(kind, targets, **params):
    return plugins.make("analyses", {"kind": kind, **params}).with_targets(targets)


def test_teacher_entropy_is_that_on_what_every_reference_loses():
    target = fixtures.classifier(2)
    batch = fixtures.batch(target)
    references = {"one": fixtures.classifier(0), "other": fixtures.classifier(1)}
    attack = {"kind": "pgd", "steps": 5}
    table = made("teacher-entropy", references, references=["one", "other"], attack=attack).run(target, batch, THREAT, 0)
    test = fixtures.digits().test
    stands = [
        robustkd.attack("pgd", model, batch.inputs, batch.labels, eps=0.1, steps=5, seed=3).outcome.standing
        for model in references.values()
    ]
    with torch.no_grad():
        p = target(torch.from_numpy(test.unit())).double().softmax(1).numpy()
    wanted = entropy(p, axis=1)
    found = dict(zip(table.rows, table.values, strict=True))
    assert found["all"][1] == pytest.approx(wanted.mean())
    assert found["all"][0] == len(test)
    parts = [row for row in table.rows if row != "all"]
    assert sum(found[row][0] for row in parts) == len(test)
    assert sum(found[row][0] * found[row][1] for row in parts) / len(test) == pytest.approx(wanted.mean())
    # Another seed of the same attack loses about the same samples.
    lost = ~np.logical_or(*stands)
    assert abs(table.metrics["unlearnable"] - lost.mean()) <= 0.2
    assert "2.3" in table.caption  # log 10


def test_one_that_nothing_breaks_leaves_no_sample_unlearnable():
    target = fixtures.classifier()
    batch = fixtures.batch(target)
    table = made("teacher-entropy", {"one": target}, references=["one"], attack="fgsm").run(
        target, batch, ThreatModel("linf", 0.0), 0
    )
    with torch.no_grad():
        wrong = target(batch.inputs).argmax(1) != batch.labels
    assert table.metrics["unlearnable"] == pytest.approx(float(wrong.double().mean()))


def network(model="tiny-cnn", seed=0):
    torch.manual_seed(seed)
    return ClassifierTarget.from_model(model, {}, input_shape=(1, 8, 8), num_classes=10)


def images():
    return torch.from_numpy(fixtures.digits().test.unit())


def test_a_student_of_the_teachers_architecture_has_score_zero():
    assert score(network(), network(seed=5), images(), 0, 2) == 0
    assert score(network(), network("small-cnn"), images(), 0, 2) < 0


def test_the_score_does_not_depend_on_the_order_of_the_images():
    turned = images()[torch.randperm(len(images()))]
    one, other = (score(network(), network("small-cnn"), x, 0, 1) for x in (images(), turned))
    assert one == pytest.approx(other, rel=1e-4)


def test_similarities_are_cosines_of_maps_by_hand():
    """Of a network of one convolution and a linear layer on its mean, the gradient of a logit is the layer's weight."""
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    x = images()[:5]
    classes, samples = similarities(ClassifierTarget(module, num_classes=4, input_shape=(1, 8, 8)), x)
    with torch.no_grad():
        maps = module[0](x).double()
        cams = torch.einsum("kc,bchw->bkhw", module[3].weight.double(), maps).flatten(2).numpy()
        flat = maps.flatten(1).numpy()

    def cosines(rows):
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        return unit @ np.swapaxes(unit, -1, -2)

    assert np.allclose(classes.numpy(), cosines(cams).mean(0), atol=1e-5)
    assert np.allclose(samples.numpy(), cosines(flat), atol=1e-5)


def test_diswot_tells_sizes_and_accuracies_beside_the_scores():
    students = {name: fixtures.classifier(seed) for seed, name in enumerate(("a", "b", "c"))}
    table = made("diswot", students, students=["a", "b", "c"], attack="fgsm", draws=1).run(
        fixtures.classifier(3), fixtures.batch(fixtures.classifier(3)), THREAT, 0
    )
    assert table.columns == ["score", "parameters", "clean", "robust"]
    assert [row[0] for row in table.values] == [0, 0, 0]
    size = sum(weight.numel() for weight in students["a"].module.parameters())
    assert {row[1] for row in table.values} == {size}
    assert table.metrics["rank_correlation"] == 0  # scores that are equal rank nothing
    assert table.metrics["chance"] == 1  # of three, no order is beyond chance


def test_an_ensemble_is_no_architecture():
    with pytest.raises(TargetError, match="single ones"):
        made("diswot", {"a": fixtures.classifier()}, students=["a"]).run(
            fixtures.ensemble(), fixtures.batch(fixtures.ensemble()), THREAT, 0
        )
