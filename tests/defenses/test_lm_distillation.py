"""Distilled language models: divergences against closed forms, texts that are drawn as said, and students that learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkd import plugins
from robustkd.contracts import DataError, FitContext, Request, TargetError, ThreatModel
from robustkd.defenses.text.distillation.engine.divergences import DivergenceName, DivergenceParams
from robustkd.defenses.text.distillation.engine.domains import domain_odds
from robustkd.defenses.text.distillation.engine.relations import relation_loss, relations
from robustkd.defenses.text.distillation.engine.sources import (
    FilterParams,
    Pool,
    SourceParams,
    Verified,
    choose,
    kept,
    speculate,
    write,
)
from robustkd.defenses.text.distillation.engine.token_sets import SinkhornParams
from robustkd.defenses.text.distillation.lm_distil import DistillationLoss, LMDistil, LMDistilParams
from robustkd.defenses.text.distillation.undo import NoiseParams, add_noise
from robustkd.defenses.training.divergence import kl
from robustkd.defenses.training.sinkhorn import sinkhorn_distance
from robustkd.targets import CausalLMTarget, load_target, save_target
from robustkd.targets.encoder_decoder import EncoderDecoderTarget
from robustkd.targets.residual_streams import blocks_of
from support.refusal_rows import ANSWERED, REFUSED, ROWS, WORDS, refusal_rows
from support.toy_language_model import toy_language_model

P, Q = (0.6, 0.3, 0.1), (0.2, 0.2, 0.6)
KL_PQ = 0.6 * math.log(3) + 0.3 * math.log(1.5) + 0.1 * math.log(1 / 6)
KL_QP = 0.2 * math.log(1 / 3) + 0.2 * math.log(2 / 3) + 0.6 * math.log(6)


def _kl(p: tuple[float, ...], q: tuple[float, ...]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _mixed(p: tuple[float, ...], q: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(share * a + (1 - share) * b for a, b in zip(p, q, strict=True))


CLOSED: dict[DivergenceName, float] = {
    "forward": KL_PQ,
    "reverse": KL_QP,
    "js": 0.5 * _kl(P, _mixed(P, Q, 0.5)) + 0.5 * _kl(Q, _mixed(P, Q, 0.5)),
    "tvd": 0.5,
    "skew-forward": _kl(P, _mixed(P, Q, 0.1)),
    "skew-reverse": _kl(Q, _mixed(Q, P, 0.1)),
    # The head of p up to 0.5 is its first token, where the gap is 0.4 of 1 in all.
    "adaptive": 0.4 * KL_PQ + 0.6 * KL_QP,
}
KINDS = sorted(CLOSED)


@pytest.mark.parametrize("kind", KINDS)
def test_three_words_by_hand(kind: DivergenceName) -> None:
    p, q = torch.tensor([P]).log() + 3.0, torch.tensor([Q]).log() - 7.0
    assert DivergenceParams(kind=kind)(p, q).tolist() == pytest.approx([CLOSED[kind]], abs=1e-6)


def test_the_mixture_of_js_is_the_teachers_share() -> None:
    between = _mixed(P, Q, 0.9)
    expected = 0.9 * _kl(P, between) + 0.1 * _kl(Q, between)
    found = DivergenceParams(kind="js", mixture=0.9)(torch.tensor([P]).log(), torch.tensor([Q]).log())
    assert found.item() == pytest.approx(expected, abs=1e-6)


LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=6, max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), LOGITS, LOGITS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_nothing_is_below_zero_and_equals_are_at_zero(
    kind: DivergenceName, some: list[float], others: list[float], dtype: torch.dtype
) -> None:
    divergence = DivergenceParams(kind=kind)
    p, q = (torch.tensor(logits).reshape(2, 3).to(dtype) for logits in (some, others))
    apart = divergence(p, q)
    assert apart.dtype == torch.float32
    assert (apart >= -1e-5).all()
    assert divergence(p, p).abs().max() < 1e-5
    # What bfloat16 logits say is computed as float32 says it of the same numbers.
    assert torch.equal(apart, divergence(p.float(), q.float()))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), LOGITS, LOGITS, st.sets(st.integers(0, 2), max_size=2), st.sets(st.integers(0, 2), max_size=2))
def test_a_word_that_is_ruled_out_costs_no_nan(
    kind: DivergenceName, some: list[float], others: list[float], teacher_never: set[int], never: set[int]
) -> None:
    p, q = torch.tensor(some).reshape(2, 3), torch.tensor(others).reshape(2, 3)
    p[:, sorted(teacher_never)] = -torch.inf
    q[:, sorted(never & teacher_never)] = -torch.inf  # what the teacher may say, the student may
    q.requires_grad_()
    apart = DivergenceParams(kind=kind)(p, q)
    assert not apart.isnan().any()
    if apart.isfinite().all():
        (gradient,) = torch.autograd.grad(apart.sum(), q)
        assert not gradient.isnan().any()


def test_a_divergence_of_images_knows_words_that_are_ruled_out_too() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert kl(logits, logits, reduction="batch").item() == 0
    assert kl(logits, torch.zeros(1, 3), reduction="batch").isfinite()


def test_the_sets_of_tokens_are_each_a_plan_of_their_own() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5, 4), torch.randn(5, 4)
    term = SinkhornParams(weight=0.5, temperature=1.0, size=3)
    of_sets = [
        sinkhorn_distance(q[part].softmax(1), p[part].softmax(1), term.regularisation, term.rounds)
        for part in (slice(0, 3), slice(3, 5))
    ]
    assert term(p, q).item() == pytest.approx(0.5 * float(sum(of_sets)) / 2)


def _context(tmp_path: Path, **targets: CausalLMTarget) -> FitContext:
    cpu = torch.device("cpu")
    return FitContext(refusal_rows(), refusal_rows(), (), 1, ThreatModel.by_prompt(5), 0, cpu, tmp_path, targets=targets)


def _base(seed: int = 0) -> CausalLMTarget:
    return toy_language_model(WORDS, seed, num_hidden_layers=1, initializer_range=0.25)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> CausalLMTarget:
    """It refuses what is forbidden and answers the rest."""
    defense = plugins.load("defenses", "refusal-sft")
    params = defense.Params(model="base", steps=40, batch_size=12, lr=0.02, share=0.5, random_suffix_tokens=2)
    context = _context(tmp_path_factory.mktemp("teacher"), base=_base())
    tuned: CausalLMTarget = defense(params).fit(context)
    assert tuned.respond([Request(ROWS[row][1]) for row in REFUSED]) == ["sorry no"] * len(REFUSED)
    return tuned


METHODS: dict[str, dict[str, Any]] = {
    "lm-distil": {"start": "other"},
    "lm-distil, fresh": {"student": {"width": 16, "layers": 1, "heads": 2, "context": 64, "max_new_tokens": 6}},
    "lm-distil, reverse": {"start": "other", "divergence": {"kind": "reverse"}},
    "lm-distil, sequences": {"start": "other", "weight": 0, "weight_ce": 1, "source": {"kind": "teacher", "pool": 64}},
    "lm-distil, on policy": {"start": "other", "source": {"kind": "student", "pool": 64, "every": 4}},
    "lm-taid": {"start": "other"},
    "lm-sinkd": {"start": "other"},
    "osd": {"start": "other", "source": {"kind": "mixed-tokens", "pool": 64, "every": 8}},
    "ddk": {"start": "other", "domains": {"every": 5}},
    "impossible-distillation": {
        "start": "other",
        "source": {"kind": "mixed-requests", "teacher_share": 0.9, "pool": 64, "every": 8, "filters": {"likelihood": -2.0}},
    },
    "undo": {"noise": {"share": 0.5}},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_student_learns_what_its_teacher_says(name: str, teacher: CausalLMTarget, tmp_path: Path) -> None:
    before = {key: weight.clone() for key, weight in teacher.module.state_dict().items()}
    common = {"teacher": "teacher", "steps": 80, "batch_size": 12, "lr": 0.02, "forbidden": 0.5, "random_suffix_tokens": 2}
    defense = plugins.load("defenses", name.partition(",")[0])
    student = defense(defense.Params(**(common | METHODS[name]))).fit(_context(tmp_path, teacher=teacher, other=_base(1)))
    rows = (*REFUSED, *ANSWERED)
    asked = [Request(ROWS[row][1]) for row in rows]
    assert student.respond(asked) == teacher.respond(asked)
    assert all(torch.equal(weight, before[key]) for key, weight in teacher.module.state_dict().items())


def test_minilm_moves_the_attention_and_nothing_behind_it(teacher: CausalLMTarget, tmp_path: Path) -> None:
    defense = plugins.load("defenses", "minilm")
    start = _base(1)
    params = defense.Params(teacher="teacher", start="other", steps=40, batch_size=12, lr=0.02)
    student = defense(params).fit(_context(tmp_path, teacher=teacher, other=start))
    batch = teacher.batch([teacher.encode(prompt, response) for _, prompt, response in ROWS])
    with torch.no_grad():
        assert relation_loss(teacher, student, batch) < 0.2 * relation_loss(teacher, start, batch)
    last = blocks_of(student.module)[-1]
    assert torch.equal(last.mlp.down_proj.weight, blocks_of(start.module)[-1].mlp.down_proj.weight)


def test_relations_of_equal_models_are_equal_and_those_of_shuffled_heads_are_not(teacher: CausalLMTarget) -> None:
    batch = teacher.batch([teacher.encode(prompt, response) for _, prompt, response in ROWS])
    assert relation_loss(teacher, teacher, batch).item() == 0
    attention, values = relations(teacher, batch)
    for rows in (attention, values):
        assert torch.allclose(rows.sum(-1), torch.ones(()), atol=1e-5)
        assert rows.triu(1).abs().max() < 1e-6  # nobody looks ahead
    shuffled = teacher.with_module(_base().module)
    shuffled.module.load_state_dict(teacher.module.state_dict())
    own = blocks_of(shuffled.module)[-1].self_attn
    with torch.no_grad():
        for layer in (own.q_proj, own.k_proj, own.v_proj):
            layer.weight.copy_(layer.weight.unflatten(0, (2, -1)).flip(0).flatten(0, 1))
    assert relation_loss(teacher, shuffled, batch) > 0.01


def test_relations_need_as_many_heads(teacher: CausalLMTarget) -> None:
    other = toy_language_model(WORDS, 1, num_hidden_layers=1, num_attention_heads=4)
    batch = teacher.batch([teacher.encode("a b", "c")])
    with pytest.raises(TargetError, match="the teacher has 2 attention heads and the student 4"):
        relation_loss(teacher, other, batch)


def test_what_is_no_answer_has_no_part_in_value_or_gradient(teacher: CausalLMTarget) -> None:
    """Neither the request nor padding: only the logits that predict the answers' tokens get a gradient."""
    items = [teacher.encode("a b c", "d e"), teacher.encode("l", "n")]
    batch = teacher.batch(items)
    seen: list[torch.Tensor] = []
    handle = teacher.module.lm_head.register_forward_hook(lambda part, given, output: seen.append(output) or output)
    embedded = teacher.module.get_input_embeddings().weight.requires_grad_(True)
    rows = teacher.completion_logits(batch)
    handle.remove()
    assert rows.shape == (sum(len(item.ids[item.completion]) for item in items), len(WORDS) + 5)
    loss = DivergenceParams()(torch.zeros_like(rows), rows).mean()
    gradient, _ = torch.autograd.grad(loss, [seen[0], embedded])
    columns = batch.completion.any(0).nonzero().squeeze(1)
    answers = batch.completion[:, columns]
    assert (gradient[~answers] == 0).all()
    assert (gradient[answers].abs().sum(1) > 0).all()
    # Alone, the answers have the same logits: who shares a batch with them does not matter.
    alone = torch.cat([teacher.completion_logits(teacher.batch([item])) for item in items])
    assert torch.allclose(rows, alone, atol=1e-4)


