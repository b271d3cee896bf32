"""Plug-ins for prompts that each break one promise; test_prompt_conformance.py registers them as a package of somebody's."""

import numpy as np
import torch
from robustkd_example.cupboard import Assistant, Cupboard, DoesNotRefuse, ExtraWords, Guarded
from torch import nn

from robustkd.contracts import Detector, RawData, Request


class Greedy(ExtraWords):
    """One attempt too many."""

    def search(self, target, batch, attempts, threat, rng):
        for _ in range(attempts.budget + 1):
            attempts(torch.arange(len(batch)), [Request(prompt) for prompt in batch.requests["prompt"]])


class Lucky(ExtraWords):
    """A word drawn from torch's global generator."""

    def search(self, target, batch, attempts, threat, rng):
        rows = attempts.open
        attempts(rows, [Request(f"{batch.requests['prompt'][row]} {torch.rand(()):.6f}") for row in rows.tolist()])


class Crowded(ExtraWords):
    """Says how many are attacked."""

    def search(self, target, batch, attempts, threat, rng):
        rows = attempts.open
        attempts(rows, [Request(f"{batch.requests['prompt'][row]} {len(batch)}") for row in rows.tolist()])


class Wasteful(ExtraWords):
    """Draws from NumPy's global generator, and throws it away."""

    def search(self, target, batch, attempts, threat, rng):
        np.random.rand()
        attempts(attempts.open, [Request(prompt) for prompt in batch.requests["prompt"]])


class Waking(Guarded):
    """Returned in training mode."""

    def fit(self, context):
        target = super().fit(context)
        target.module.train()
        return target


class Chatty(Assistant):
    def respond(self, asked):
        return [f"{answer} ({len(asked)} asked)" for answer in super().respond(asked)]


class Boastful(Guarded):
    """Names gradients that its target does not have."""

    def target_capabilities(self, others):
        return frozenset({"respond", "gradients"})


class Sociable(Guarded):
    """Says how many asked."""

    def fit(self, context):
        target = Chatty(self.params.looks_at)
        target.module.eval()
        return target


class Sworn(Guarded):
    """Keeps a number outside of its card."""

    def fit(self, context):
        target = super().fit(context)
        target.respond = lambda asked: ["It is a secret."] * len(asked)
        return target


class Talkative(DoesNotRefuse):
    """A list of words."""

    def complied(self, requests, outputs):
        return ["yes" if said else "no" for said in super().complied(requests, outputs)]


class Relative(DoesNotRefuse):
    """The longer answers comply."""

    def complied(self, requests, outputs):
        lengths = np.array([len(said) for said in outputs])
        return lengths > lengths.mean()


class Convinced(DoesNotRefuse):
    """Everything complies."""

    def complied(self, requests, outputs):
        return np.ones(len(outputs), dtype=bool)


class Harmless(Cupboard):
    """No harmless requests."""

    def load(self):
        raw = super().load()
        return RawData(raw.train, raw.test, raw.classes)


class Restless(Cupboard):
    """Another order every time."""

    def load(self):
        raw = super().load()
        return RawData(raw.train, raw.test.select(np.random.default_rng().permutation(12)), raw.classes, raw.benign)


# --- detectors


class Lengths(nn.Module):
    """The number of letters, scored as ``how`` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.offset = how, 0.0

    def forward(self, texts):
        return self.how(self, torch.tensor([float(len(text)) for text in texts]))


class Long(Detector):
    """How long a prompt is: a subclass spoils it."""

    modalities = ("text",)
    source = "nowhere"

    def build(self, model, others):
        return Lengths(lambda scorer, lengths: type(self).spoilt(scorer, lengths))


class Uniform(Long):
    """Says the same of every prompt."""

    def spoilt(self, lengths):
        return torch.zeros_like(lengths)


class Ranking(Long):
    """Scores a prompt by the others beside it."""

    def spoilt(self, lengths):
        return lengths - lengths.mean()


class Absent(Long):
    """Keeps what it learns where no file has it."""

    def spoilt(self, lengths):
        return lengths * (1 + self.offset)

    def fit(self, scorer, model, context):
        scorer.offset = 1.0
