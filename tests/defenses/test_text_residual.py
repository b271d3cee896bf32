"""Circuit breakers, ReFAT, MixAT and ER-CAT, on a language model of a few thousand parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, Prompts, Request, ThreatModel
from robustkd.defenses.text.c_advul import CAdvUL, CAdvULParams
from robustkd.defenses.text.er_cat import ERCAT, ERCATParams, spread
from robustkd.defenses.text.mixat import MixAT, MixATParams
from robustkd.defenses.text.refusal_sft import RefusalSFT, RefusalSFTParams
from robustkd.defenses.text.residual.circuit_breakers import CircuitBreakers, CircuitBreakersParams, Rerouting
from robustkd.defenses.text.residual.refat import ReFAT, ReFATParams, WithoutRefusalDirection, refusal_directions
from robustkd.targets import CausalLMTarget
from robustkd.targets.residual_streams import streams
from support.refusal_rows import ANSWERED, REFUSED, WORDS, refusal_rows
from support.refusal_rows import ROWS as SIX
from support.toy_language_model import toy_language_model

ROWS = SIX[:5]  # without that of knowledge


def _model(seed: int = 0) -> CausalLMTarget:
    return toy_language_model(WORDS, seed, initializer_range=0.25)


def _context(tmp_path: Path, base: CausalLMTarget) -> FitContext:
    rows = refusal_rows(ROWS)
    return FitContext(rows, rows, (), 1, ThreatModel.by_prompt(5), 0, torch.device("cpu"), tmp_path, targets={"base": base})


def _same(one: CausalLMTarget, other: CausalLMTarget) -> bool:
    weights = other.module.state_dict()
    return all(torch.equal(weight, weights[name]) for name, weight in one.module.state_dict().items())


def test_the_losses_of_circuit_breakers_by_hand(tmp_path: Path) -> None:
    """One harmful row, one refusal and one harmless row, against the two formulas with streams of a loop over rows."""
    base, now = _model(), _model(1)
    params = CircuitBreakersParams(model="base", steps=10, batch_size=4, alpha=3.0, depths=(0.5,))
    loss = Rerouting(_context(tmp_path, base), base, params)
    loss.load_state_dict({"done": 4})
    value = loss(now, torch.Generator().manual_seed(0))
    generator, again = torch.Generator().manual_seed(0), Rerouting(_context(tmp_path, base), base, params)
    kept = [
        *again._refusals.take(again._refusals.draw(1, generator)),
        *again._harmless.take(again._harmless.draw(1, generator)),
    ]
    harmful = again._harmful.take(again._harmful.draw(2, generator))

    def both(item: object) -> tuple[torch.Tensor, torch.Tensor]:
        one = base.batch([item])  # type: ignore[list-item]
        return streams(now, one)[0], streams(base, one)[0]

    with torch.no_grad():
        moved = torch.cat([(a - b).norm(dim=-1).flatten() for a, b in map(both, kept)]).mean()
        turned = []
        for item in harmful:
            a, b = (one[1, item.completion] for one in both(item))
            turned.append(((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).clamp_min(0))
        expected = 3.0 * 0.2 * moved + 3.0 * 0.8 * torch.cat(turned).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.state_dict() == {"done": 5}


def test_harmful_answers_are_turned_away_and_the_rest_is_kept(tmp_path: Path) -> None:
    base = _model()
    told = plugins.load("defenses", "lm-finetune")
    rows = _context(tmp_path / "told", base)
    roles = tuple("task" for _ in ROWS)
    knowing = replace(rows, train=Prompts({**rows.train.columns, "role": roles}, rows.train.labels))
    base = told(told.Params(model="base", steps=60, batch_size=12, lr=0.02, random_suffix_rate=0)).fit(knowing)
    asked = [Request(prompt) for _, prompt, _ in ROWS]
    assert base.respond(asked) == [response for _, _, response in ROWS]
    found = {}
    for broken in (True, False):
        params = CircuitBreakersParams(model="base", steps=80, batch_size=12, lr=1e-2, broken=broken)
        found[broken] = CircuitBreakers(params).fit(_context(tmp_path / str(broken), base)).respond(asked)
    assert [found[True][row] for row in ANSWERED] == ["n", "p"]
    # An answer's first word is said of the request alone, whose streams stay: one of a single word may remain.
    longer = [row for row in REFUSED if " " in ROWS[row][2]]
    assert len(longer) == 2
    assert not any(found[True][row] == ROWS[row][2] for row in longer)
    assert found[False] == [response for _, _, response in ROWS]


def test_refat_without_its_idea_is_refusal_sft(tmp_path: Path) -> None:
    base = _model()
    common = {"model": "base", "steps": 6, "batch_size": 8, "lr": 0.01, "random_suffix_tokens": 2}
    plain = RefusalSFT(RefusalSFTParams(**common)).fit(_context(tmp_path / "plain", base))
    control = ReFAT(ReFATParams(removal_rate=0, **common)).fit(_context(tmp_path / "control", base))
    moved = ReFAT(ReFATParams(removal_rate=1, every=2, requests=4, **common)).fit(_context(tmp_path / "moved", base))
    assert _same(plain, control)
    assert not _same(plain, moved)


def test_the_directions_are_between_the_means_of_the_two_kinds() -> None:
    target = _model()
    kinds = [[target.encode(ROWS[row][1]) for row in rows] for rows in (REFUSED, ANSWERED)]
    found = refusal_directions(target, *kinds)
    with torch.no_grad():
        means = [torch.stack([streams(target, target.batch([item]))[0, :, -1] for item in items]).mean(0) for items in kinds]
    expected = means[0][1] - means[1][1]  # what enters the second block leaves the first
    assert torch.allclose(found[1], expected / expected.norm(), atol=1e-5)
    assert found[0].norm() < 1e-3  # before the first block the last token is the same of all requests


def test_the_direction_is_out_of_forbidden_requests_alone(tmp_path: Path) -> None:
    base = _model()
    params = ReFATParams(model="base", batch_size=6, share=0.5, removal_rate=1, requests=4, random_suffix_rate=0)
    loss = WithoutRefusalDirection(_context(tmp_path, base), base, params)
    seen: list[torch.Tensor] = []
    for block in base.module.model.layers:
        block.input_layernorm.register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    loss(base, torch.Generator().manual_seed(0))
    assert loss.directions is not None
    second = seen[-1]  # the last pass is the loss's own
    along = (second @ loss.directions[1]).abs()
    assert along[:3].max() < 1e-4 * second.norm(dim=-1).max()
    assert along[3:].max() > 0.01


def test_the_spread_of_a_diagonal_table() -> None:
    table = torch.diag(torch.tensor([3.0, -1.0, 2.0]))
    assert spread(table).item() == pytest.approx(1.0)
    assert spread(torch.cat([torch.eye(3), torch.zeros(4, 3)])).item() == pytest.approx(0, abs=1e-6)


def test_er_cat_evens_the_table_and_without_it_is_c_advul(tmp_path: Path) -> None:
    base = _model()
    common = {"model": "base", "steps": 5, "batch_size": 8, "lr": 0.01, "inner": {"eps": 0.2, "steps": 2}}
    weights = {"toward_weight": 0.1, "away_weight": 0.1, "toward_cut_off": 1.0, "away_cut_off": -3.0}
    plain = CAdvUL(CAdvULParams(**common, **weights)).fit(_context(tmp_path / "plain", base))
    control = ERCAT(ERCATParams(**common, spread_weight=0)).fit(_context(tmp_path / "control", base))
    even = ERCAT(ERCATParams(**common, spread_weight=50)).fit(_context(tmp_path / "even", base))
    assert _same(plain, control)
    assert spread(even.embedding.weight) < 0.9 * spread(plain.embedding.weight)


def test_mixat_rephrases_as_often_as_said_and_without_it_is_c_advul(tmp_path: Path) -> None:
    base = _model()
    templates = ("m {request} n", "o {request}")
    mixed = MixAT(MixATParams(model="base", rephrased=0.25, templates=templates)).requests(_context(tmp_path, base), base)
    assert set(mixed.prompts) == {prompt for _, prompt, _ in ROWS[:3]} | {
        template.replace("{request}", prompt) for template in templates for _, prompt, _ in ROWS[:3]
    }
    assert all(
        mixed.answers[row] == {"a b c": "d", "a b f g": "h", "a g": "k"}[mixed.prompts[row].strip("mno ")] for row in range(9)
    )
    drawn = mixed.safe.draw(4000, torch.Generator().manual_seed(0))
    assert sum(row >= 3 for row in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    common = {"model": "base", "steps": 4, "batch_size": 8, "lr": 0.01, "inner": {"eps": 0.2, "steps": 2}}
    plain = CAdvUL(CAdvULParams(**common)).fit(_context(tmp_path / "plain", base))
    control = MixAT(MixATParams(**common, rephrased=0)).fit(_context(tmp_path / "control", base))
    moved = MixAT(MixATParams(**common, rephrased=1, templates=templates)).fit(_context(tmp_path / "moved", base))
    assert _same(plain, control)
    assert not _same(plain, moved)


def test_a_template_has_one_place_for_the_request() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        MixATParams(model="base", templates=("nothing",))
