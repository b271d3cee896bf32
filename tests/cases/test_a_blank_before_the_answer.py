"""Chat templates that write a blank before the answer: what is scored, and what an answer is begun with, are the model's own tokens.

Llama 2's, Mistral's and Vicuna's write a space, Zephyr's a new line. A model that was trained so says `▁Yes`, never `Ye` and `s`.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from robustkd import prompt_api
from robustkd.targets import CausalLMTarget
from support.toy_language_model import random_llama

LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) }}"
    "{{ '\n' + m['content'] | trim + '<end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
WORDS = ["Sure,", "here", "is", "it.", "Yes", "No", "say", "the", "house", "USER:", "ASSISTANT:", "[INST]", "[/INST]", "model"]
TEXTS = [" ".join([*WORDS[first:], *WORDS[:first]]) for first in range(len(WORDS))] * 4


def pieces(template: str, *special: str, prepend: bool = True) -> PreTrainedTokenizerFast:
    """Tokens as SentencePiece's: a space is a part of the word behind it. Gemma's puts none in front of a text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    written = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *written] if prepend else written)
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _trained(backend, template, special, [])


def letters(template: str, *special: str) -> PreTrainedTokenizerFast:
    """Tokens of bytes, as those of Llama 3 and Qwen: new lines are not parted."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    words = pre_tokenizers.Split(Regex(r"\s*[\r\n]+| ?[^\s]+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, template, special, pre_tokenizers.ByteLevel.alphabet())


def _trained(backend: Tokenizer, template: str, special: tuple[str, ...], alphabet: list[str]) -> PreTrainedTokenizerFast:
    first = ["<unk>", "<s>", "</s>", *special]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TEXTS, "\n\n"], trainer)
    backend.add_special_tokens([AddedToken(mark, normalized=False) for mark in first])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)


TOKENIZERS = {
    "llama 2": pieces(LLAMA_2),
    "mistral": pieces(MISTRAL, "[INST]", "[/INST]"),
    "vicuna": pieces(VICUNA),
    "zephyr": letters(ZEPHYR),
    "chatml": letters(CHATML, "<|im_start|>", "<|im_end|>"),
    "llama 3": letters(LLAMA_3, "<|start|>", "<|stop|>", "<|eot|>"),
    "gemma": pieces(GEMMA, "<start>", "<end>", prepend=False),
}


def model(tokenizer: PreTrainedTokenizerFast) -> CausalLMTarget:
    return CausalLMTarget(random_llama(tokenizer, max_position_embeddings=128), tokenizer, max_new_tokens=4)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("answer", ["Sure, here is it.", "Yes", "No house"])
def test_an_answer_has_the_tokens_that_the_template_gives_it(name: str, answer: str) -> None:
    tokenizer, target = TOKENIZERS[name], model(TOKENIZERS[name])
    asked = {"role": "user", "content": "say the house"}
    whole: list[int] = tokenizer.apply_chat_template([asked, {"role": "assistant", "content": answer}])["input_ids"]
    first, *rest = answer.split(" ")
    found = target.encode("say the house", answer, ends=False)
    begun = target.encode("say the house", "".join(f" {word}" for word in rest), prefill=first, ends=False)
    assert found.ids == whole[: len(found.ids)]
    assert begun.ids == found.ids
    assert tokenizer.decode(found.ids[found.completion]).strip() == answer
    bare: list[int] = tokenizer.apply_chat_template([asked], add_generation_prompt=True)["input_ids"]
    assert target.encode("say the house").ids == bare == found.ids[: found.completion.start]


@pytest.mark.parametrize("name", ["llama 2", "zephyr"])
def test_an_answer_that_brings_the_blank_gets_no_second_one(name: str) -> None:
    target, blank = model(TOKENIZERS[name]), "\n" if name == "zephyr" else " "
    assert target.encode("say", f"{blank}Yes").ids == target.encode("say", "Yes").ids
    assert target.encode("say", prefill=f"{blank}Yes").ids == target.encode("say", prefill="Yes").ids


@pytest.mark.parametrize(("name", "skipped"), [("llama 2", 0), ("vicuna", 0), ("zephyr", 1), ("chatml", 0)])
def test_the_first_word_is_behind_a_blank_that_is_a_token(name: str, skipped: int) -> None:
    target = model(TOKENIZERS[name])
    ids = target.encode("say the house", "Yes").ids[: len(target.encode("say the house").ids) + skipped]
    expected = target(torch.tensor([ids]))[0, -1].detach().log_softmax(-1)
    torch.testing.assert_close(target.first_token_logprobs("say the house"), expected, atol=1e-4, rtol=0)


def test_a_judge_that_is_right_by_its_own_words_is_right_here(tmp_path: Path) -> None:
    """It learnt from the template's own text; transformers' generate and ``audit_judges`` ask the same model."""
    tokenizer = TOKENIZERS["llama 2"]
    rows = [(f"say {word}", said, said != "No house") for word in WORDS[:8] for said in ("No house", "Sure, here", "it is")]
    texts = [
        [
            {"role": "user", "content": f"{asked} {said}"},
            {"role": "assistant", "content": "Yes" if complied else "No"},
        ]
        for asked, said, complied in rows
    ]
    learnt: list[list[int]] = tokenizer.apply_chat_template(texts)["input_ids"]
    judge = random_llama(tokenizer, max_position_embeddings=64, initializer_range=0.05, hidden_size=32)
    width = max(map(len, learnt))
    ids = torch.tensor([one + [-100] * (width - len(one)) for one in learnt])
    optimiser = torch.optim.AdamW(judge.parameters(), 5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        judge(input_ids=ids.clamp_min(0), attention_mask=(ids >= 0).long(), labels=ids).loss.backward()
        optimiser.step()
    judge.eval()
    for text, (_, _, complied) in zip(texts, rows, strict=True):
        prompt = tokenizer.apply_chat_template(text[:1], add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = judge.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, do_sample=False)
        assert tokenizer.decode(out[0, prompt.shape[1] :]).split()[0] == ("Yes" if complied else "No")
    with (tmp_path / "labelled.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "answer", "complied"], *((asked, said, "yes" if complied else "no") for asked, said, complied in rows)]
        )
    spec = {"kind": "llm-judge", "model": "reader", "rubric": "{request} {answer}"}
    (audited,) = prompt_api.audit_judges(tmp_path / "labelled.csv", {"judge": spec}, models={"reader": (judge, tokenizer)})
    assert audited.judged.count == len(rows)
    assert audited.kappa == 1