def test_with_no_forbidden_request_in_the_data_none_is_trained_on(teacher: CausalLMTarget, tmp_path: Path) -> None:
    params = LMDistilParams(teacher="teacher", start="other", batch_size=64, forbidden=0, random_suffix_rate=0)
    loss = DistillationLoss(_context(tmp_path, teacher=teacher), teacher, params)
    generator = torch.Generator().manual_seed(0)
    prompts = {teacher.chat.decode(item.ids[item.prompt]).strip() for item in loss._take(teacher, 64, generator)}
    assert prompts == {ROWS[row][1] for row in ANSWERED}
    shared = DistillationLoss(_context(tmp_path, teacher=teacher), teacher, params.model_copy(update={"forbidden": 0.5}))
    asked = [teacher.chat.decode(item.ids[item.prompt]).strip() for item in shared._take(teacher, 64, generator)]
    assert sum(prompt in {ROWS[row][1] for row in REFUSED} for prompt in asked) == 32


def test_tokens_are_drawn_as_probable_as_they_are() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20000, -1)
    drawn = choose(logits, 1.0, torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(drawn, minlength=4) / 20000
    assert counts.tolist() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.012)
    assert choose(logits[:1], 0, torch.zeros(1)).item() == 0
    assert choose(torch.tensor([[0.0, -torch.inf]]), 1.0, torch.tensor([1 - 2**-24])).item() == 0
    assert choose(torch.tensor([[-torch.inf, 0.0]]), 1.0, torch.tensor([0.0])).item() == 1


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_the_likeliest_answers_are_those_that_a_model_gives(kind: Any, teacher: CausalLMTarget) -> None:
    other = _base(1)
    requests = [teacher.encode(prompt, "n") for _, prompt, _ in ROWS]
    written = write(teacher, other, requests, SourceParams(kind=kind, temperature=0), torch.Generator().manual_seed(0))
    writer = teacher if kind == "teacher" else other
    said = writer.respond([Request(prompt) for _, prompt, _ in ROWS])
    assert [
        writer.chat.written([token for token in item.ids[item.completion] if token not in writer.ends]) for item in written
    ] == said


