"""A plug-in that another one holds has a new version: what was made with the former one is made again.

A detector behind a classifier, the attack that an analysis makes, the transform in front of a model, the recipe on a condensed set: each is
a parameter of a plug-in whose own version stays what it was.
"""

import pytest

from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign(
    "inside",
    {
        "plain": "{kind: standard, model: tiny-cnn, epochs: 1}",
        "guarded": "{kind: with-detector, base: plain, detector: {kind: feature-squeezing}}",
        "squeezed": "{kind: input-transform, base: plain, transforms: [{kind: bit-depth, bits: 3}]}",
        "small": "{kind: condensed-data, condenser: {kind: random-subset, images_per_class: 2}}",
        "on-small": "{kind: train-on-condensed, data: small, recipe: {kind: standard, model: tiny-cnn, epochs: 1}}",
    },
    train=80,
    test=10,
    analyses="{entropy: {kind: teacher-entropy, attack: {kind: bim, steps: 1}, references: [plain], defenses: [plain]}}",
)


@pytest.mark.parametrize(
    ("group", "inner", "changed"),
    [
        ("detectors", "feature-squeezing", {"guarded"}),
        ("transforms", "bit-depth", {"squeezed", "guarded"}),  # a detector's own squeezer is one
        ("condensers", "random-subset", {"small", "on-small"}),
        ("attacks", "bim", {"entropy"}),
    ],
)
def test_what_holds_it_is_done_again(tmp_path, monkeypatch, group, inner, changed):
    def cells():
        plan = planning.build(spec.from_text(CAMPAIGN, "inside.yaml", tmp_path))
        return {cell.plugin or cell.defense: cell.id for cell in plan.cells if cell.kind in ("train", "analysis")}

    before = cells()
    assert cells() == before
    monkeypatch.setattr(plugins.load(group, inner), "version", "of-another-day")
    after = cells()
    assert {name for name in before if before[name] != after[name]} == changed
