"""The commands that help to write a campaign and to look at several: init, schema, leaderboard, completion; and what all share."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from robustkd.campaigns.file import presets, spec, starters
from robustkd.campaigns.file.yaml_source import parse
from robustkd.cli import cli
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.summaries import DataSummary, ThreatSummary
from support.fashion_mnist import needs_fashion_mnist

FIRST = "import sys\nfrom robustkd.cli import main\n"


def run(*arguments, color=False, **env):
    done = CliRunner(env=env).invoke(cli, list(arguments), color=color)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def processor_seconds(code, *arguments, **env):
    """What a fresh interpreter prints for this code, and the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | env, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines(), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def child(*arguments, **env):
    """A fresh interpreter that runs the command: its output, the processor seconds that it took, and what it imported."""
    code = (
        FIRST
        + "import atexit\natexit.register(lambda: print(sorted({'torch', 'mlflow', 'pandas'} & set(sys.modules))))\nmain()"
    )
    (*out, imported), took = processor_seconds(code, *arguments, **env)
    return out, took, imported


@pytest.mark.parametrize(("command", "times"), [("--help", 1.5), ("list", 8)])
def test_looking_around_is_quick_and_imports_nothing_heavy(command, times):
    # Processor time beside that of the two libraries which every command needs: neither a busy nor a slow machine counts.
    needed, spent = [], []
    for _ in range(3):
        needed.append(processor_seconds("import click, importlib.metadata, yaml")[1])
        out, took, imported = child(command)
        assert imported == "[]"
        spent.append(took)
    assert min(spent) < times * min(needed), (spent, needed)
    assert len(out) > 20


def test_list_says_what_each_is_without_importing_it():
    lines = run("list").output.splitlines()
    found = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert found["pgd"].endswith("Projected gradient descent.")
    assert "Every attack of foolbox" in found["foolbox"]
    assert found["quickstart"].endswith("adversarial training and MTARD hold.")
    assert [name for name, line in found.items() if len(line.split()) < 2] == []


# --- init


@pytest.mark.parametrize(
    "purpose",
    [pytest.param(one, marks=needs_fashion_mnist if one == "unlearning" else ()) for one in starters.purposes()],
)
def test_a_campaign_for_each_purpose_is_valid_and_planned(purpose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("init", purpose, "first.yaml")
    assert done.exit_code == 0
    campaign = spec.load("first.yaml")
    assert campaign.name == "first"
    assert campaign.text.count("#") >= 4
    if purpose != "robustbench":  # CIFAR-10 is not here
        planned = run("plan", "first.yaml")
        assert planned.exit_code == 0
        assert all(f"{name} (" in planned.output for name in campaign.defenses)
        assert "skipped" not in planned.output.replace("excluded by the matrix", "") or purpose in (
            "ensemble",
            "unlearning",
            "endpoint",
        )
    with pytest.raises(Exception, match=r"first.yaml is there already"):
        cli.main(["init", purpose, "first.yaml"], standalone_mode=False)


def test_the_campaign_about_one_s_own_model_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("init", "evaluate-my-model")
    written = tmp_path / "evaluate-my-model.yaml"
    written.write_text(written.read_text().replace("test: 200", "test: 20").replace("checks: standard", "checks: none"))
    done = run("run", "evaluate-my-model.yaml", "--no-track", "--quiet", "--workers", "0", "--json")
    (mine,) = json.loads(done.output)["defenses"]
    assert mine["status"] == "done"
    assert mine["attacks"] == ["pgd", "margin", "square"]


def test_purposes_are_listed_and_suggested():
    assert set(json.loads(run("init", "--json").output)) == set(starters.purposes())
    assert "How robust is a model that I have already?" in run("init").output
    with pytest.raises(Exception, match="none of the purposes") as caught:
        cli.main(["init", "ensembel"], standalone_mode=False)
    assert caught.value.fix == "did you mean 'ensemble'?"


# --- schema


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(run("schema").output)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_campaign_that_comes_with_the_package_fits_the_schema(validator):
    texts = {name: presets.read(name) for name in presets.names()}
    texts |= {name: starters._text(f"{name}.yaml") for name in starters.purposes()}
    for name, text in texts.items():
        assert [error.message for error in validator.iter_errors(parse(text, name).data)] == [], name


SOUND = """
version: 1
name: sound
data: {name: digits, train: 100}
threat: {norm: linf, eps: 8/255, curve: [4 / 255]}
defenses: {one: {kind: standard, model: tiny-cnn, lr: 1/10}}
attacks: {d: pgd, a: {kind: eot, attack: {kind: pgd, steps: 3}}, b: {kind: eot, attack: pgd}, c: {kind: "foolbox:LinfPGD", steps: 3}}
"""


def test_fractions_nested_plugins_and_families_fit(validator):
    validator.validate(yaml.safe_load(SOUND))


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("name: sound", "nmae: sound"),
        ("train: 100", "trian: 100"),
        ("digits", "digist"),
        ("8/255", "8//255"),
        ("b: {kind: eot, attack: pgd}", "b: pgdd"),
        ("linf", "l3"),
        ("model: tiny-cnn", "model: tiny-cnm"),
        ("kind: standard", "kind: standart"),
        (", model: tiny-cnn", ""),
        ("{kind: pgd, steps: 3}", "{kind: pgd, steps: 0}"),
        ("{kind: pgd, steps: 3}", "{kind: pgd, stesp: 3}"),
    ],
)
def test_the_schema_and_the_platform_refuse_alike(validator, written, instead, tmp_path):
    text = SOUND.replace(written, instead, 1)
    assert text != SOUND
    assert not validator.is_valid(yaml.safe_load(text))
    with pytest.raises(Exception, match="nothing was started"):
        spec.from_text(text, "wrong.yaml", tmp_path)


