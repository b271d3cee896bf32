"""Nobody has said what a defense must reach: it is not promoted without a question."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkd.cli import cli
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign("ungated", {"plain": "{kind: standard, model: small-cnn, epochs: 1}"}, train=300, test=40, eps=0.01)


def test_a_campaign_without_gates_is_refused_where_nobody_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CAMPAIGN)
    run = CliRunner().invoke
    ran = run(cli, ["run", "c.yaml", "--workers", "0", "--quiet"])
    assert ran.exit_code == 0, ran.output
    refused = run(cli, ["promote", "c.yaml", "plain"])
    assert refused.exit_code != 0
    assert "no gate of the campaign says what it must reach" in str(refused.exception) + refused.output
    promoted = run(cli, ["promote", "c.yaml", "plain", "--force"])
    assert promoted.exit_code == 0, promoted.output + str(promoted.exception)
