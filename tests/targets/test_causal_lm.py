"""A language model behind its chat template: tokens, log-probabilities, answers, files."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from robustkd.contracts import Request, TargetError, Unanswered
from robustkd.targets import CausalLMTarget, fingerprint, load_target, save_target
from robustkd.targets.chat import Chat
from support.toy_language_model import random_llama

WORDS = ["what", "is", "the", "code", "of", "gold", "iron", "vault", "?", "a", "b", "c", "d", "e", "f", "no"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% if m['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def words(template=TEMPLATE, **special):
    """One token a word."""
    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "<unk>", "<user>", "<assistant>", "<system>", "<end>", *WORDS])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<pad>"} | special
    roles = ["<user>", "<assistant>", "<system>"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        extra_special_tokens=roles,
        **{name: token for name, token in given.items() if token},
    )
    return made


def merging():
    """Characters, some of which merge with their neighbours: a tokeniser to which boundaries mean nothing."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz:?. \n"))
    pairs = [(":", " "), ("u", "s"), (": ", "a"), ("a", "b"), ("\n", "\n"), (" ", "t")]
    vocabulary = {text: number for number, text in enumerate(["<end>", *letters, *("".join(pair) for pair in pairs)])}
    backend = Tokenizer(models.BPE(vocabulary, pairs))
    backend.decoder = decoders.Fuse()
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}<end>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, eos_token="<end>", pad_token="<end>")


def target(seed=0, tokenizer=None, **changes):
    tokenizer = tokenizer or words()
    model = random_llama(tokenizer, seed, max_position_embeddings=48)
    return CausalLMTarget(model, tokenizer, **({"max_new_tokens": 6} | changes))


def test_the_parts_of_a_conversation_are_where_they_are_said_to_be():
    chat = Chat(words(), 48, "no")
    tokens = chat.encode("what is gold ?", "a b", "c")
    spelt = chat.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert spelt == ["<system>", "no", "<user>", "what", "is", "gold", "?", "<assistant>", "c", "a", "b", "<end>"]
    assert spelt[tokens.prompt] == ["what", "is", "gold", "?"]
    assert spelt[tokens.completion] == ["a", "b", "<end>"]
    assert chat.encode("what", "a", ends=False).ids[-1] == chat.tokenizer.convert_tokens_to_ids("a")
    assert chat.encode("").prompt == slice(3, 3)


@pytest.mark.parametrize(
    ("tokenizer", "prompts", "answers"),
    [
        (words(), ("the code", " gold ?", "a"), (("a b c", ""), (" the", "a"), ("a", "b"), ("a", "no <end>"))),
        (merging(), ("the code", " user", "ab", "a b\n"), (("abc", ""), (" the", "a"), ("a", "b"), ("\n", ""))),
    ],
    ids=["words", "merging"],
)
def test_one_tokenisation_for_every_path(tokenizer, prompts, answers):
    """What answers, attacks and preferences are made of begins with the same ids, and reads as the template has it."""
    chat = Chat(tokenizer, 200)
    for prompt in prompts:
        asked = chat.encode(prompt)
        template = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        assert asked.ids == template["input_ids"] == chat.laid_out([prompt])[0]
        for completion, prefill in answers:
            answered = chat.encode(prompt, completion, prefill)
            begun = chat.encode(prompt, prefill=prefill)
            assert begun.ids[: len(asked.ids)] == asked.ids
            assert answered.ids[: len(begun.ids)] == begun.ids
            assert answered.prompt == asked.prompt
            assert answered.completion == slice(len(begun.ids), len(answered.ids))
            assert chat.decode(answered.ids[answered.completion]).strip() == completion.strip()
            assert prompt.strip() in chat.decode(answered.ids[answered.prompt])


def test_padding_is_neither_seen_nor_counted():
    model = target()
    items = [
        model.encode("what", "a b"),
        model.encode("what is the code of gold ?", "no"),
        model.encode("gold vault", "c d e f"),
    ]
    batch = model.batch(items)
    logprobs = model.token_logprobs(batch)
    for row, item in enumerate(items):
        with torch.no_grad():
            logits = model(torch.tensor([item.ids]))[0].double().numpy()
        table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = np.zeros(batch.ids.shape[1])
        for place in range(item.completion.start, item.completion.stop):
            expected[place] = table[place - 1, item.ids[place]]
        np.testing.assert_allclose(logprobs[row].detach().numpy(), expected, atol=1e-5)
        mean = expected.sum() / (item.completion.stop - item.completion.start)
        assert model.completion_logprob(batch)[row].item() == pytest.approx(mean, abs=1e-5)