# --- leaderboard


def stored(folder, name, defenses, *, eps=0.1, digest="d1"):
    """A finished campaign's results.json; ``defenses`` maps a name to (robust accuracy, verdict, attacks)."""
    cells, rows = [], []
    for defense, (robust, verdict, attacks) in defenses.items():
        cells += [CellResult("id", defense, attack, 0, "done", "linf", eps, 100, 0.9, robust) for attack in attacks]
        low, high = robust - 0.1, robust + 0.1
        rows.append(
            DefenseResult(defense, 0, "standard", "done", "linf", eps, 100, 0.9, robust, low, high, list(attacks), verdict)
        )
    results = Results(name, ThreatSummary("linf", eps), DataSummary("digits", 100, digest), cells, rows)
    (folder / name).mkdir()
    (folder / name / "results.json").write_text(json.dumps(results.to_dict()))


@pytest.fixture
def runs(tmp_path):
    stored(tmp_path, "monday", {"weak": (0.2, "credible", ["pgd"]), "masked": (0.8, "not credible", ["pgd"])})
    stored(tmp_path, "tuesday", {"strong": (0.5, "suspect", ["pgd", "square"])})
    stored(tmp_path, "wider", {"strong": (0.3, "credible", ["pgd"])}, eps=0.2)
    stored(tmp_path, "other", {"strong": (0.4, "credible", ["pgd"])}, digest="d2")
    return tmp_path


def test_the_leaderboard_ranks_what_can_be_compared(runs):
    boards = json.loads(run("leaderboard", str(runs), "--json").output)
    assert [len(board["entries"]) for board in boards] == [3, 1, 1]
    ranked = [(entry["rank"], entry["defense"], entry["campaign"]) for entry in boards[0]["entries"]]
    assert ranked == [(1, "strong", "tuesday"), (2, "weak", "monday"), (None, "masked", "monday")]
    assert [board["same_attacks"] for board in boards] == [False, True, True]


def test_the_leaderboard_is_printed_as_a_table_and_as_markdown(runs):
    out = run("leaderboard", str(runs / "monday"), str(runs / "tuesday")).output
    assert "digits, n = 100, linf eps 0.1" in out
    assert [line.split()[0] for line in out.splitlines() if "%" in line] == ["1", "2", "-"]
    assert "50.0% [40.0%, 60.0%]" in out
    assert "Not all were attacked alike" in out
    lines = run("leaderboard", str(runs / "monday"), "--markdown").output.splitlines()
    assert lines[0] == "### digits, n = 100, linf eps 0.1"
    assert {line.count("|") for line in lines[2:6]} == {10}


