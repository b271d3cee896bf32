"""Teacher hacking: divergences by hand, and who hacks whom."""

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.analyses.teacher_hacking import distance, hacking
from robustkd.contracts import PromptBatch, Prompts, Responses, TargetError, ThreatModel
from robustkd.plugin_kit.prompt_fixtures import Oracle
from support.toy_language_model import toy_language_model

WORDS = ("what", "is", "red", "blue", "a", "colour", "yes", "no")


def model(seed):
    return toy_language_model(WORDS, seed=seed)


def about(responses=("a colour", "no")):
    def asked(n, **columns):
        return Prompts({"prompt": ("what is red",) * n, **columns}, np.zeros(n, dtype=np.int64))

    requests, harmless = asked(1), asked(len(responses), response=responses)
    benign = Responses(harmless, [""] * len(responses), np.ones(len(responses), dtype=bool))
    return PromptBatch(requests, torch.arange(1), Responses(requests, [""], np.zeros(1, bool)), np.array([True]), benign)


def table(teacher, oracle, **students):
    made = plugins.make("analyses", {"kind": "teacher-hacking", "oracle": "oracle", "students": list(students)})
    return made.with_targets({"oracle": oracle, **students}).run(teacher, about(), ThreatModel.by_prompt(1), 0)


def test_the_distance_is_the_divergence_of_every_token_by_hand():
    teacher, student = model(0), model(1)
    chats = [teacher.encode("what is red", completion=answer) for answer in ("a colour", "no")]
    terms = []
    for chat in chats:
        ids = torch.tensor([chat.ids])
        with torch.no_grad():
            p, q = (one.module(input_ids=ids).logits[0].double().softmax(1).numpy() for one in (teacher, student))
        terms += [(p[at - 1] * np.log(p[at - 1] / q[at - 1])).sum() for at in range(len(chat.ids))[chat.completion]]
    assert distance(teacher, student, chats) == pytest.approx(np.mean(terms), rel=1e-4)


def test_the_proxy_is_zero_for_the_teacher_itself_and_for_nobody_else():
    found = table(model(0), model(5), same=model(0), other=model(1))
    rows = dict(zip(found.rows, found.values, strict=True))
    assert rows["same"][0] == pytest.approx(0, abs=1e-9)
    assert rows["same"][1] == pytest.approx(rows["the teacher"][1])
    assert rows["other"][0] > 0.1
    assert found.metrics["proxy"] == rows["other"][0]


def test_with_the_oracle_as_the_teacher_both_distances_are_one():
    found = table(model(0), model(0), one=model(1), other=model(2))
    assert all(proxy == pytest.approx(golden) for proxy, golden in found.values)


def test_a_student_that_nears_the_teacher_and_leaves_the_oracle_hacks():
    """On the way from the oracle to the teacher: every step is nearer to the teacher, and farther from the oracle."""
    oracle, teacher = model(0), model(1)
    steps = {}
    for number, share in enumerate((0.0, 0.5, 1.0)):
        student = model(0)
        mixed = {
            name: (1 - share) * value + share * teacher.module.state_dict()[name]
            for name, value in oracle.module.state_dict().items()
        }
        student.module.load_state_dict(mixed)
        steps[f"s{number}"] = student
    found = table(teacher, oracle, **steps)
    assert found.values[1] == [pytest.approx(found.values[1][0]), pytest.approx(0, abs=1e-9)]
    assert found.metrics["hacking"] == pytest.approx(found.values[3][1])
    back = table(teacher, oracle, **dict(reversed(steps.items())))
    assert back.metrics["hacking"] == 0


def test_hacking_by_hand():
    assert hacking([(1.0, 0.5), (0.8, 0.2), (0.4, 0.6)]) == pytest.approx(0.4)
    assert hacking([(1.0, 0.5), (0.8, 0.7), (0.4, 0.3)]) == 0
    assert hacking([(0.1, 0.1), (0.4, 0.6)]) == 0  # it has gone away from both
    assert hacking([(1.0, 0.5)]) == 0


def test_what_tells_no_probabilities_is_refused():
    with pytest.raises(TargetError, match="tells no probabilities"):
        table(model(0), Oracle(), one=model(1))
    other = toy_language_model((*WORDS, "more"))
    with pytest.raises(TargetError, match="other tokens"):
        table(model(0), model(0), one=other)