def test_embeddings_in_place_of_tokens_are_differentiable():
    model = target()
    batch = model.batch([model.encode("what is gold", "a b"), model.encode("what", "c")])
    embedded = model.embed(batch.ids).detach().requires_grad_()
    found = model.completion_logprob(batch, embedded)
    assert torch.allclose(found, model.completion_logprob(batch), atol=1e-6)
    (gradient,) = torch.autograd.grad(found[0], embedded)
    assert (gradient[0].abs().sum(1) > 0).tolist() == [True] * 7 + [False]  # nothing depends on the last token
    assert not gradient[1].any()


def test_a_prefix_that_is_shared_is_computed_once():
    model = target()
    batch = model.batch([model.encode(f"what is the {word}", "a b") for word in ("gold", "iron", "code of")])
    prefix = model.prefix(batch.ids[0, :4])
    plain = model.token_logprobs(batch)
    assert torch.allclose(model.token_logprobs(batch, prefix=prefix), plain, atol=1e-5)
    assert torch.allclose(model.token_logprobs(batch, model.embed(batch.ids), prefix), plain, atol=1e-5)
    with pytest.raises(TargetError, match="do not begin"):
        model.token_logprobs(model.batch([model.encode("is what the gold", "a b")]), prefix=prefix)
    with pytest.raises(TargetError, match="reaches into an answer"):
        model.token_logprobs(batch.select(slice(1)), prefix=model.prefix(batch.ids[0, :6]))


def test_an_answer_is_the_most_probable_one_and_does_not_depend_on_the_batch():
    model = target(3)
    asked = [
        Request("what is the code of gold"),
        Request("no"),
        Request("iron vault", prefill="a b"),
        Request("what ? what ? what ?"),
    ]
    answers = model.respond(asked)
    assert len(set(answers)) > 1
    assert answers == [model.respond([question])[0] for question in asked]
    for question, answer in zip(asked, answers, strict=True):
        ids, written = model.encode(question.prompt, prefill=question.prefill).ids, []
        while (
            len(written) < 6 and (chosen := int(model(torch.tensor([ids + written]))[0, -1].argmax())) != model.chat.end_of_turn
        ):
            written.append(chosen)
        assert model.chat.decode(written).strip() == answer


def test_embeddings_that_are_asked_stand_where_the_user_s_words_would():
    model = target(3)
    for said in ("what is gold", "no no no no no"):
        tokens = model.encode(said)
        given = model.embed(torch.tensor(tokens.ids[tokens.prompt]))
        assert model.respond([Request("the vault", embeddings=given)]) == model.respond([Request(said)])


def test_a_target_comes_back_the_same_with_tied_weights_written_once(tmp_path):
    model = target(1, system="no")
    save_target(model, tmp_path)
    again = load_target(tmp_path)
    assert isinstance(again, CausalLMTarget)
    assert fingerprint(again) == fingerprint(model) != fingerprint(target(1))
    assert again.chat.special == model.chat.special == set(range(6))
    assert again.respond([Request("what is iron")]) == model.respond([Request("what is iron")])
    assert {"model.embed_tokens.weight", "lm_head.weight"} - set(load_file(tmp_path / "weights.safetensors")) == {
        "lm_head.weight"
    }
    assert again.module.get_output_embeddings().weight is again.embedding.weight


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (words(template=None), "no chat template"),
        (words(template="{% for m in messages %}<user> {% endfor %}"), "does not show a message"),
        (words(template="{{ raise_exception('no system') }}"), "the chat template fails"),
        (words(template="{% for m in messages %}{{ m['content'] }} {% endfor %}", eos_token=""), "nothing ends an answer"),
    ],
)
def test_a_tokenizer_that_cannot_chat_is_refused(tokenizer, said):
    with pytest.raises(TargetError, match=said) as found:
        Chat(tokenizer, 48)
    assert found.value.fix


def test_without_a_pad_token_the_end_of_turn_pads_and_it_is_said(caplog):
    model = target(tokenizer=words(pad_token=""))
    assert "no pad token" in caplog.text
    items = [model.encode("what is gold", "a b"), model.encode("what", "c")]
    assert model.batch(items).ids[1, -1] == model.chat.end_of_turn
    assert torch.allclose(
        model.completion_logprob(model.batch(items))[1], model.completion_logprob(model.batch(items[1:]))[0], atol=1e-5
    )


def test_what_does_not_fit_into_the_context_has_no_answer():
    model = target()
    with pytest.raises(TargetError, match="more than the model's context of 48"):
        model.encode("what " * 50)
    # 45 tokens with the template: room for 3 of an answer, which is no reason to cut the other one.
    assert model.respond([Request("what " * 43), Request("no")])[1] == model.respond([Request("no")])[0]
    (none, some) = model.respond([Request("what " * 46), Request("no")])
    assert isinstance(none, Unanswered)
    assert "no room for an answer" in none
    assert some == model.respond([Request("no")])[0]
