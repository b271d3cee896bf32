"""A model or a judge whose output is NaN has withstood nothing: it is an error that says where, and for how many requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.contracts import Attack, AttackResult, Judge, Prompts, Request, TargetError
from robustkd.evaluation.prompts import prepare
from robustkd.judges.labels import LabelParams, shows
from support.toy_language_model import toy_language_model
from support.toy_text_to_image import toy

WORDS = ("tell", "me", "sure", "here", "no")
CAMPAIGN = """\
version: 1
name: nan
data: {{name: behaviors, file: {file}}}
threat: {{attempts: 2}}
judges: {{refusal: {{kind: refusal-match}}}}
defenses: {{nanlm: {{kind: causal-lm, path: {path}}}}}
attacks:
  direct: {{kind: direct}}
  gcg: {{kind: gcg, tokens: 2, steps: 1, width: 2, top_k: 2}}
"""


def language_model(value=float("nan")):
    target = toy_language_model(WORDS)
    with torch.no_grad():
        target.module.model.norm.weight.fill_(value)
    return target


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_language_model_of_nan_fails_in_every_cell(tmp_path, value):
    target = language_model(value)
    target.module.save_pretrained(tmp_path / "lm")
    target.tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "f.csv").write_text("prompt,target\ntell me,sure here\ntell tell,sure\n")
    text = CAMPAIGN.format(file=tmp_path / "f.csv", path=tmp_path / "lm")
    results = run(planning.build(spec.from_text(text, "test.yaml", Path())), tmp_path / "out", InlineEngine(), device="cpu")
    assert [cell.status for cell in results.cells] == ["failed", "failed"]
    for cell in results.cells:
        assert "the logits of the language model are NaN or infinite for 2 of 2 requests" in cell.error
    assert results.defenses[0].robust_accuracy is None


def test_log_probabilities_that_attacks_descend_on():
    target = language_model()
    batch = target.batch([target.encode("tell me", completion="sure here")])
    with pytest.raises(TargetError, match="log-probabilities of the language model are NaN or infinite for 1 of 1"):
        target.token_logprobs(batch)


def test_a_language_model_may_rule_words_out():
    target = toy_language_model(WORDS)
    never = target.tokenizer.convert_tokens_to_ids("no")

    def mask(module, arguments, output):
        output.logits[..., never] = -torch.inf
        return output

    target.module.register_forward_hook(mask)
    assert "no" not in target.respond([Request("tell me")])[0].split()


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("text_encoder", "text encoder"),
        ("unet", "UNet"),
    ],
)
def test_a_text_to_image_model_of_nan_says_which_part(part, told):
    target = toy("church")
    with torch.no_grad():
        if part == "text_encoder":
            target.embedding.weight.fill_(torch.nan)
        else:
            target.unet.picture = target.unet.picture * torch.nan  # a new one: the toy's is shared
    with pytest.raises(TargetError, match=rf"{told}.* NaN or infinite for 2 of 2"):
        target.respond([Request("a photo"), Request("the church")])


def test_a_decoder_of_nan():
    target = toy("church")

    class Decoder(nn.Module):
        config = type("Config", (), {"scaling_factor": 1.0})()

        def decode(self, z):
            out = z.clone()
            out[0] = torch.nan
            return type("Decoded", (), {"sample": out})()

    target.vae = Decoder()
    with pytest.raises(TargetError, match=r"decoder.* NaN or infinite for 1 of 2"):
        target.respond([Request("a photo"), Request("the church")])


class Half(Judge):
    """Is not sure, in its own way."""

    def complied(self, requests, outputs):
        return np.array([np.nan, 1.0])


def test_judges_that_say_nan():
    requests = Prompts({"prompt": ("tell", "me"), "concept": ("a", "b")}, np.zeros(2, dtype=np.int64))
    prepared = prepare(toy_language_model(WORDS), requests, np.arange(2), {"half": Half()})
    assert not prepared.unattacked.complied[0]  # NaN is no verdict: see test_prompts about what could not be judged
    sure = torch.tensor([[0.9, 0.1], [torch.nan, torch.nan]])
    with pytest.raises(TargetError, match=r"judge.* NaN or infinite for 1 of 2"):
        shows(sure, requests, ("a", "b"), LabelParams())


class Brighter(Attack):
    """An attack of one's own, which never looks at the model."""

    def run(self, target, batch, threat, rng):
        none = torch.zeros(len(batch), dtype=torch.int64)
        return AttackResult(batch.inputs + threat.eps, none.bool(), forwards=none, backwards=none)


class BreaksDown(nn.Module):
    """A plain classifier, NaN as soon as a pixel is brighter than any clean one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 4)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return torch.where(x.flatten(1).amax(1, keepdim=True) > 0.5, torch.nan, logits)


def test_a_classifier_of_nan_under_attack_is_neither_broken_nor_robust():
    x = torch.full((8, 1, 4, 4), 0.5)
    with torch.no_grad():
        y = BreaksDown()(x).argmax(1)
    for attack, told in (
        ("fgsm", "NaN or infinite logits for 8 of 8 samples"),
        (Brighter(), "NaN or infinite for 8 of 8 attacked"),
    ):
        with pytest.raises(TargetError, match=told):
            robustkd.attack(attack, BreaksDown(), x, y, eps=0.1)
