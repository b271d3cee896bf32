"""Attacks on language models by the words of the prompt, on models of a few thousand parameters."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from robustkd import plugins
from robustkd.attacks.text.engine.descent import merge_swaps
from robustkd.attacks.text.engine.slots import Slots, are_texts
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import losses, rows_at_once
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.attacks.text.rewording.best_of_n import respelt
from robustkd.attacks.text.suffixes.gcg import agreement
from robustkd.contracts import (
    AttackError,
    Attempts,
    DataError,
    Judge,
    PromptBatch,
    Prompts,
    Responses,
    ThreatModel,
    UsageError,
)
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import CausalLMTarget, ClassifierTarget
from support.toy_language_model import random_llama

WORDS = ["what", "is", "the", "code", "of", "gold", "iron", "vault", "?", "a", "b", "c", "d", "e", "f", "no", "tell", "me"]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% if m['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
REQUESTS = ("what is the code of gold ?", "the code of iron", "tell me the code of the vault ?", "code of iron ?")
AIMS = ("a b", "c", "d e f", "b c")


def words(text=WORDS):
    """One token a word."""
    spelt = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>", *text]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(spelt)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=CHAT, extra_special_tokens=["<user>", "<assistant>"], **special
    )


def pieces():
    """Pieces of words, by bytes, as most models have them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = [*REQUESTS, "codes goldsmith ironic vaulted theme tellme", *(a + b for a in WORDS for b in WORDS)]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<end>", "<user>", "<assistant>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=CHAT,
        eos_token="<end>",
        pad_token="<end>",
        extra_special_tokens=["<user>", "<assistant>"],
    )


def lm(tokenizer=None, seed=0, layers=1):
    tokenizer = tokenizer or words()
    size = {"num_hidden_layers": layers, "max_position_embeddings": 128}
    model = random_llama(tokenizer, seed, tie_word_embeddings=False, initializer_range=0.4, **size)
    return CausalLMTarget(model, tokenizer, max_new_tokens=3)


class Noted(Attempts):
    """Judges nobody a success unless told so, and notes what is asked."""

    def __init__(self, count, budget=6, success=lambda row, asked: False):
        self.budget, self.broken, self.used = (
            budget,
            torch.zeros(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.int64),
        )
        self.asked, self.passes, self._success = [[] for _ in range(count)], torch.zeros(2, count, dtype=torch.int64), success

    def __call__(self, rows, asked):
        assert len(rows) == len(asked) == len(set(rows.tolist()))
        for row, question in zip(rows.tolist(), asked, strict=True):
            assert self.used[row] < self.budget
            self.used[row] += 1
            self.asked[row].append(question)
            self.broken[row] |= self._success(row, question)
        return self.broken[rows]

    def leave(self, rows, why):
        self.left = rows.tolist()
        self.used[rows] = self.budget

    def spend(self, rows, forwards=0, backwards=0):
        self.passes[:, rows] += torch.tensor([[forwards], [backwards]])


def batch_of(requests=REQUESTS, aims=AIMS, **columns):
    prompts = Prompts({"prompt": tuple(requests), "target": tuple(aims), **columns}, np.zeros(len(requests), dtype=np.int64))
    nothing = np.zeros(len(requests), dtype=bool)
    return PromptBatch(prompts, torch.arange(len(requests)), Responses(prompts, [""] * len(requests), nothing), ~nothing)


def attack(kind, target, batch=None, attempts=None, models=None, **params):
    """Run it on a batch; what was asked and spent."""
    batch = batch or batch_of()
    attempts = attempts or Noted(len(batch))
    plugin = plugins.load("attacks", kind)
    threat = ThreatModel.by_prompt(attempts.budget, plugin.space)
    made = plugin(plugin.Params(**params)).with_targets(models or {})
    made.search(target, batch, attempts, threat, SampleRng(0, batch.index))
    return attempts


def loss(target, prompt, aim):
    """By the whole text, in a pass of its own."""
    tokens = target.encode(prompt, aim, ends=False)
    with torch.no_grad():
        logprobs = target(torch.tensor([tokens.ids]))[0].log_softmax(-1)
    places = range(tokens.completion.start, tokens.completion.stop)
    return -float(torch.stack([logprobs[place - 1, tokens.ids[place]] for place in places]).mean())


class Answers(Judge):
    """The answer holds the word in the column ``answer``."""

    def complied(self, requests, outputs):
        return np.array([word in text.split() for word, text in zip(requests["answer"], outputs, strict=True)])


