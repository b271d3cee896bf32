"""A campaign that gives a parameter by the name that it had before, against the store that it filled then."""

from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkd import plugins
from robustkd.campaigns.store.identity import plugin_identity
from robustkd.cli import cli
from support.fashion_mnist import needs_fashion_mnist

RENAMED = [
    ("defenses", {"kind": "refusal-sft", "model": "m"}, {"random_suffix_rate": "junk", "random_suffix_tokens": "junk_tokens"}),
    ("defenses", {"kind": "r2d2", "model": "m"}, {"random_suffix_rate": "junk", "random_suffix_tokens": "junk_tokens"}),
    ("defenses", {"kind": "lm-pretrain"}, {"random_suffix_rate": "junk", "random_suffix_tokens": "junk_tokens"}),
    ("attacks", {"kind": "pez"}, {"batch_size": "together"}),
]


@pytest.mark.parametrize(("group", "spec", "names"), RENAMED, ids=lambda value: value.get("kind") if "kind" in value else None)
def test_both_names_are_the_same_parameter_and_the_identity_is_under_the_former_one(group, spec, names):
    by_former = plugins.make(group, {**spec, **dict.fromkeys(names.values(), 1)})
    by_present = plugins.make(group, {**spec, **dict.fromkeys(names, 1)})
    assert all(getattr(by_former.params, name) == 1 for name in names)
    identity = plugin_identity(group, by_present)
    assert plugin_identity(group, by_former) == identity
    assert {identity.params[former] for former in names.values()} == {1}
    assert not set(names) & set(identity.params)


@needs_fashion_mnist
def test_a_campaign_may_give_either_name_and_not_both(tmp_path: Path):
    preset = Path(files("robustkd.campaigns.file") / "presets" / "unlearning-small.yaml").read_text()
    present = "lr: 0.1, batch_size: 60}"
    assert present in preset

    def planned(keys: str):
        (tmp_path / "c.yaml").write_text(preset.replace(present, f"lr: 0.1, {keys}}}"))
        return CliRunner().invoke(cli, ["plan", str(tmp_path / "c.yaml")])

    assert planned("together: 60").exit_code == 0
    both = planned("together: 60, batch_size: 60")
    assert both.exit_code != 0
    assert "attacks.unlearndiffatk.together: unknown key" in str(both.exception)
