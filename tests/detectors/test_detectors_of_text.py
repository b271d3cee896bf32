"""Detectors of prompts: the student's loss and score, each in a pass of its own, and the filter around a model."""

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.attacks.text.engine.target_prefix import losses as aimed
from robustkd.contracts import DataError, Filtered, FitContext, Prompts, Request, TargetError, ThreatModel
from robustkd.defenses.text.guards.perplexity_filter import log_perplexity
from robustkd.detectors.mlkd_ood import MLKDOOD, Layers, MLKDOODParams, losses
from robustkd.scoring.detection import auroc
from robustkd.targets import load_target, save_target
from robustkd.targets.guarded import BehindGuards, guards_of, unguarded
from support.toy_language_model import toy_language_model

WORDS = tuple(f"w{number}" for number in range(20))


def sentence(start, length=8):
    """Each word is followed by the next one."""
    return " ".join(WORDS[(start + place) % len(WORDS)] for place in range(length))


def shuffled(seed, length=8):
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


CLEAN = tuple(sentence(start) for start in range(20))
STRANGE = tuple(shuffled(seed) for seed in range(20))


@pytest.fixture(scope="module")
def teacher():
    """A toy model that has learnt that each word is followed by the next one."""
    model = toy_language_model(WORDS, initializer_range=0.1)
    batch = model.batch([model.encode(text).reading() for text in CLEAN])
    optimiser = torch.optim.Adam(model.module.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        (-model.completion_logprob(batch).mean()).backward()
        optimiser.step()
    return model


def context(tmp_path, model, validation=CLEAN):
    def prompts(texts):
        return Prompts({"prompt": texts}, np.zeros(len(texts), dtype=np.int64))

    held = prompts(validation) if validation else None
    cpu, threat = torch.device("cpu"), ThreatModel.by_prompt(1)
    return FitContext(prompts(CLEAN), held, (), 1, threat, 0, cpu, tmp_path, targets={"bare": model})


def detecting(tmp_path, model, detector, rate=0.1):
    made = {"kind": "detector-filter", "model": "bare", "detector": detector, "false_positive_rate": rate}
    return plugins.make("defenses", made).fit(context(tmp_path, model))


def test_a_student_that_is_its_teacher_has_no_loss(teacher):
    layers = Layers(16, 16, (2, 2))
    for linear in layers.maps:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    items = [teacher.encode(text).reading() for text in CLEAN[:3]]
    token, hidden = losses(teacher, teacher, layers, items)
    assert float(token.detach()) == pytest.approx(0, abs=1e-6)
    alone = Layers(16, 16, (1, 1))
    alone.load_state_dict({"weights": torch.zeros(1, 1), "maps.0.weight": torch.eye(16), "maps.0.bias": torch.zeros(16)})
    states = torch.rand(5, 16)
    assert alone([states], [states]) == 0
    assert hidden > 0  # two layers of the teacher are to be met by each of the student


def test_the_divergence_is_the_mean_over_the_prompts_tokens(teacher):
    student = toy_language_model(WORDS, seed=3)
    items = [teacher.encode(text).reading() for text in (CLEAN[0], sentence(3, 4))]
    found, _ = losses(student, teacher, Layers(16, 16, (2, 2)), items)
    terms = []
    for item in items:
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            p, q = (model.module(input_ids=ids).logits[0].double().log_softmax(1) for model in (teacher, student))
        terms += [(p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum() for at in range(len(item.ids))[item.completion]]
    assert len(terms) == 12
    assert float(found.detach()) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)


def test_each_layer_goes_to_the_two_that_are_most_like_it():
    torch.manual_seed(0)
    layers = Layers(4, 4, (1, 3))
    with torch.no_grad():
        layers.maps[0].weight.copy_(torch.eye(4))
        layers.maps[0].bias.zero_()
        layers.weights.copy_(torch.tensor([[0.0, 5.0, 1.0]]))
    own = torch.rand(6, 4)
    near, far, nearer = own + 0.1, -own, own + 0.05
    share = torch.tensor([0.0, 1.0]).softmax(0)
    wanted = share[0] * (own - near).square().mean() + share[1] * (own - nearer).square().mean()
    assert float(layers([own], [near, far, nearer]).detach()) == pytest.approx(float(wanted), rel=1e-5)


def test_a_student_of_clean_prompts_tells_strange_ones(teacher, tmp_path):
    target = detecting(tmp_path, teacher, {"kind": "mlkd-ood", "width": 16, "steps": 60})
    clean, strange = target.scorer(list(CLEAN)), target.scorer(list(STRANGE))
    assert auroc(strange.numpy(), clean.numpy()) > 0.95
    untrained = MLKDOOD(MLKDOODParams(width=16)).build(teacher, {})
    assert auroc(untrained(list(STRANGE)).numpy(), untrained(list(CLEAN)).numpy()) < 0.8
    assert torch.allclose(clean, log_perplexity(target.scorer.student, CLEAN))


def test_the_filter_keeps_to_its_rate_and_holds_back_what_is_above(teacher, tmp_path):
    target = detecting(tmp_path, teacher, "perplexity", rate=0.1)
    known = log_perplexity(teacher, CLEAN)
    assert target.settings.threshold == pytest.approx(float(known.sort().values[-3]))
    held = [isinstance(answer, Filtered) for answer in target.respond([Request(text) for text in CLEAN])]
    assert sum(held) == 2
    assert all(isinstance(answer, Filtered) for answer in target.respond([Request(text) for text in STRANGE]))
    assert target.alarm(["w1 " * 200]).isnan().all()


@pytest.mark.parametrize("detector", ["perplexity", {"kind": "mlkd-ood", "width": 16, "steps": 3}])
def test_saved_and_loaded_it_holds_back_the_same(teacher, tmp_path, detector):
    target = detecting(tmp_path, teacher, detector)
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert torch.allclose(again.alarm(CLEAN + STRANGE), target.alarm(CLEAN + STRANGE), atol=1e-5)
    assert unguarded(again).kind == "causal-lm"


def test_one_seed_gives_one_student(teacher, tmp_path):
    one, other = (detecting(tmp_path, teacher, {"kind": "mlkd-ood", "width": 16, "steps": 5}) for _ in range(2))
    assert torch.equal(one.scorer(list(CLEAN)), other.scorer(list(CLEAN)))


def test_a_search_that_knows_the_guards_knows_the_detector(teacher, tmp_path):
    target = detecting(tmp_path, teacher, {"kind": "mlkd-ood", "width": 16, "steps": 30})
    behind = BehindGuards(target, weight=2.0, draws=1)
    texts = [CLEAN[0], STRANGE[0]]
    found = aimed(behind, texts, ["w1", "w2"])
    bare = aimed(teacher, texts, ["w1", "w2"])
    assert torch.allclose(found, bare + 2 * target.alarm(texts).clamp_min(0), atol=1e-4)
    assert [guard.kind for guard in guards_of(target)] == ["detector-filter"]


def test_without_validation_requests_there_is_no_threshold(teacher, tmp_path):
    made = plugins.make("defenses", {"kind": "detector-filter", "model": "bare", "detector": "perplexity"})
    with pytest.raises(DataError, match="set by validation requests"):
        made.fit(context(tmp_path, teacher, validation=()))


def test_a_detector_of_answers_holds_back_what_the_model_seldom_says(teacher, tmp_path):
    """The teacher goes on with the next words; asked by a sentence it says what it always says, asked by gibberish it does not."""
    made = {"kind": "detector-filter", "model": "bare", "detector": "perplexity", "false_positive_rate": 0.1, "reads": "answer"}
    target = plugins.make("defenses", made).fit(context(tmp_path, teacher))
    asked = [Request(text) for text in CLEAN + STRANGE]
    bare, behind = teacher.respond(asked), target.respond(asked)
    surprise = log_perplexity(teacher, bare)
    told = [bool(answer) for answer in bare]
    assert target.settings.threshold == pytest.approx(
        float(surprise[: len(CLEAN)][told[: len(CLEAN)]].sort().values[-3]), abs=1e-5
    )
    above = [bool(value > target.settings.threshold + 1e-4) and said for value, said in zip(surprise, told, strict=True)]
    assert [isinstance(answer, Filtered) for answer in behind] == above
    assert [a for a, held in zip(behind, above, strict=True) if not held] == [
        a for a, held in zip(bare, above, strict=True) if not held
    ]
    assert not target.alarm(["w1 w7 w3"]).any()
    assert not target.scored
    save_target(target, tmp_path)
    assert load_target(tmp_path).respond(asked) == behind
    with pytest.raises(TargetError, match="says yes or no"):
        BehindGuards(target, weight=1.0, draws=1)