def test_the_leaderboard_takes_names_as_every_command_does(runs, monkeypatch):
    shutil.copytree(runs, runs / "home" / "runs")
    monkeypatch.chdir(runs / "home")
    by_name, by_folder = (run("leaderboard", *named, "--json").output for named in (["monday"], ["runs/monday"]))
    assert by_name == by_folder
    assert [entry["defense"] for entry in json.loads(by_name)[0]["entries"]] == ["weak", "masked"]


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(Exception, match=r"holds no results.json"):
        cli.main(["leaderboard", str(tmp_path)], standalone_mode=False)


# --- completion, colour, pipes


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(shell):
    out = run("completion", shell).output
    assert "_ROBUSTKD_COMPLETE" in out
    assert "robustkd completion" in out.splitlines()[0] + out.splitlines()[1]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("robustkd lea", {"leaderboard"}),
        ("robustkd run quick", {"quickstart"}),
        ("robustkd describe pg", {"pg-sb", "pgd", "pgd-at", "pgd0", "pgn"}),
        ("robustkd attack pg", {"pgd", "pgd0", "pgn"}),
        ("robustkd init ens", {"ensemble"}),
        ("robustkd new def", {"defense"}),
    ],
)
def test_names_are_completed(typed, offered, monkeypatch):
    from click.shell_completion import ShellComplete

    words = typed.split()
    found = ShellComplete(cli, {}, "robustkd", "_ROBUSTKD_COMPLETE").get_completions(words[1:-1], words[-1])
    assert {item.value for item in found} == offered


@pytest.mark.parametrize("command", ["compare", "gate", "promote", "reproduce", "store list", "store verify"])
def test_what_was_run_is_completed(command, tmp_path, monkeypatch):
    from click.shell_completion import ShellComplete

    monkeypatch.chdir(tmp_path)
    for folder in ("runs/mine", "elsewhere/yours"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "results.json").touch()
    (tmp_path / "mine.yaml").touch()

    def offered(begun):
        found = ShellComplete(cli, {}, "robustkd", "_ROBUSTKD_COMPLETE").get_completions(command.split(), begun)
        return {item.value for item in found}

    assert offered("min") == {"mine.yaml"}
    if not command.startswith("store"):
        assert offered("run") == {"runs/mine"}
        assert offered("elsewhere/") == {"elsewhere/yours"}


def test_plugins_are_listed_by_what_they_are_for():
    told = json.loads(run("list", "--modality", "text", "--json").output)
    assert {"direct", "gcg"} <= {item["name"] for item in told["attacks"]}
    assert not {"pgd", "torchattacks"} & {item["name"] for item in told["attacks"]}
    assert told["models"] == told["engines"] == []
    assert {"vaults"} == {item["name"] for item in told["datasets"]} & {"vaults", "digits"}
    assert "quickstart" not in {item["name"] for item in told["presets"]}
    assert "modality   text" in run("describe", "gcg").output
    assert "norms" not in run("describe", "gcg").output


def test_completing_imports_no_torch():
    code = FIRST.replace("import sys", "import sys; sys.argv = ['robustkd']") + (
        "try:\n    main()\nexcept SystemExit:\n    print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    )
    env = os.environ | {"_ROBUSTKD_COMPLETE": "bash_complete", "COMP_WORDS": "robustkd run mt", "COMP_CWORD": "2"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert out.splitlines()[0].endswith(",mtard-cifar10")
    assert "torch" not in out.splitlines()[-1]


def test_no_color_is_respected():
    assert "\x1b[" in run("list", "attacks", color=True).output
    assert "\x1b[" not in run("list", "attacks", color=True, NO_COLOR="1").output


def test_a_reader_who_has_read_enough_gets_no_traceback():
    began = subprocess.Popen([sys.executable, "-c", FIRST + "main()", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert began.stdout.readline()
    began.stdout.close()
    assert began.wait(60) in (0, 1)
    assert began.stderr.read() == b""
    began.stderr.close()
