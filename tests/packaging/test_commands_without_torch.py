"""What only reads a campaign or its results imports no torch, which takes 1.6 s and 290 MiB; a run with nothing to do no MLflow either."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from robustkd.cli import cli
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign(
    "small", {"plain": "{kind: standard, model: small-cnn, epochs: 1}"}, train=40, gates="[{defense: plain, at_least: 0.0}]"
)

COMMANDS = """
import json, sys
from robustkd.cli import cli

found = {}
for command in json.loads(sys.argv[1]):
    try:
        cli.main(command, standalone_mode=False)
    except SystemExit as error:
        assert not error.code, (command, error.code)
    found[command[0]] = sorted({"torch", "mlflow", "sklearn", "pandas"} & set(sys.modules))
print(json.dumps(found), file=sys.stderr)
"""

PLUGINS = """
import sys
from robustkd import plugins


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise RuntimeError("it imports torch")


sys.meta_path.insert(0, NoTorch())
for group in plugins.GROUPS:
    for name in plugins.names(group):
        if plugins.is_built_in(group, name):
            try:
                plugins.load(group, name)
            except plugins.registry.PluginError as error:
                assert "it imports torch" in str(error), error
                print(f"{group}/{name}")
"""

MADE_OF_MODULES = {
    *(f"attacks/{name}" for name in ("adv-lib", "art", "code", "foolbox", "torchattacks")),
    "targets/redrawn",
    *(
        f"defenses/{name}"
        for name in (
            "acm",
            "dmae",
            "further-pretraining",
            "gal",
            "hard-augmentation",
            "hybrid-distill",
            "m2mkd",
            "mae",
            "quantised-distillation",
            "random-teacher",
            "sdedit",
            "sla-sd",
        )
    ),
}
"""Plug-ins whose own file, or that of their family, defines a network, beside architectures and transforms, which all do."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(CAMPAIGN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(cli, ["run", "small.yaml", "--out", "out", "--workers", "0", "-q", "--allow-missing"])
    assert done.exit_code == 0, done.output
    return folder


def test_only_work_imports_torch(folder):
    results = ["small.yaml", "--out", "out"]
    commands = [["run", *results, "-q", "--allow-missing"], ["plan", *results], ["compare", "out", "out"]]
    commands += [
        ["gate", "out", "--allow-missing"],
        ["leaderboard", "out"],
        ["report", *results],
        ["view", "out", "--export", "pages"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {command[0]: [] for command in commands}


def test_plugins_are_found_and_their_parameters_read_without_torch():
    done = subprocess.run([sys.executable, "-c", PLUGINS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert found >= {"models/resnet20", "transforms/jpeg"}
    assert {name for name in found if name.partition("/")[0] not in ("models", "transforms", "detectors")} == MADE_OF_MODULES
