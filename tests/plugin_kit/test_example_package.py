"""A package of somebody's, installed beside robustkd: its own tests, its plug-ins in a campaign, and the tutorial by the clock."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

from support.campaigns import tiny_campaign

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"# file: (\S+)\n")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    """Variables of a fresh environment that sees this one's packages and the checkout; its pip asks no registry."""
    venv.create(folder, with_pip=False, symlinks=True)
    programs = folder / "bin"
    (folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages" / "of_the_test.pth").write_text(
        "\n".join(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)))) + "\n"
    )
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    pip = f"{uv} pip --quiet" if uv else f"{sys.executable} -m pip --quiet --python {programs}/python"
    python = f" --python {programs}/python" if uv else ""
    scripts = {
        "robustkd": f'exec {programs}/python -m robustkd "$@"',
        "pip": f'shift\nexec {pip} install{python} --no-deps --no-build-isolation "$@"',
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "MLFLOW"))}
    return clean | {"PATH": f"{programs}:{clean['PATH']}"}


def call(line: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(shlex.split(line, comments=True), cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


CAMPAIGN = tiny_campaign(
    "example",
    {
        "teacher": "{kind: standard, model: small-cnn, epochs: 1}",
        "student": "{kind: logit-matching, teacher: teacher, student: tiny-cnn, epochs: 1}",
    },
    {"mine": "{kind: rescaled-ascent, steps: 3}"},
    train=200,
)

USE = """
import json, sys
from click.testing import CliRunner
from robustkd.cli import cli
def run(*arguments):
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exception is None, (arguments, done.output, done.exception)
    return done.output
print(json.dumps({
    "list": json.loads(run("list", "--json")),
    "describe": json.loads(run("describe", "logit-matching", "--json"))[0],
    "run": json.loads(run("run", "example.yaml", "--no-track", "--workers", "0", "--json")),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example package, copied and installed into an environment of its own."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "tests" / "plugin_example", folder / "package")
    env = environment(folder / "venv")
    call("pip install --editable ./package", folder, env)
    return folder, env


def test_an_installed_package_is_listed_described_and_used(installed):
    folder, env = installed
    (folder / "example.yaml").write_text(CAMPAIGN)
    (folder / "use.py").write_text(USE)
    seen = json.loads(call("python use.py", folder, env).splitlines()[-1])
    for group, name in (("defenses", "logit-matching"), ("attacks", "rescaled-ascent")):
        (item,) = [item for item in seen["list"][group] if item["name"] == name]
        assert (item["package"], item["package_version"]) == ("robustkd-example", "0.3.0")
        assert item["summary"]
    assert seen["describe"]["package"] == "robustkd-example"
    assert "alpha" in seen["describe"]["params"]["properties"]
    assert {(cell["defense"], cell["attack"], cell["status"]) for cell in seen["run"]["cells"]} == {
        ("teacher", "mine", "done"),
        ("student", "mine", "done"),
    }


@pytest.mark.slow
def test_the_package_s_own_tests_pass(installed):
    folder, env = installed
    out = call("python -m pytest -q -p no:cacheprovider package/tests", folder, env)
    assert re.search(r"\b5[0-9] passed", out), out
    assert "failed" not in out


@pytest.mark.slow
def test_the_tutorial_from_an_empty_folder_takes_less_than_twenty_minutes(tmp_path):
    """Only what docs/write-a-plugin.md says, in a shell; both plug-ins end up in MLflow, and nothing of theirs in our tree."""
    began = time.monotonic()
    env = environment(tmp_path / "venv")
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    for language, text in BLOCK.findall(page):
        if language in ("python", "yaml") and (match := FILE.search(text)):
            (empty / match[1]).write_text(text)
        for line in [line[2:] for line in text.splitlines() if language == "console" and line.startswith("$ ")]:
            if not line.startswith("robustkd ui"):  # serves until it is stopped; what it shows is looked up below
                call(line, empty, env)
    listed = json.loads(call("robustkd list --json", empty, env))
    for group, name in (("defenses", "correlation"), ("attacks", "two-losses")):
        assert f"robustkd-{name}" in [item["package"] for item in listed[group] if item["name"] == name]
    results = json.loads((empty / "runs" / "mine" / "results.json").read_text())
    assert ("alike", "both", "done") in {(cell["defense"], cell["attack"], cell["status"]) for cell in results["cells"]}
    look = "import mlflow; mlflow.set_tracking_uri('sqlite:///runs/mlflow.db'); "
    look += "runs = mlflow.search_runs(experiment_names=['mine'], output_format='list'); "
    look += "print(sorted({(r.data.params.get('defense'), r.data.params.get('attack')) for r in runs}, key=str))"
    shown = call(f'python -c "{look}"', empty, env)
    assert "('alike', 'both')" in shown
    for name in ("correlation", "two_losses"):
        assert list(ROOT.glob(f"*/**/robustkd_{name}*")) == []
    assert time.monotonic() - began < 20 * 60