SEARCHES = {
    "gcg": {"tokens": 3, "steps": 4, "width": 8, "top_k": 6, "merge": 3},
    "random-search": {"tokens": 3, "steps": 4, "width": 4},
    "beast": {"tokens": 3, "beams": 3, "branches": 3},
    "autodan": {"generations": 3, "population": 6, "mutation": 0.1},
}
ASKING = {"direct": {}, "random-prompt": {"tokens": 3}, "human-jailbreaks": {}, "best-of-n": {}, "prefill": {}}


@pytest.fixture(params=[words, pieces])
def target(request):
    return lm(request.param(), layers=2)


def suffixes_of(target, count=3, requests=REQUESTS, aims=AIMS):
    """Suffixes behind the requests, and (A, count, 4) random ones that are texts, and these texts."""
    slots, attempts, places = Slots(target, requests), Noted(len(requests)), torch.arange(len(requests))
    vocabulary = Vocabulary.of(target)
    drawn = [vocabulary.random_suffixes(slots, 4, SampleRng(0, places, str(number)))[0] for number in range(count)]
    ids = torch.stack(drawn, 1)
    return Suffixes(slots, aims, places, attempts), ids, slots.texts(places, ids)


def test_losses_behind_cached_prefixes_are_those_of_whole_texts(target):
    suffixes, ids, texts = suffixes_of(target)
    among = are_texts(texts)
    assert among.all()
    among[0, 1] = False
    found = suffixes.losses(torch.arange(4), ids, among)
    assert found[0, 1] == torch.inf
    for row, column in among.nonzero().tolist():
        assert float(found[row, column]) == pytest.approx(loss(target, texts[row][column], AIMS[row]), abs=1e-4)
    assert suffixes._passes.passes.tolist() == [[2, 3, 3, 3], [0] * 4]


def test_losses_of_texts_are_those_of_whole_texts_and_infinite_beyond_the_context(target):
    prompts = [*REQUESTS, "code " * 200]
    found = losses(target, prompts, [*AIMS, "a"])
    assert found[:4].tolist() == pytest.approx(
        [loss(target, prompt, aim) for prompt, aim in zip(REQUESTS, AIMS, strict=True)], abs=1e-4
    )
    assert found[4] == torch.inf


def test_small_memory_changes_nothing(target, monkeypatch):
    suffixes, ids, texts = suffixes_of(target)
    places, among = torch.arange(4), are_texts(texts)
    expected = suffixes.losses(places, ids, among), suffixes.gradient(places, ids[:, 0])
    monkeypatch.setattr("robustkd.attacks.text.engine.target_prefix._MEMORY", 1)
    assert rows_at_once(target, 10, 2) == 1
    assert torch.allclose(suffixes.losses(places, ids, among), expected[0], atol=1e-5)
    assert torch.allclose(suffixes.gradient(places, ids[:, 0]), expected[1], atol=1e-5)


def test_requests_are_looked_at_alone_when_those_of_other_lengths_are_done(target):
    suffixes, ids, texts = suffixes_of(target)
    whole = suffixes.losses(torch.arange(4), ids, are_texts(texts))
    for place in range(4):
        alone, one = torch.tensor([place]), slice(place, place + 1)
        assert torch.allclose(suffixes.losses(alone, ids[one], are_texts(texts)[one]), whole[one], atol=1e-5)
        assert torch.isfinite(suffixes.gradient(alone, ids[one, 0])).all()