def test_a_mixture_of_requests_is_of_whole_answers(teacher: CausalLMTarget) -> None:
    other = _base(1)
    requests = [teacher.encode("a b c", "n")] * 64
    params = SourceParams(kind="mixed-requests", teacher_share=0.5, temperature=0)
    written = write(teacher, other, requests, params, torch.Generator().manual_seed(0))
    ids = {tuple(item.ids[item.completion]) for item in written}
    alone = {
        tuple(
            write(teacher, other, requests[:1], SourceParams(kind=kind, temperature=0), torch.Generator())[0].ids[
                requests[0].completion.start :
            ]
        )
        for kind in ("teacher", "student")
    }
    assert ids == alone
    assert len(ids) == 2


def test_filters_keep_what_is_new_long_enough_and_likely(teacher: CausalLMTarget) -> None:
    refusal, wrong = teacher.encode("a b c", "sorry no"), teacher.encode("a b c", "p p p p")
    short = teacher.encode("a b c", "p")
    both = [refusal, refusal, wrong, short]
    assert kept(both, FilterParams(), teacher) == [refusal, wrong, short]
    assert kept(both, FilterParams(distinct=False), teacher) == both
    assert kept(both, FilterParams(shortest=3, longest=3), teacher) == [refusal]
    assert kept(both, FilterParams(likelihood=-0.5), teacher) == [refusal]
    with pytest.raises(DataError, match="keep none of 4"):
        kept(both, FilterParams(shortest=9), teacher)


