"""HeLlO's projector: what learns, what stays, and what it comes to."""

import torch
from torch import nn

from robustkd import plugins
from robustkd.defenses.training import kl
from robustkd.defenses.training.modules import LowRank
from robustkd.plugin_kit import fixtures
from robustkd.targets.activations import last_linear

TRAIN = {"epochs": 6, "batch_size": 32, "optimiser": "adam", "lr": 0.01, "weight_decay": 0}


def projected(rank, log=lambda epoch, metrics: None, **settings):
    defense = plugins.make("defenses", {"kind": "hello", "teacher": "t", "encoder": "e", "rank": rank, **TRAIN | settings})
    targets = {"t": fixtures.classifier(), "e": fixtures.classifier(1)}
    with fixtures.context(targets=targets, log=log) as context:
        return defense.fit(context)


def disagreement(target):
    """KL from the teacher on validation images, which the projector has not seen."""
    x = torch.from_numpy(fixtures.digits().validation.unit())
    with torch.no_grad():
        return kl(fixtures.classifier()(x), target(x), reduction="batch").item()


def test_a_fresh_update_changes_nothing_and_a_baked_one_answers_as_before():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(4, 1, 4, 4)
    before = network(x)
    wrapped = LowRank(network, network[4], 2)
    assert torch.equal(wrapped(x), before)
    learning = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert learning == {"network.4.weight", "network.4.bias", *(f"{part}.{n}" for part in ("rows", "columns") for n in (0, 1))}
    with torch.no_grad():
        for rows in wrapped.rows:
            rows.normal_()
    moved = wrapped(x)
    assert not torch.allclose(moved, before)
    update = wrapped.rows[0] @ wrapped.columns[0]
    assert torch.linalg.matrix_rank(update) == 2
    wrapped.bake()
    assert torch.allclose(network(x), moved, atol=1e-6)


def test_rank_zero_learns_the_head_alone_and_more_rank_agrees_better_on_images_that_were_not_seen():
    encoder, alone = fixtures.classifier(1), projected(0)
    head = {f"{name}" for name, module in encoder.module.named_modules() if module is last_linear(encoder.module)}
    changed = {
        name.rpartition(".")[0]
        for name, weight in encoder.module.state_dict().items()
        if not torch.equal(weight, alone.module.state_dict()[name])
    }
    assert changed == head
    assert disagreement(projected(4, epochs=20)) < disagreement(alone) < disagreement(encoder)


def test_it_says_how_many_numbers_must_be_kept():
    log = []
    target = projected(2, log=lambda epoch, metrics: log.append(metrics["kept_numbers"]))
    weights = [w for w in target.module.parameters() if w.dim() > 1]
    head = last_linear(target.module)
    low = sum(2 * (len(w) + w[0].numel()) for w in weights if w is not head.weight)
    assert set(log) == {low + head.weight.numel() + head.bias.numel()}


def test_a_training_on_a_condensed_set_takes_it_as_the_teacher():
    made = {"kind": "condensed-data", "condenser": {"kind": "random-subset", "images_per_class": 2}}
    recipe = {"kind": "kd", "teacher": "p", "student": "tiny-cnn", **TRAIN, "epochs": 1}
    with fixtures.context() as context:
        small = plugins.make("defenses", made).fit(context)
    with fixtures.context(targets={"s": small, "p": projected(1, epochs=1)}) as context:
        trained = plugins.make("defenses", {"kind": "train-on-condensed", "data": "s", "recipe": recipe}).fit(context)
    assert trained(torch.from_numpy(small.arrays.unit())).shape == (20, 10)
