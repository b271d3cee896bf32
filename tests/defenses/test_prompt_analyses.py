"""What a defense of a language model costs: its use for harmless requests, and its perplexity on good answers."""

import json

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.campaigns.store.identity import plugin_identity
from robustkd.contracts import PromptBatch, Prompts, Responses, TargetError, ThreatModel
from support.toy_language_model import toy_language_model

THREAT = ThreatModel.by_prompt(5)
WORDS = ("what", "is", "red", "blue", "a", "colour", "yes", "no")


def prompts(of, **columns):
    """As many requests."""
    return Prompts({"prompt": ("what is red",) * of, **columns}, np.zeros(of, dtype=np.int64))


def batch(benign=None, complied=(), eligible=(True, True), prefill=("", "")):
    """Two forbidden requests, and harmless ones with verdicts."""
    requests = prompts(2, prefill=prefill)
    harmless = None if benign is None else Responses(benign, [""] * len(benign), np.array(complied, dtype=bool))
    return PromptBatch(
        requests, torch.arange(2), Responses(requests, ["", ""], np.zeros(2, bool)), np.array(eligible), harmless
    )


def analysed(kind, about, target=None, **params):
    """The table of an analysis."""
    return plugins.make("analyses", {"kind": kind, **params}).run(target, about, THREAT, 0)


ROLES = ("task", "task", "task", "look-alike", "look-alike")


def test_usefulness_is_counted_by_role_and_over_refusal_on_what_looks_forbidden():
    about = batch(prompts(5, role=ROLES), (1, 1, 0, 1, 0), eligible=(True, False), prefill=("", "it is"))
    table = analysed("usefulness", about, look_alikes=["look-alike"])
    assert table.rows == ["task", "look-alike", "all"]
    assert [[row[0], row[3]] for row in table.values] == [[pytest.approx(2 / 3), 3], [0.5, 2], [0.6, 5]]
    assert table.metrics == pytest.approx({"usefulness": 0.6, "over_refusal": 0.5, "knowledge": 0})
    assert all(low < complied < high for complied, low, high, _ in table.values)


def test_usefulness_without_roles_is_by_concept_and_every_request_may_look_forbidden():
    table = analysed("usefulness", batch(prompts(2, concept=("bag", "coat")), (1, 0)))
    assert table.rows == ["bag", "coat", "all"]
    assert table.metrics == {"usefulness": 0.5, "over_refusal": 0.5}


def test_usefulness_needs_harmless_requests_of_the_roles_that_it_is_asked_about():
    with pytest.raises(TargetError, match="no harmless requests"):
        analysed("usefulness", batch())
    with pytest.raises(TargetError, match="no harmless request has the role 'tsak'"):
        analysed("usefulness", batch(prompts(5, role=ROLES), (1,) * 5), look_alikes=["tsak"])


@pytest.fixture(scope="module")
def model():
    return toy_language_model(WORDS, max_position_embeddings=24)


def surprise(model, asked, answer):
    """-log p of an answer with its end, and its tokens, by the language model's own loss."""
    ids = model.tokenizer(f"<user> {asked} <assistant> {answer} <end>", return_tensors="pt").input_ids
    count = len(answer.split()) + 1
    labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - count, ids, -100)
    with torch.no_grad():
        return float(model.module(input_ids=ids, labels=labels).loss) * count, count


CHATS = [("what is red", "a colour"), ("is blue a colour", "yes"), ("is red blue", "no red is a colour and so is blue")]


def test_perplexity_is_that_of_the_models_own_loss(model):
    benign = Prompts(
        {
            "prompt": (*(asked for asked, _ in CHATS), "what"),
            "response": (*(answer for _, answer in CHATS), ""),
            "role": ("open", "closed", "closed", "closed"),
        },
        np.zeros(4, dtype=np.int64),
    )
    table = analysed("perplexity", batch(benign, (1,) * 4), model)
    lost, tokens = np.array([surprise(model, *chat) for chat in CHATS]).T
    assert table.rows == ["open", "closed", "all"]
    expected = [np.exp(lost[rows].sum() / tokens[rows].sum()) for rows in ([0], [1, 2], [0, 1, 2])]
    assert [row[0] for row in table.values] == pytest.approx(expected, rel=1e-5)
    assert [row[1:] for row in table.values] == [[3, 1], [2 + 10, 2], [15, 3]]
    assert table.metrics == {"perplexity": table.values[-1][0]}


def test_chats_come_from_a_file_whose_content_counts_and_long_ones_are_left_out(model, tmp_path):
    file = tmp_path / "chats.jsonl"
    chats = [*CHATS[:2], ("what is red", "red " * 30)]
    file.write_text("\n".join(json.dumps({"prompt": asked, "response": answer}) for asked, answer in chats))
    table = analysed("perplexity", batch(), model, chats=str(file))
    lost, tokens = np.array([surprise(model, *chat) for chat in CHATS[:2]]).sum(0)
    assert table.metrics["perplexity"] == pytest.approx(np.exp(lost / tokens), rel=1e-5)
    assert table.caption.endswith("in 2 chats; 1 are longer than the context")
    before = plugin_identity("perplexity", plugins.make("analyses", {"kind": "perplexity", "chats": str(file)}))
    file.write_text(json.dumps({"prompt": "what", "response": "no"}))
    assert plugin_identity("perplexity", plugins.make("analyses", {"kind": "perplexity", "chats": str(file)})) != before


def test_perplexity_says_what_it_lacks(model):
    with pytest.raises(TargetError, match="no chat that the model's context holds"):
        analysed("perplexity", batch(prompts(2), (1, 1)), model)
    with pytest.raises(TargetError, match="is of a language model"):
        analysed("perplexity", batch(), _Painter())


class _Painter:
    kind = "painter"