def test_domains_are_drawn_by_how_far_the_student_lags() -> None:
    assert domain_odds([1.0, 2.0, 3.0], [0.5, 1.5, 2.5], 0.0).tolist() == pytest.approx([1 / 3] * 3)
    assert domain_odds([math.log(2), 0.0], [0.0, 0.0], 0.0).tolist() == pytest.approx([2 / 3, 1 / 3])
    mixed = domain_odds([math.log(2), 0.0], [0.0, 0.0], 0.5)
    assert mixed.tolist() == pytest.approx([0.25 + 1 / 3, 0.25 + 1 / 6])
    assert domain_odds([math.log(4), None, 0.0], [0.0, 0.0, 0.0], 0.0).tolist() == pytest.approx(
        [0.533333, 0.333333, 0.133333], abs=1e-5
    )


def test_noise_shrinks_and_spreads_as_said() -> None:
    torch.manual_seed(0)
    weight = torch.randn(200, 200) * 0.3 + 1
    noised = weight.clone()
    add_noise(noised, NoiseParams(share=0.4, scale=0.5))
    rest = noised - 0.6 * weight
    assert rest.std().item() == pytest.approx(0.4 * 0.5 * 0.3, rel=0.02)
    assert rest.mean().item() == pytest.approx(0, abs=0.002)
    same = weight.clone()
    add_noise(same, NoiseParams(share=0))
    assert torch.equal(same, weight)