def test_the_token_gradient_is_the_slope_towards_every_token(target):
    """By finite differences of the loss of the whole text, along the way from a token to each other one."""
    suffixes, ids, texts = suffixes_of(target, 1)
    target.module.double()
    suffixes = Suffixes(suffixes.slots, AIMS, suffixes.rows, Noted(4))
    slope = suffixes.gradient(torch.arange(4), ids[:, 0]).double()
    table = target.embedding.weight.detach()
    for row, place in ((0, 0), (2, 3)):
        batch = target.batch([target.encode(texts[row][0], AIMS[row], ends=False)])
        at = len(suffixes.slots.before[row]) + place
        whole = target.embed(batch.ids).detach()
        for token in range(0, len(table), 1 + len(table) // 12):
            way = table[token] - whole[0, at]
            values = []
            for step in (-1e-3, 1e-3):
                moved = whole.clone()
                moved[0, at] += step * way
                values.append(-target.completion_logprob(batch, moved).item())
            assert float(slope[row, place] @ way) == pytest.approx((values[1] - values[0]) / 2e-3, abs=2e-3)


def test_the_next_token_is_predicted_as_behind_the_whole_text(target):
    suffixes, ids, _ = suffixes_of(target)
    for width in (0, 2):
        found = suffixes.next_logprobs(torch.arange(4), ids[:, :, :width])
        for row, before in enumerate(suffixes.slots.before):
            with torch.no_grad():
                whole = target(torch.tensor([before + ids[row, 2, :width].tolist()]))[0, -1].log_softmax(-1)
            assert torch.allclose(found[row, 2], whole, atol=1e-4)


def test_only_ids_that_come_back_from_their_text_are_texts():
    """All pairs of tokens behind a request, against the template applied and tokenised by transformers."""
    target = lm(pieces())
    tokenizer = target.tokenizer
    tokens = torch.tensor([token for text, token in sorted(tokenizer.get_vocab().items()) if set(text) <= set("Ġabcdeofthl?")])
    pairs = torch.cartesian_prod(tokens, tokens)
    (texts,) = Slots(target, REQUESTS[:1]).texts(torch.tensor([0]), pairs[None])
    before = target.encode(REQUESTS[0])
    for pair, text in zip(pairs.tolist(), texts, strict=True):
        prompt = REQUESTS[0] + tokenizer.decode(pair)
        laid = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)["input_ids"]
        stays = laid == before.ids[: before.prompt.stop] + pair + before.ids[before.prompt.stop :]
        assert text == (prompt if stays else None)
    assert 0.05 < np.mean([text is None for text in texts]) < 0.95


def test_suffixes_are_of_text_that_is_no_special_token(target):
    vocabulary = Vocabulary.of(target)
    for token, allowed in enumerate(vocabulary.allowed.tolist()):
        text = target.tokenizer.decode([token])
        assert allowed == (text.strip() != "" and text.isascii() and text.isprintable() and token not in target.chat.special)
    assert vocabulary.allowed[vocabulary.words].all()


@pytest.mark.parametrize("kind", ["gcg", "autodan"])
def test_more_steps_are_never_worse(kind, target):
    """The one attempt is left for the last step, and goes to the best that was found."""
    size = {"gcg": "steps", "autodan": "generations"}[kind]
    found = []
    for steps in (1, 3, 6):
        asked = attack(kind, target, attempts=Noted(4, budget=1), **SEARCHES[kind] | {size: steps}).asked
        found.append([loss(target, one.prompt, aim) for (one,), aim in zip(asked, AIMS, strict=True)])
    assert (np.diff(found, axis=0) <= 1e-5).all()
    assert np.mean(found[-1]) < np.mean(found[0])


def test_autodan_looks_at_other_prompts_in_each_generation(target):
    """At the paper's rate of mutation few children of short templates differ from what was looked at before."""
    spent = attack("autodan", target, batch_of(REQUESTS[:1], AIMS[:1]), generations=8, population=10).passes[0]
    assert spent.item() == 10 + 7 * 9  # the best one lives on


def test_gcg_ends_where_no_single_swap_helps():
    target = lm()
    asked = attack("gcg", target, attempts=Noted(4, budget=1), tokens=2, steps=8, width=40, top_k=20).asked
    for (one,), request, aim in zip(asked, REQUESTS, AIMS, strict=True):
        suffix = one.prompt.removeprefix(request).split()
        swaps = [[*suffix[:place], word, *suffix[place + 1 :]] for place in range(2) for word in WORDS]
        best = min(loss(target, " ".join([request, *swap]), aim) for swap in swaps)
        assert loss(target, one.prompt, aim) <= best + 1e-5


@pytest.mark.parametrize(
    ("kind", "params"), [("random-search", {"steps": 12, "width": 16}), ("beast", {"beams": 18, "branches": 1})]
)
def test_the_best_of_a_tiny_space_is_found(kind, params):
    target = lm()
    asked = attack(kind, target, attempts=Noted(4, budget=1), tokens=1, **params).asked
    for (one,), request, aim in zip(asked, REQUESTS, AIMS, strict=True):
        assert one.prompt == min((f"{request} {word}" for word in WORDS), key=lambda prompt: loss(target, prompt, aim))


