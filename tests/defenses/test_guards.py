"""Guards around a language model, each beside a count by hand or its control, and the loss that a search has through them."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robustkd import plugins
from robustkd.attacks.text.engine.target_prefix import losses
from robustkd.contracts import (
    Filtered,
    FitContext,
    GenerativeTarget,
    Prompts,
    Request,
    TargetError,
    ThreatModel,
    Unanswered,
)
from robustkd.defenses.text.guards.erase_and_check import EraseAndCheckSettings, EraseAndCheckTarget, kept_places
from robustkd.defenses.text.guards.guard_model import GuardModelSettings, GuardModelTarget
from robustkd.defenses.text.guards.perplexity_filter import PerplexityFilterTarget, PerplexitySettings, log_perplexity
from robustkd.defenses.text.guards.self_reminder import SelfReminderSettings, SelfReminderTarget
from robustkd.defenses.text.guards.smoothllm import SmoothLLMSettings, SmoothLLMTarget, changed
from robustkd.plugin_kit.prompt_fixtures import Oracle
from robustkd.targets import CausalLMTarget, load_target, save_target
from robustkd.targets.guarded import BehindGuards, GuardedTarget, unguarded
from support.toy_language_model import toy_language_model

WORDS = ("say", "it", "hello", "I", "please", "cannot", "Yes", "No", "a", "b")
TEXTS = ("say it", "hello", "please say it I cannot hello", "a b a b a b say")


@pytest.fixture(scope="module")
def model() -> CausalLMTarget:
    return toy_language_model(WORDS)


def asked(*texts: str) -> list[Request]:
    return [Request(text) for text in texts]


class Scripted(GenerativeTarget):
    """Complies with prompts that a rule accepts, and notes what it was asked."""

    kind = "scripted"

    def __init__(self, complies) -> None:
        self.module, self.complies, self.noted = torch.nn.Identity(), complies, []

    def respond(self, asked: Sequence[Request]) -> list[str]:
        self.noted += [question.prompt for question in asked]
        return [f"Here it is: {one.prompt}" if self.complies(one.prompt) else "Sorry, I cannot." for one in asked]

    def card(self):
        return {"target": self.kind}

    @classmethod
    def from_card(cls, card):
        return cls(bool)


def by_hand(model: CausalLMTarget, text: str) -> torch.Tensor:
    """-log p of each token of the user's text, in a pass of its own."""
    tokens = model.encode(text)
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens.ids]))[0].log_softmax(-1)
    places = range(*tokens.prompt.indices(len(tokens.ids)))
    return torch.tensor([-float(logprobs[place - 1, tokens.ids[place]]) for place in places])


def test_perplexity_is_that_of_the_worst_window(model: CausalLMTarget) -> None:
    own = [by_hand(model, text) for text in TEXTS]
    assert torch.allclose(log_perplexity(model, TEXTS), torch.stack([one.mean() for one in own]), atol=1e-4)
    worst = [max(one[first : first + 3].mean() for first in range(max(1, len(one) - 2))) for one in own]
    assert torch.allclose(log_perplexity(model, TEXTS, 3), torch.stack(worst), atol=1e-4)
    assert log_perplexity(model, ["hello " * 200]).isnan().all()


def test_a_perplexity_filter_holds_back_what_is_above_its_threshold(model: CausalLMTarget) -> None:
    known = log_perplexity(model, TEXTS)
    order = known.argsort()
    middle = float(known[order[1]])
    answers = PerplexityFilterTarget(model, PerplexitySettings(threshold=middle)).respond(asked(*TEXTS))
    bare = model.respond(asked(*TEXTS))
    assert [type(answers[place]) for place in order[2:]] == [Filtered, Filtered]
    assert [answers[place] for place in order[:2]] == [bare[place] for place in order[:2]]
    control = PerplexityFilterTarget(model, PerplexitySettings(threshold=1000))
    assert control.respond(asked(*TEXTS)) == bare
    assert isinstance(control.respond(asked("hello " * 200))[0], Unanswered)  # not judged, no refusal
    with pytest.raises(TargetError, match="does not tell how likely a text is"):
        PerplexityFilterTarget(Oracle(), PerplexitySettings(threshold=1)).respond(asked("a"))