@pytest.mark.parametrize(
    "more",
    [
        {"interpolation": {"t_start": 0.3, "step": 0.1, "momentum": 0.5}},
        {"source": {"kind": "student", "pool": 8, "every": 3}},
        {"domains": {"every": 3}},
    ],
    ids=["taid", "pool", "domains"],
)
def test_a_killed_distillation_goes_on_where_it_was(more: dict[str, Any], teacher: CausalLMTarget, tmp_path: Path) -> None:
    params = LMDistilParams(teacher="teacher", start="other", batch_size=4, steps=8, **more)
    context = _context(tmp_path / "whole", teacher=teacher, other=_base(1))
    whole = LMDistil(params).fit(context).module.state_dict()
    loss = DistillationLoss(context, teacher, params)
    student = _base(1)
    for step in range(4):
        loss(student, torch.Generator().manual_seed(step))
    other = DistillationLoss(context, teacher, params)
    other.load_state_dict(loss.state_dict())
    values = [each(student, torch.Generator().manual_seed(4)).item() for each in (loss, other)]
    assert values[0] == values[1]
    again = LMDistil(params).fit(replace(context, checkpoints=tmp_path / "again")).module.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())


def test_a_student_of_other_tokens_is_refused(teacher: CausalLMTarget, tmp_path: Path) -> None:
    other = toy_language_model((*WORDS, "more"), 1)
    with pytest.raises(TargetError, match="are not those of its teacher 'teacher'"):
        LMDistil(LMDistilParams(teacher="teacher", start="other")).fit(_context(tmp_path, teacher=teacher, other=other))


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"weight": 0}, "nothing is minimised"),
        ({"forbidden": 0.7, "knowledge": 0.5}, "more than all requests"),
        ({"domains": {}, "source": {"kind": "teacher"}}, "leave source"),
    ],
)
def test_settings_that_cannot_be_meant(params: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LMDistilParams(teacher="teacher", **params)


def test_what_is_verified_is_distributed_as_the_teachers_and_rejected_as_often_as_said() -> None:
    """Ten thousand draws over five words: a chi-square of the accepted ones, and alpha = sum min(p, q)."""
    p, q = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])
    uniform = torch.rand(3, 10000, generator=torch.Generator().manual_seed(0))
    chosen, rejected = speculate(p.log().expand(10000, -1), q.log().expand(10000, -1), 1.0, uniform)
    expected = 10000 * p
    statistic = float(((torch.bincount(chosen, minlength=5) - expected).square() / expected).sum())
    assert statistic < 13.28  # 99 % of chi-square with 4 degrees of freedom
    assert float(rejected.float().mean()) == pytest.approx(1 - (0.1 + 0.1 + 0.15 + 0.1 + 0.05), abs=0.015)
    same, wrong = speculate(p.log()[None], p.log()[None], 1.0, uniform[:, :1])
    assert not wrong.any()
    assert torch.equal(same, choose(p.log()[None], 1.0, uniform[0, :1]))
    best, wrong = speculate(p.log()[None], q.log()[None], 0, uniform[:, :1])
    assert (best.item(), wrong.item()) == (0, True)


def test_a_student_is_trained_where_it_was_rejected(teacher: CausalLMTarget, tmp_path: Path) -> None:
    """The loss is the mean over the rejected tokens of what the pool holds, and a pool that is stored has them still."""
    params = LMDistilParams(
        teacher="teacher", start="other", batch_size=4, random_suffix_rate=0, source=SourceParams(kind="speculative", pool=8)
    )
    student, generator = _base(1), torch.Generator().manual_seed(0)
    loss = DistillationLoss(_context(tmp_path, teacher=teacher), teacher, params)
    value = loss(student, generator)
    (pool,) = [part for part in [loss._source] if isinstance(part, Pool)]
    assert all(isinstance(item, Verified) and len(item.rejected) == len(item.ids[item.completion]) for item in pool.items)
    again = DistillationLoss(_context(tmp_path, teacher=teacher), teacher, params)
    again.load_state_dict(loss.state_dict())
    assert isinstance(again._source, Pool)
    assert again._source.items == pool.items
    batch_items = [
        Verified(item.ids, item.prompt, item.completion, tuple(place % 2 == 0 for place in range(len(item.rejected))))
        for item in pool.items[:4]
    ]
    marks = torch.tensor([mark for item in batch_items for mark in item.rejected])
    batch = student.batch(batch_items)
    apart = DivergenceParams()(teacher.completion_logits(batch), student.completion_logits(batch))
    loss._take = lambda target, count, draws: batch_items
    assert marks.any()
    assert not marks.all()
    assert loss(student, generator).item() == pytest.approx(float(apart[marks].mean()), rel=1e-5)
    every = DistillationLoss(
        _context(tmp_path, teacher=teacher),
        teacher,
        params.model_copy(update={"source": SourceParams(kind="speculative", rejected=False)}),
    )
    every._take = loss._take
    assert every(student, generator).item() == pytest.approx(float(apart.mean()), rel=1e-5)
    nothing = [Verified(item.ids, item.prompt, item.completion, (False,) * len(item.rejected)) for item in batch_items]
    loss._take = lambda target, count, draws: nothing
    assert loss(student, generator).item() == 0
    assert float(value) > 0