def test_the_changes_of_the_best_are_made_one_upon_the_other():
    now = torch.tensor([[1, 2, 3], [4, 5, 6]])
    candidates = torch.tensor([[[1, 5, 3], [7, 2, 3], [1, 2, 8], [9, 2, 3]], [[4, 0, 6], [4, 5, 0], [0, 5, 6], [4, 1, 6]]])
    values = torch.tensor([[torch.inf, 0.3, 0.2, 0.1], [0.3, 0.1, 0.2, 0.4]])
    merged, new = merge_swaps(now, candidates, values, 4)
    assert merged.tolist() == [[[9, 2, 8], [9, 2, 8], [9, 2, 8]], [[0, 5, 0], [0, 0, 0], [0, 0, 0]]]
    assert new.tolist() == [[True, False, False], [True, True, False]]


def test_merging_swaps_costs_its_passes_and_helps_where_a_step_has_several(target):
    found = {
        merge: attack("gcg", target, attempts=Noted(4, budget=1), tokens=4, steps=2, width=40, top_k=12, merge=merge)
        for merge in (1, 4)
    }
    lowest = {
        merge: np.mean([loss(target, one.prompt, aim) for (one,), aim in zip(said.asked, AIMS, strict=True)])
        for merge, said in found.items()
    }
    assert lowest[4] < lowest[1] - 1e-3
    more = found[4].passes[0] - found[1].passes[0]
    assert (more <= 2 * 3).all()
    assert more.sum() > 0
    assert torch.equal(found[4].passes[1], found[1].passes[1])


def test_without_a_buffer_gcg_goes_uphill():
    target = lm()
    asked = {
        buffer: attack("gcg", target, attempts=Noted(4, 1), **SEARCHES["gcg"] | {"buffer": buffer, "width": 1, "steps": 8})
        for buffer in (0, 1, 5)
    }
    assert [one.prompt for (one,) in asked[0].asked] != [one.prompt for (one,) in asked[1].asked]
    assert (asked[5].passes[0] - asked[1].passes[0] == 4).all()


def test_probe_sampling_with_the_target_as_draft_looks_at_fewer_and_finds_the_best():
    target = lm()
    params = {"tokens": 3, "steps": 1, "width": 54, "top_k": 18}
    plain = attack("gcg", target, attempts=Noted(4, budget=1), **params)
    probed = attack("gcg", target, attempts=Noted(4, budget=1), models={"draft": lm()}, draft="draft", probe_share=10, **params)
    assert [one.prompt for (one,) in probed.asked] == [one.prompt for (one,) in plain.asked]
    assert (probed.passes[0] < 12).all()


def test_agreement_is_the_rank_correlation():
    draws = np.random.default_rng(0)
    a, b, where = draws.normal(size=(3, 30)), draws.normal(size=(3, 30)), draws.random((3, 30)) < 0.5
    b[0] += 2 * a[0]
    found = agreement(torch.tensor(a), torch.tensor(b), torch.tensor(where))
    assert found.tolist() == pytest.approx(
        [spearmanr(a[row, keep], b[row, keep])[0] for row, keep in enumerate(where)], abs=1e-5
    )
    assert agreement(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).tolist() == [0]


def test_attempts_are_spread_over_the_steps_and_none_is_made_twice():
    when = []
    attempts = Noted(1, 4, lambda row, asked: bool(when.append(int(attempts.passes[1, 0]))))
    attack("gcg", lm(), batch_of(REQUESTS[:1], AIMS[:1]), attempts, **SEARCHES["gcg"] | {"steps": 8})
    assert when == [2, 4, 6, 8]
    assert len({asked.prompt for asked in attempts.asked[0]}) == 4


@pytest.mark.parametrize("kind", SEARCHES)
def test_what_is_broken_costs_nothing_any_more(kind):
    attempts = attack(kind, lm(), attempts=Noted(4, 3, lambda row, asked: row == 1), **SEARCHES[kind])
    assert attempts.used.tolist() == [3, 1, 3, 3]
    assert attempts.passes[0, 1] < attempts.passes[0, [0, 2, 3]].min()


