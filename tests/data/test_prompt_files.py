"""Prompts from the users' files: each benchmark's format, harmless requests, chats, and what is said of files that are wrong."""

import csv
import json
import os
from pathlib import Path

import pytest

from robustkd.contracts import DataError
from robustkd.data import SplitParams, load_splits
from robustkd.data.behaviors import Behaviors, BehaviorsParams

SHARED = Path(os.environ.get("ROBUSTKD_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data") / "prompts"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the measuring data are not here")

HARMBENCH = {
    "Behavior": ["Tell a secret", "Tell, again"],
    "FunctionalCategory": ["standard", "contextual"],
    "SemanticCategory": ["illegal", "harmful"],
    "Tags": ["", "context"],
    "ContextString": ["", "1. A\n2. B"],
    "BehaviorID": ["secret", "again"],
}
XSTEST = {
    "id": ["1", "2"],
    "prompt": ["How can I kill a process?", "How can I kill a cat?"],
    "type": ["homonyms", "contrast_homonyms"],
    "label": ["safe", "unsafe"],
    "focus": ["kill", "kill"],
}
FORMATS = {
    "HarmBench": (HARMBENCH, "Tell a secret", "illegal", "Sure, here is"),
    "AdvBench": ({"goal": ["Tell"], "target": ["Sure, the secret"]}, "Tell", "harmful", "Sure, the secret"),
    "StrongREJECT": (
        {"category": ["Fraud"], "source": ["own"], "forbidden_prompt": ["Tell"]},
        "Tell",
        "Fraud",
        "Sure, here is",
    ),
    "JailbreakBench": (
        {"Index": ["0"], "Goal": ["Tell"], "Target": ["Sure"], "Behavior": ["Telling"], "Category": ["Fraud"]},
        "Tell",
        "Fraud",
        "Sure",
    ),
    "XSTest": (XSTEST, "How can I kill a cat?", "contrast_homonyms", "Sure, here is"),
    "robustkd": ({"prompt": ["Tell"], "category": ["codes"], "answer": ["4711"]}, "Tell", "codes", "Sure, here is"),
}


@pytest.fixture
def write(tmp_path):
    """Writes a table's columns as a CSV."""

    def written(columns, name="file.csv"):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([columns, *zip(*columns.values(), strict=True)])
        return tmp_path / name

    return written


def load(**params):
    """What the data set holds."""
    return Behaviors(BehaviorsParams(**params)).load()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_known_by_its_columns(write, name):
    columns, prompt, category, target = FORMATS[name]
    raw = load(file=write(columns))
    assert raw.test["prompt"][0] == prompt
    assert raw.classes[raw.test.labels[0]] == category
    assert raw.test["target"][0] == target
    assert raw.test["role"][0] == "forbidden"
    assert (raw.train, raw.benign) == (None, None)


def test_a_context_goes_before_its_behaviour_and_targets_come_by_id(write, tmp_path):
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps({"again": "Again:"}))
    test = load(file=write(HARMBENCH), targets=targets, target="Yes,").test
    assert test["prompt"] == ("Tell a secret", "1. A\n2. B\n\n---\n\nTell, again")
    assert test["target"] == ("Yes,", "Again:")


def test_rows_are_kept_by_any_column(write):
    assert load(file=write(HARMBENCH), keep={"FunctionalCategory": ["standard"]}).test["prompt"] == ("Tell a secret",)
    with pytest.raises(DataError, match=r"file\.csv has no column 'Functional'"):
        load(file=write(HARMBENCH), keep={"Functional": ["standard"]})


def test_of_xstest_the_safe_prompts_are_the_harmless_ones(write):
    benign = load(file=write(HARMBENCH), benign=write(XSTEST, "xstest.csv")).benign
    assert benign["prompt"] == ("How can I kill a process?",)
    assert benign["role"] == ("homonyms",)


def test_training_rows_are_other_behaviours_and_chats_of_either_kind(write, tmp_path):
    chats = tmp_path / "chats.jsonl"
    said = [{"role": "user", "content": "Hi\u2028there"}, {"role": "assistant", "content": "Hello."}]
    messages = [{"role": "system", "content": "Be kind."}, *said, {"role": "user", "content": "And?"}]
    lines = [{"messages": messages}, {"prompt": "2+2?", "response": "4"}]
    chats.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    training = write({"goal": ["Steal"], "target": ["Sure, steal"]}, "training.csv")
    train = load(file=write(HARMBENCH), training=training, chats=chats, refusal="No.").train
    rows = [tuple(train[name][row] for name in ("role", "prompt", "response", "refusal")) for row in range(len(train))]
    assert rows == [
        ("forbidden", "Steal", "Sure, steal", "No."),
        ("utility", "Hi\u2028there", "Hello.", ""),
        ("utility", "2+2?", "4", ""),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"Behavior": ["a"], "BehaviorID": ["b"], "ContextString": [""]}, "no column 'SemanticCategory' of HarmBench"),
        ({"goal": ["a"]}, "no column 'target' of AdvBench"),
        ({"text": ["a"]}, "in no known format: it has text"),
        ({"prompt": []}, "has no rows"),
        ({"prompt": [" "]}, "'prompt' is empty"),
        ({**XSTEST, "label": ["safe", "safe"]}, "no forbidden request is left"),
    ],
)
def test_a_wrong_table_is_named_with_its_column(write, columns, message):
    with pytest.raises(DataError, match=rf"file\.csv.*{message}") as caught:
        load(file=write(columns))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt\n\xff\xfe\n", "no CSV in UTF-8"),
        (b"prompt\na,b\n", "more cells than there are columns"),
        (b'prompt\n"a\n', "no CSV in UTF-8"),
        (b"", "has no rows"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "file.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.csv.*({message})"):
        load(file=tmp_path / "file.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"prompt": "a"}', "line 2 has no 'response'"),
        ('{"prompt": "a", "response": 3}', "line 2: response is no text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2 does not begin with"),
        ('{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}]}', "user's content is empty"),
    ],
)
def test_a_wrong_chat_is_named_with_its_line(write, tmp_path, line, message):
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load(file=write(HARMBENCH), chats=chats)


@shared
def test_harmbench_and_xstest_as_published():
    params = {"file": str(SHARED / "harmbench_behaviors_text_val.csv"), "benign": str(SHARED / "xstest_prompts.csv")}
    data = load_splits("behaviors", params, SplitParams(test=40))
    assert (len(data.test), len(data.benign), data.modality) == (40, 250, "text")
    assert {"illegal", "homonyms"} <= set(data.classes)
    assert "copyright" not in data.classes
    assert data.notes == (
        "20 of 80 requests of harmbench_behaviors_text_val.csv have the tag hash_check and are left out: whether an answer is a "
        "copyrighted text is not seen from a refusal",
    )
    assert not any(role.startswith("contrast") for role in data.benign["role"])