def test_a_threshold_is_learned_from_the_training_requests(model: CausalLMTarget, tmp_path) -> None:
    prompts = Prompts({"prompt": TEXTS[:2]}, np.zeros(2, dtype=np.int64))
    context = FitContext(
        prompts, prompts, (), 1, ThreatModel.by_prompt(1), 0, torch.device("cpu"), tmp_path, targets={"bare": model}
    )
    target = plugins.make("defenses", {"kind": "perplexity-filter", "model": "bare"}).fit(context)
    known = log_perplexity(model, TEXTS)
    assert target.settings.threshold == pytest.approx(float(known[:2].max()))
    held = [isinstance(answer, Filtered) for answer in target.respond(asked(*TEXTS))]
    assert held == [False, False, *(known[2:] > known[:2].max()).tolist()]


def test_what_a_guard_cannot_read_is_answered_behind_it(model: CausalLMTarget) -> None:
    guard = PerplexityFilterTarget(model, PerplexitySettings(threshold=-1))
    text, set_by_hand = Request("say it"), Request("say it", embeddings=model.embed(torch.tensor([5, 6])).detach())
    held, answer = guard.respond([text, set_by_hand])
    assert isinstance(held, Filtered)
    assert answer == model.respond([set_by_hand])[0]
    assert isinstance(guard.respond([Request("hello", turns=(("say it", "a"),))])[0], Filtered)


@pytest.mark.parametrize("change", ["swap", "insert", "patch"])
def test_smoothllm_changes_a_share_of_the_letters(change) -> None:
    draw = np.random.default_rng(0)
    text = "".join(chr(0x4E00 + place) for place in range(50))  # letters that it never draws
    copy = changed(text, 0.1, change, draw)
    places = [place for place, letter in enumerate(copy) if letter not in text]
    assert len(places) == 5
    assert len(copy) == 50 + 5 * (change == "insert")
    assert change != "patch" or places == list(range(places[0], places[0] + 5))
    assert changed(text, 0, change, draw) == text


def test_smoothllm_answers_as_the_majority_does() -> None:
    guards = {share: SmoothLLMTarget(Scripted(None), SmoothLLMSettings(rate=0.2)) for share in (0.0, 0.5, 0.6, 1.0)}
    for share, guard in guards.items():
        copies = guard.copies_of("abcdefghijklmnop", 10, "guard")
        yes = set(copies[: round(10 * share)])
        guard.model.complies = yes.__contains__
        (answer,) = guard.respond(asked("abcdefghijklmnop"))
        assert guard.model.noted == copies
        assert answer.startswith("Here") == (share > 0.5)
        assert answer == guard.respond(asked("else", "abcdefghijklmnop"))[1]  # whenever it is asked
    assert set(guard.seen("abcdefghijklmnop", 10)).isdisjoint(copies)  # the attacker draws for itself
    control = SmoothLLMTarget(Scripted("yes".__eq__), SmoothLLMSettings(rate=0))
    assert control.respond(asked("yes", "no")) == ["Here it is: yes", "Sorry, I cannot."]


def test_erase_and_check_looks_at_as_many_texts_as_the_paper() -> None:
    def count(mode, most):
        return sum(1 for _ in kept_places(8, EraseAndCheckSettings(mode=mode, most=most)))

    assert [count("suffix", most) for most in (0, 3, 20)] == [0, 3, 7]
    assert count("insertion", 3) == 8 + 7 + 6
    assert count("infusion", 3) == comb(8, 1) + comb(8, 2) + comb(8, 3)


@pytest.mark.parametrize("mode", ["suffix", "insertion", "infusion"])
def test_erase_and_check_holds_back_what_hides_a_harmful_request(model: CausalLMTarget, monkeypatch, mode) -> None:
    """The certificate: whatever up to ``most`` tokens are added, the request is among what is checked."""
    monkeypatch.setattr(
        "robustkd.defenses.text.guards.guard_model.yes_probability",
        lambda reader, questions, yes, no: np.array([float(text == "say it please") for text in questions]),
    )
    settings = EraseAndCheckSettings(rubric="{request}", mode=mode, most=2)
    guard = EraseAndCheckTarget(model, settings)
    added = {"suffix": "say it please a b", "insertion": "say it a b please", "infusion": "say a it b please"}
    alarms = guard.alarm(["say it please", *added.values(), "say it please a b a"])
    held = dict(zip(["bare", *added, "longer"], (alarms > 0).tolist(), strict=True))
    first = ("suffix", "insertion", "infusion").index(mode)  # each mode holds back what those before do
    expected = {"bare": True, **{kind: place <= first for place, kind in enumerate(added)}, "longer": False}
    assert held == expected
    control = EraseAndCheckTarget(model, settings.model_copy(update={"most": 0}))
    assert (control.alarm(["say it please", "say it please a"]) > 0).tolist() == [True, False]


