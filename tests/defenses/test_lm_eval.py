"""Tasks of lm-evaluation-harness on a small model: run where it is installed, explained where it is not."""

import json
from importlib.util import find_spec

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import RobustkdError
from support.toy_language_model import toy_language_model

WORDS = ("what", "is", "red", "blue", "a", "colour", "yes", "no")
QUESTIONS = (("what is", 0), ("a colour", 1), ("is", 1), ("no red", 1))
TASK = """\
task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" red", " blue"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def run(**params):
    """The table of the harness."""
    target = toy_language_model(WORDS)
    return target, plugins.make("analyses", {"kind": "lm-eval", "tasks": ["toy"], **params}).run(target, None, None, 0)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="it is installed")
def test_without_the_harness_it_says_how_to_get_it():
    with pytest.raises(RobustkdError, match="cannot be imported") as caught:
        run()
    assert (caught.value.fix or "").startswith("pip install 'lm-eval>=")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_a_task_of_ones_own_is_scored_as_the_model_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "toy.jsonl"
    file.write_text("\n".join(json.dumps({"question": question, "label": label}) for question, label in QUESTIONS))
    (tmp_path / "toy.yaml").write_text(TASK.format(file=file))
    target, table = run(include=str(tmp_path))
    right = []
    for question, label in QUESTIONS:
        with torch.no_grad():
            logits = target(target.tokenizer(question, return_tensors="pt").input_ids)[0, -1]
        red, blue = (logits[target.tokenizer.convert_tokens_to_ids(word)] for word in ("red", "blue"))
        right.append(int(blue > red) == label)
    assert table.metrics == {"toy/acc": sum(right) / 4}
    assert table.columns == ["score", "standard error"]
    assert table.values[0][1] == pytest.approx(0.25)
    with pytest.raises(RobustkdError, match="lm-eval failed"):
        run(include=str(tmp_path), tasks=["elsewhere"])
