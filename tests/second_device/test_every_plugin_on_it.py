"""No attack, defense or check is forgotten on the second device: each is in a row of ``on_images`` or a campaign, or there is a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from robustkd import plugins
from second_device.on_images import GROUPS, OF_PEERS, REASONS, names

CAMPAIGNS = [yaml.safe_load(file.read_text()) for file in sorted(Path(__file__).parent.glob("*.yaml"))]
JUDGES = {
    "code": "it is the user's own",
    "copyright-overlap": "it compares words, without a network",
    "onnx-classifier": "onnxruntime has devices of its own",
    "onnx-detector": "onnxruntime has devices of its own",
    "refusal-classifier": "its encoder is on a hub",
}


def used(block: str) -> set[str]:
    return {use["kind"] for campaign in CAMPAIGNS for use in campaign.get(block, {}).values()}


@pytest.mark.parametrize("group", GROUPS)
def test_every_plugin_has_a_row_or_a_reason(group: plugins.Group) -> None:
    rows = {name.removeprefix(f"{group}/") for name in names()} | {peer.partition(":")[0] for peer in OF_PEERS}
    reasons = {name.removeprefix(f"{group}/") for name in REASONS}
    assert set(plugins.names(group)) - rows - used(group) - reasons == set()


def test_every_judge_has_a_row_or_a_reason() -> None:
    assert set(plugins.names("judges")) - used("judges") - set(JUDGES) == set()


def test_every_check_is_run_in_some_campaign() -> None:
    """A campaign of thorough checks runs all that there are for its modality; that they have run is seen where it is run."""
    data = [campaign["data"]["name"] for campaign in CAMPAIGNS if campaign["checks"] == "thorough"]
    covered = {modality for name in data for modality in plugins.modalities(plugins.load("datasets", name))}
    assert [
        name for name in plugins.names("checks") if not covered & set(plugins.modalities(plugins.load("checks", name)))
    ] == []


def test_a_reason_is_of_something_that_there_is() -> None:
    assert set(REASONS) <= {f"{group}/{name}" for group in GROUPS for name in plugins.names(group)}
    assert set(plugins.names("judges")) >= set(JUDGES)
