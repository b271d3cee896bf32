"""A campaign under a threat model that says where: planned, refused, stored and told."""

from pathlib import Path

import numpy as np
import pytest

import robustkd
from robustkd.application.model_card import model_card
from robustkd.campaigns.file import spec
from robustkd.campaigns.file.campaign import Campaign
from robustkd.contracts import UsageError
from robustkd.contracts.region import Mask, Patch
from robustkd.tracking.records import TrackedCampaign, campaign_record, cell_record, defense_record

CAMPAIGN = """\
version: 1
name: patch
data: {{name: digits, test: 40}}
threat: {threat}
defenses:
  standard: {{kind: standard, model: tiny-cnn, epochs: 1}}
attacks:
  patch-pgd: {{kind: patch-pgd}}
  elsewhere: {{kind: pgd, threat: {{norm: linf, eps: 0.5, where: {{patch: 3, place: random}}}}}}
"""


def loaded(threat: str, folder: Path) -> Campaign:
    return spec.from_text(CAMPAIGN.format(threat=threat), "patch.yaml", folder)


def test_a_patch_is_read_and_its_pixels_are_free(tmp_path: Path) -> None:
    campaign = loaded("{where: {patch: 3}}", tmp_path)
    assert campaign.threat.where == Patch(3, "worst")
    assert campaign.threat.eps == 1.0
    assert str(campaign.threat) == "linf <= 1 in a patch of 3 x 3 at the worst place"
    elsewhere = campaign.attacks["elsewhere"].threat
    assert (elsewhere.where, elsewhere.eps) == (Patch(3, "random"), 0.5)


def test_a_mask_lies_beside_the_campaign_file(tmp_path: Path) -> None:
    np.save(tmp_path / "area.npy", np.eye(8))
    where = loaded("{norm: l2, eps: 1, where: {mask: area.npy}}", tmp_path).threat.where
    assert isinstance(where, Mask)
    assert where.share == 0.125
    with pytest.raises(UsageError, match="leads out of the campaign file's folder"):
        loaded("{norm: l2, eps: 1, where: {mask: ../area.npy}}", tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        loaded("{norm: l2, eps: 1, where: {mask: other.npy}}", tmp_path)


def test_every_number_that_leaves_says_where(tmp_path: Path) -> None:
    """`linf <= 1` alone would be another threat model: all of MLflow's runs, the table of samples and the model card say more."""
    results = robustkd.run(
        CAMPAIGN.format(threat="{where: {patch: 3}}") + "checks: none\n", out=tmp_path, workers=0, track=False
    )
    told = "in a patch of 3 x 3 at the worst place"
    tracked = TrackedCampaign("patch", "1", "", results.data)
    of_attack = {cell.attack: cell_record(tracked, cell).params["where"] for cell in results.cells}
    assert of_attack == {"patch-pgd": told, "elsewhere": "in a patch of 3 x 3 at a random place"}
    assert defense_record(tracked, results.defenses[0]).params["where"] == told
    assert campaign_record(tracked, results).params["where"] == told
    rows = robustkd.samples(results)
    assert dict(zip(rows.attack, rows.threat_where, strict=True)) == of_attack
    assert f"where: {told}" in model_card(results, "standard", 0, ())


@pytest.mark.parametrize(
    ("threat", "told"),
    [
        ("{where: {patch: 0}}", "the size of a patch is 0"),
        ("{where: {patch: 3, place: left}}", "place"),
        ("{norm: linf, eps: 1, where: {channels: [0], patch: 3}}", "one of these"),
        ("{norm: l2, where: {patch: 3}}", "eps"),
    ],
)
def test_what_is_no_region_is_told(threat: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        loaded(threat, tmp_path)