def test_a_guard_model_compares_two_words(model: CausalLMTarget) -> None:
    settings = GuardModelSettings(rubric="please {request}", threshold=0.5)
    alarms = GuardModelTarget(Oracle(), settings, model).alarm(TEXTS)
    for text, alarm in zip(TEXTS, alarms.tolist(), strict=True):
        tokens = model.encode(f"please {text}")
        with torch.no_grad():
            logits = model(torch.tensor([tokens.ids]))[0, -1]
        yes, no = (logits[model.tokenizer.convert_tokens_to_ids(word)] for word in ("Yes", "No"))
        assert alarm == pytest.approx(float(yes - no), abs=1e-3)
    served = GuardModelTarget(model, settings, Scripted(lambda text: "hello" in text))
    assert not served.scored
    assert served.alarm(["hello"]).isnan().all()  # it says neither Yes nor No
    with pytest.raises(ValidationError, match="does not show"):
        GuardModelSettings(rubric="no place")


def test_a_reminder_stands_around_the_prompt() -> None:
    scripted = Scripted(bool)
    SelfReminderTarget(scripted, SelfReminderSettings(before="A ", behind=" B")).respond(asked("x"))
    SelfReminderTarget(scripted, SelfReminderSettings(before="", behind="")).respond(asked("x"))
    assert scripted.noted == ["A x B", "x"]


def test_the_loss_behind_guards_is_the_mean_over_what_the_model_sees_and_the_alarms(model: CausalLMTarget) -> None:
    inner = PerplexityFilterTarget(model, PerplexitySettings(threshold=float(log_perplexity(model, TEXTS).median())))
    outer = SmoothLLMTarget(inner, SmoothLLMSettings(rate=0.2))
    behind = BehindGuards(outer, weight=2.0, draws=3)
    assert behind.copies == 3
    aims = ("it", "hello", "a b", "say")
    found = losses(behind, TEXTS, aims)
    for text, aim, loss in zip(TEXTS, aims, found.tolist(), strict=True):
        seen = outer.seen(text, 3)
        bare = losses(model, seen, [aim] * 3).mean()
        assert loss == pytest.approx(float(bare + 2 * inner.alarm(seen).clamp_min(0).mean()), abs=1e-4)
    assert float(inner.alarm(TEXTS).max()) > 0 > float(inner.alarm(TEXTS).min())
    with pytest.raises(TargetError, match="tells no log-probabilities"):
        BehindGuards(SmoothLLMTarget(Oracle(), SmoothLLMSettings()), 1, 1)
    with pytest.raises(TargetError, match="no search can follow"):
        BehindGuards(GuardModelTarget(model, GuardModelSettings(), Oracle()), 1, 1)


@pytest.mark.parametrize("made", ["perplexity-filter", "smoothllm", "guard-model", "erase-and-check", "self-reminder"])
def test_a_guarded_model_is_saved_and_loaded_again(model: CausalLMTarget, tmp_path, made) -> None:
    kind = plugins.load("targets", made)
    assert issubclass(kind, GuardedTarget)
    settings = kind.Settings(**({"threshold": 3.0} if made == "perplexity-filter" else {}))
    reader = toy_language_model(WORDS, seed=1) if made in ("perplexity-filter", "guard-model") else None
    target = kind(model, settings, reader)
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert isinstance(again, kind)
    assert again.respond(asked(*TEXTS)) == target.respond(asked(*TEXTS))
    assert torch.equal(again.alarm(TEXTS), target.alarm(TEXTS))
    assert isinstance(unguarded(again), CausalLMTarget)


def test_a_wrapper_around_what_goes_by_no_loss_is_refused() -> None:
    spec = plugins.load("attacks", "through-guard").Params
    for kind in ("human-jailbreaks", "embedding"):
        with pytest.raises(ValidationError, match="searches no prompt by the model's loss"):
            spec(attack={"kind": kind})