def _two_stacks(teacher: CausalLMTarget, folder: Path, steps: int) -> EncoderDecoderTarget:
    """An encoder-decoder student of the teacher."""
    defense = plugins.load("defenses", "encoder-decoder-student")
    shape = {"width": 16, "layers": 1, "heads": 2, "max_new_tokens": 6}
    common = {"batch_size": 12, "lr": 0.01, "forbidden": 0.5, "random_suffix_rate": 0}
    params = defense.Params(teacher="teacher", student=shape, steps=steps, **common)
    made: EncoderDecoderTarget = defense(params).fit(_context(folder, teacher=teacher))
    return made


@pytest.fixture(scope="module")
def two_stacks(teacher: CausalLMTarget, tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoderTarget:
    """One that has hardly learnt."""
    return _two_stacks(teacher, tmp_path_factory.mktemp("two-stacks"), 5)


@pytest.mark.slow
def test_two_stacks_learn_what_their_teacher_says(teacher: CausalLMTarget, tmp_path: Path) -> None:
    asked = [Request(ROWS[row][1]) for row in (*REFUSED, *ANSWERED)]
    assert _two_stacks(teacher, tmp_path, 150).respond(asked) == teacher.respond(asked)


def test_two_stacks_come_back_from_their_file_and_answer_each_alone(two_stacks: EncoderDecoderTarget, tmp_path: Path) -> None:
    asked = [Request(ROWS[row][1]) for row in (*REFUSED, *ANSWERED)]
    save_target(two_stacks, tmp_path)
    again = load_target(tmp_path)
    assert again.respond(asked) == two_stacks.respond(asked)
    assert [again.respond([one])[0] for one in asked] == two_stacks.respond(asked)
    defense = plugins.make("defenses", {"kind": "encoder-decoder-student", "teacher": "t"})
    assert "gradients" not in defense.target_capabilities({})


def test_the_decoder_is_shifted_as_t5_shifts_it(two_stacks: EncoderDecoderTarget) -> None:
    """Our logits have the cross entropy that transformers computes of the same labels."""
    items = [two_stacks.encode("a b c", "d e"), two_stacks.encode("l m", "n")]
    own = -two_stacks.token_logprobs(two_stacks.batch(items)).detach()
    theirs = []
    for item in items:
        read, said = item.ids[: item.completion.start], item.ids[item.completion]
        with torch.no_grad():
            found = two_stacks.module(input_ids=torch.tensor([read]), labels=torch.tensor([said]))
        theirs += [float(found.loss)] * len(said)
    parts = own.split([len(item.ids[item.completion]) for item in items])
    assert [float(part.mean()) for part in parts for _ in part] == pytest.approx(theirs, rel=1e-4)


def test_a_begun_answer_is_put_into_the_decoder(two_stacks: EncoderDecoderTarget) -> None:
    (found,) = two_stacks.respond([Request("a b c", prefill="d")])
    read = torch.tensor([two_stacks.encode("a b c").ids])
    begun = two_stacks.encode("a b c", prefill="d").ids[read.shape[1] :]
    said = [two_stacks.chat.pad, *begun]
    with torch.no_grad():
        while len(said) - 1 - len(begun) < two_stacks.max_new_tokens and said[-1] != two_stacks.chat.end_of_turn:
            said.append(int(two_stacks.module(input_ids=read, decoder_input_ids=torch.tensor([said])).logits[0, -1].argmax()))
    assert found == two_stacks.chat.decode(said[1 + len(begun) :]).strip()
    with pytest.raises(ValueError, match="writes no texts for its own training"):
        plugins.load("defenses", "encoder-decoder-student").Params(teacher="teacher", source={"kind": "student"})
