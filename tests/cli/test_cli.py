"""The command line as a user types it: what it prints, and the exit code."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from robustkd.cli import COMMANDS
from support.campaigns import tiny_campaign

TINY = tiny_campaign(train=200, test=40, checks=None)


@pytest.fixture
def robustkd(robustkd, monkeypatch, tmp_path):
    """The command in a folder with nothing but a campaign."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    robustkd.folder = tmp_path
    return robustkd


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['robustkd', '--help']\nfrom robustkd.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print(sorted({'torch', 'mlflow', 'pydantic', 'numpy'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, not of the clock: a busy machine is not the command's fault.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert out.splitlines()[-1] == "[]"
    assert all(name in out for name in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(robustkd, name):
    code, out, _ = robustkd(name, "--help")
    assert code == 0
    assert "Usage" in out


def test_listing_imports_no_torch():
    code = "import sys; sys.argv = ['robustkd', 'list']\nfrom robustkd.cli import main\nmain() if False else None\n"
    code += "from robustkd.cli import cli\ntry:\n    cli(['list'], standalone_mode=False)\nfinally:\n    print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
    begun = {line.split()[0] for line in out.splitlines()}
    assert {"attacks", "pgd", "defenses", "mtard", "presets", "quickstart"} <= begun


def test_describe_tells_parameters_and_source(robustkd):
    code, out, _ = robustkd("describe", "pgd")
    assert code == 0
    for part in ("steps: integer >= 1, default 20", "Madry", "linf, l2, l1", "kind: pgd"):
        assert part in out
    code, out, _ = robustkd("describe", "pgd", "--json")
    assert json.loads(out)[0]["params"]["properties"]["steps"]["default"] == 20


def test_describe_goes_into_nested_blocks(robustkd):
    code, out, _ = robustkd("describe", "mtard")
    assert code == 0
    lines = out.splitlines()
    inner = lines.index("    inner: block, default as below")
    assert "        steps: integer >= 1, default 10" in lines[inner:]
    assert lines.index("        clean: string, required") == lines.index("    teachers: block, required") + 2
    assert lines.index("    awp: block | null, default null") < lines.index("        gamma: number > 0, default 0.01")
    assert "    student_params: object, default {}" in lines
    code, out, _ = robustkd("describe", "diversity")
    assert out.startswith("diversity  (analysis)")
    assert "my-diversity: {kind: diversity, defenses: [both]}" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rnu"], 2, "did you mean 'run'?"),
        (["run"], 2, "Missing argument"),
        (["run", "quickstrat"], 2, "did you mean 'quickstart'?"),
        (["run", "gone.yaml"], 2, "there is no file gone.yaml"),
        (["run", "tiny.yaml", "--wrokers", "2"], 2, "--workers"),
        (["describe", "pdg"], 2, "did you mean 'pgd'?"),
        (["report", "tiny.yaml"], 1, "holds no finished cell"),
        (["run", "tiny.yaml", "--no-track", "--out", "/proc/nothing"], 1, "cannot be written"),
    ],
)
def test_mistakes_have_a_message_and_a_code(robustkd, arguments, code, said):
    got, out, err = robustkd(*arguments)
    assert said in err + out
    assert got == code
    assert len(err.splitlines()) < 15


def test_run_report_and_run_again(robustkd):
    code, out, err = robustkd("run", "tiny.yaml", "--no-track", "--workers", "1", "--device", "cpu")
    assert code == 0, err
    assert "verdict" in out
    assert "plain" in out
    assert "3 cells to do" in err
    folder = robustkd.folder / "runs" / "tiny"
    results = json.loads((folder / "results.json").read_text())
    clean, robust = (results["defenses"][0][name] for name in ("clean_accuracy", "robust_accuracy"))
    row = next(line for line in out.splitlines() if line.startswith("plain")).split()
    assert out.index("W-Robust") < out.index("NRR") < out.index("verdict")
    both = [f"{(clean + robust) / 2:.1%}", f"{2 * clean * robust / (clean + robust):.1%}"]
    assert both in [row[at : at + 2] for at in range(len(row))]
    assert (folder / "report.html").stat().st_size < 5e6
    assert results["defenses"][0]["verdict"] in ("credible", "suspect", "not credible")

    code, again, err = robustkd("run", "tiny.yaml", "--no-track", "--workers", "0")
    assert code == 0
    assert again == out
    assert "0 cells to do, 3 finished before" in err

    (folder / "report.html").unlink()
    code, out, _ = robustkd("report", "tiny.yaml", "--json")
    assert code == 0
    assert "runs/tiny/report.html" in json.loads(out)
    assert all(robustkd.folder.joinpath(file).is_file() for file in json.loads(out))
    assert robustkd("report", "tiny.yaml", "--json", "--format", "latex")[0] == 2

    code, out, _ = robustkd("run", "tiny.yaml", "--no-track", "--workers", "0", "--json")
    assert json.loads(out)["cells"] == results["cells"]

    code, out, _ = robustkd("plan", "tiny.yaml")
    assert code == 0
    assert "1 training  " in out
    assert "1 finished" in out


def test_a_failed_gate_is_exit_code_4(robustkd):
    (robustkd.folder / "gated.yaml").write_text(TINY + "gates:\n  - {defense: plain, at_least: 0.99}\n")
    code, out, _ = robustkd("run", "gated.yaml", "--no-track", "--workers", "0")
    assert code == 4
    told = "gate failed: plain robust_accuracy at least 99.0%"
    assert told in out
    for name in ("report.html", "report.md"):
        assert told in next((robustkd.folder / "runs").glob(f"*/{name}")).read_text(), name
    code, out, _ = robustkd("report", "gated.yaml", "--format", "markdown")
    assert told in out

    (robustkd.folder / "gated.yaml").write_text(TINY + "gates:\n  - {defense: plain, at_least: 0.0}\n")
    robustkd("run", "gated.yaml", "--no-track", "--workers", "0")
    report = next((robustkd.folder / "runs").glob("*/report.html")).read_text()
    assert "plain robust_accuracy at least 0.0%" in report
    assert told not in report


def test_a_failed_cell_is_exit_code_3(robustkd):
    (robustkd.folder / "net.py").write_text("def build(): raise RuntimeError('no weights today')")
    (robustkd.folder / "broken.yaml").write_text(
        TINY.replace("attacks:", "  bad: {kind: external, code: 'net.py:build'}\nattacks:")
    )
    code, out, err = robustkd("run", "broken.yaml", "--no-track", "--workers", "0")
    assert code == 3
    assert "no weights today" in err
    assert "plain" in out


def test_attacking_one_model(robustkd):
    (robustkd.folder / "net.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    arguments = [
        "attack",
        "pgd",
        "--model",
        "net.py:build",
        "--data",
        "digits",
        "--n",
        "50",
        "--eps",
        "0.1",
        "--set",
        "steps=3",
    ]
    code, out, err = robustkd(*arguments, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["n"] == 50
    assert report["robust_accuracy"] <= report["clean_accuracy"]
    assert report["forward_passes"] > 0
    code, out, err = robustkd(*arguments, "--precision", "bf16", "--json")
    assert code == 0, err
    assert json.loads(out)["forward_passes"] > report["forward_passes"]  # successes are looked at twice
    assert abs(json.loads(out)["robust_accuracy"] - report["robust_accuracy"]) <= 0.04
    code, out, err = robustkd(*arguments[:-1], "stesp=3")
    assert code == 2
    assert "did you mean 'steps'" in err


def test_precision_is_recorded_and_does_nothing_again(robustkd):
    (robustkd.folder / "tiny.yaml").write_text(TINY.replace("fgsm: {kind: fgsm}", "pgd: {kind: pgd, steps: 5}"))

    def metas(out, *options):
        code, _, err = robustkd("run", "tiny.yaml", "--no-track", "--workers", "0", "--out", out, *options)
        assert code == 0, err
        return {meta["id"]: meta for meta in map(json.loads, map(Path.read_text, (robustkd.folder / out).rglob("meta.json")))}

    reduced = metas("runs/a", "--precision", "bf16")
    assert metas("runs/a") == reduced
    full = metas("runs/b")
    assert full.keys() == reduced.keys()
    (cell,) = (id_ for id_, meta in full.items() if meta["kind"] == "attack")
    assert (reduced[cell]["precision"], full[cell]["precision"]) == ("bf16", "full")
    assert reduced[cell]["passes"][0] > full[cell]["passes"][0]  # successes are looked at twice
    code, _, err = robustkd("run", "tiny.yaml", "--precision", "fp4")
    assert code == 2
    assert "'fp4' is not one of 'full', 'bf16'" in err


def test_attacking_a_target_that_a_campaign_trained(robustkd):
    robustkd("run", "tiny.yaml", "--no-track", "--workers", "0")
    card = next((robustkd.folder / "runs/tiny/cells").rglob("card.json"))
    code, out, err = robustkd("attack", "fgsm", "--model", str(card.parent), "--data", "digits", "--n", "40", "--eps", "0.1")
    assert code == 0, err
    assert "robust accuracy" in out
