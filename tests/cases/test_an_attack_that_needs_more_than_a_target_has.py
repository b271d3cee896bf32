"""A target says what it can be asked for, an attack what it needs: a pair that does not fit is refused before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import Attack, PromptAttack, TargetError, UsageError
from robustkd.contracts.capability import ORDINARY
from robustkd.defenses.image.ensembles.ensemble import Ensemble as EnsembleDefense
from robustkd.defenses.text.pretrain import LMPretrain
from robustkd.targets import ClassifierTarget, EnsembleTarget, PipelineTarget
from support.campaigns import tiny_campaign

IMAGES = tiny_campaign(
    "needs",
    {
        "one": "{kind: standard, model: tiny-cnn, epochs: 1}",
        "two": "{kind: standard, model: tiny-cnn, epochs: 1, replica: 1}",
        "both": "{kind: ensemble, members: [one, two]}",
        "behind": "{kind: input-transform, base: both, transforms: [{kind: bit-depth}]}",
    },
    {"pgd": "{kind: pgd}", "averaged-mora": "{kind: eot, attack: {kind: mora}}"},
    train=40,
    test=4,
    checks=None,
)
PROMPTS = """\
version: 1
name: needs
data: {name: vaults}
threat: {attempts: 2}
defenses:
  base: {kind: lm-pretrain}
attacks:
  direct: {kind: direct}
  gcg: {kind: gcg}
  random-search: {kind: random-search}
"""


def skipped(text: str) -> dict[tuple[str, str], str]:
    planned = plan.build(spec.from_text(text, "test.yaml", Path()))
    return {(item.defense, item.attack): item.reason for item in planned.skipped}


def black_box() -> ClassifierTarget:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    target = ClassifierTarget(network, num_classes=3, input_shape=(1, 4, 4))
    target.capabilities = frozenset({"logits"})
    return target


def test_an_attack_on_members_is_left_out_where_there_are_none() -> None:
    reasons = skipped(IMAGES)
    assert set(reasons) == {("one", "averaged-mora"), ("two", "averaged-mora"), ("behind", "averaged-mora")}
    assert reasons["one", "averaged-mora"] == (
        "needs members, which targets of 'one' do not have: use an attack that does without"
    )


def test_attacks_that_look_into_a_model_are_left_out_where_it_only_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert skipped(PROMPTS) == {}
    monkeypatch.setattr(LMPretrain, "target_capabilities", lambda defense, others: frozenset({"respond"}))
    reasons = skipped(PROMPTS)
    assert set(reasons) == {("base", "gcg"), ("base", "random-search")}
    assert reasons["base", "gcg"].startswith("needs embeddings and gradients and log-probabilities and tokens, which")
    assert reasons["base", "random-search"].startswith("needs log-probabilities and tokens, which")


def test_a_surrogate_without_gradients_is_refused_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    through = "  through: {kind: eot, attack: {kind: transfer, surrogates: [one, both], attacks: %s}}\n"
    monkeypatch.setattr(EnsembleDefense, "target_capabilities", lambda defense, others: frozenset({"logits"}))
    assert not any(attack == "through" for _, attack in skipped(IMAGES + through % "square"))
    with pytest.raises(UsageError, match=r"attack 'through' needs gradients of the targets of 'both', which they do not have"):
        skipped(IMAGES + through % "[square, pgd]")


def test_a_judge_or_an_attacker_that_is_no_language_model_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = PROMPTS + "judges: {llm: {kind: llm-judge, model: base}}\n"
    attacked = PROMPTS.replace("{kind: gcg}", "{kind: gcg, draft: base}")
    skipped(judged), skipped(attacked)
    monkeypatch.setattr(LMPretrain, "target_capabilities", lambda defense, others: frozenset({"logits"}))
    with pytest.raises(UsageError, match="judge 'llm' needs respond of the targets of 'base'"):
        skipped(judged)
    with pytest.raises(UsageError, match="attack 'gcg' needs log-probabilities and tokens of the targets of 'base'"):
        skipped(attacked)


def test_in_python_a_black_box_is_attacked_without_gradients_only() -> None:
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    with pytest.raises(TargetError, match=r"'pgd' needs gradients, which this target \(classifier\) does not have"):
        robustkd.attack("pgd", black_box(), x, y)
    assert robustkd.attack("square", black_box(), x, y, queries=5).outcome.backwards.sum() == 0
    report = robustkd.audit(black_box(), x, y, attacks=["pgd", {"kind": "square", "queries": 5}], level="standard")
    assert set(report.failed) == {"pgd"}


def test_an_attack_on_prompts_is_not_for_arrays() -> None:
    with pytest.raises(UsageError, match="attack 'gcg' is for prompts"):
        robustkd.attack("gcg", black_box(), torch.rand(1, 1, 4, 4), torch.tensor([0]))


def test_surrogates_stand_in_for_gradients() -> None:
    logits = frozenset({"logits"})
    assert plugins.make("attacks", {"kind": "pgd"}).missing(logits) == ["gradients"]
    assert plugins.make("attacks", {"kind": "bpda"}).missing(logits) == []
    assert plugins.make("attacks", {"kind": "eot"}).missing(logits) == ["gradients"]


def test_what_targets_within_a_target_leave_it() -> None:
    ensemble = EnsembleTarget([black_box(), black_box()])
    assert ensemble.capabilities == {"logits", "members"}
    assert PipelineTarget(ensemble, []).capabilities == {"logits"}


def test_every_attack_names_what_a_model_of_its_modality_or_a_special_one_has() -> None:
    special = {"members", "denoising", "sampling"}
    for name in plugins.names("attacks"):
        if plugins.family("attacks", name) is not None:
            continue
        kind = plugins.load("attacks", name)
        assert issubclass(kind, Attack) != issubclass(kind, PromptAttack), name
        assert all(kind.needs <= ORDINARY[modality] | special for modality in kind.modalities), name


def test_a_surrogate_has_to_have_what_the_attack_on_it_needs() -> None:
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    transfer = {"kind": "transfer", "surrogates": "other", "attacks": {"kind": "mora"}}
    with pytest.raises(TargetError, match="'mora' needs gradients and members"):
        robustkd.attack(transfer, black_box(), x, y, models={"other": black_box()})