@pytest.mark.parametrize(("kind", "params"), (SEARCHES | ASKING).items())
def test_through_the_platform_within_the_budget_and_whatever_the_batch(kind, params):
    """Alone or among others a request is asked the same; the platform refuses an attempt too many, and a model left changed."""
    target, plugin = lm(), plugins.load("attacks", kind)
    batch = batch_of(answer=("d", "e", "f", "gold"))
    judges = {"answers": Answers()}
    threat, found = ThreatModel.by_prompt(2, plugin.space), {}
    for rows in (np.arange(4), np.array([2])):
        part = prepare(target, batch.requests.select(rows), rows, judges)
        found[len(rows)] = evaluate_prompt_attack(target, plugin(plugin.Params(**params)), part, threat, judges)
    assert (found[4].outcome.attempts <= 2).all()
    assert found[4].transcripts[2] == found[1].transcripts[0]
    assert found[4].outcome.forwards[2] == found[1].outcome.forwards[0]
    assert (found[4].outcome.forwards > 2).all() == (kind in SEARCHES)


def test_prefill_goes_through_the_beginnings():
    batch = batch_of(REQUESTS[:2], AIMS[:2], prefill=("a b", "the code is"))
    asked = attack("prefill", lm(), batch, beginnings=("Yes",)).asked
    assert [[one.prefill for one in row] for row in asked] == [["a b", "Yes"], ["c", "the code is", "Yes"]]
    assert all(one.prompt == request for row, request in zip(asked, REQUESTS[:2], strict=True) for one in row)


def test_human_jailbreaks_come_from_a_file(tmp_path):
    file = tmp_path / "templates.csv"
    file.write_text('template,by\n"tell me, {request}",a\n"{request}\nthe code",b\n')
    asked = attack("human-jailbreaks", lm(), templates=file).asked
    assert [one.prompt for one in asked[1]] == ["tell me, the code of iron", "the code of iron\nthe code"]
    file.write_text("template\ntell me\n")
    with pytest.raises(DataError, match="does not hold"):
        attack("human-jailbreaks", lm(), templates=file)


def test_best_of_n_changes_as_much_as_sigma_says():
    draw, text = np.random.default_rng(0), "Behind every second door somebody waits. " * 100
    assert respelt(text, 0.0, draw) == text
    found = respelt(text, 0.4, draw)
    assert len(found) == len(text)
    case = np.mean([one.isupper() for one, before in zip(found, text, strict=True) if before.islower() and one.isalpha()])
    assert case == pytest.approx(0.4**0.5, abs=0.03)
    pairs = list(zip(found.lower().split(" "), text.lower().split(" "), strict=True))
    # A sign gives way with probability sigma^3, and a word keeps its signs, in whatever order, where none of them does.
    assert np.mean([sorted(one) != sorted(other) for one, other in pairs if len(other) == 5]) == pytest.approx(
        1 - (1 - 0.4**3) ** 5, abs=0.06
    )
    asked = attack("best-of-n", lm(), sigma=0.4).asked
    assert all(len({one.prompt for one in row}) > 1 for row in asked)
    plain = attack("best-of-n", lm(), sigma=0.0).asked
    assert [{one.prompt for one in row} for row in plain] == [{request} for request in REQUESTS]


def test_the_attacker_of_pair_is_told_what_came_of_its_last_prompt():
    class Scripted(CausalLMTarget):
        def respond(self, asked):
            told.append([question.prompt for question in asked])
            return [f' "try {len(told)}" '] * len(asked)

    told, plain = [], lm()
    attempts = Noted(4, 5)
    attempts.answers = ["no way"] * 4
    attack(
        "pair",
        plain,
        attempts=attempts,
        models={"other": Scripted(plain.module, plain.tokenizer)},
        attacker="other",
        strategies=("Shout.", "Whisper."),
        rounds=4,
    )
    assert [one.prompt for one in attempts.asked[3]] == [f"try {number}" for number in range(1, 6)]
    assert all(part in told[0][3] for part in ("Shout.", REQUESTS[3], AIMS[3]))
    assert "You have tried" not in told[0][3]
    assert all(part in told[3][3] for part in ("Whisper.", "try 2", "no way"))
    classifier = ClassifierTarget(torch.nn.Flatten(), num_classes=4, input_shape=(1, 2, 2))
    with pytest.raises(UsageError, match="'other' is a classifier, where a model that answers is needed"):
        attack("pair", plain, models={"other": classifier}, attacker="other")


def test_what_cannot_be_attacked_is_said():
    with pytest.raises(DataError, match="'target' is empty for the request 'the code of iron'"):
        attack("gcg", lm(), batch_of(aims=("a", "", "b", "c")))
    with pytest.raises(ValueError, match="must hold"):
        plugins.load("attacks", "gcg").Params(template="no place")
    with pytest.raises(AttackError, match="no tokens of printable ASCII"):
        Vocabulary.of(lm(words(["où", "été"])))
