"""Every file, command and code block of the README and the docs works as it stands there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustkd import plugins
from robustkd.campaigns.file import presets, spec
from robustkd.cli import COMMANDS, cli, main
from support.fashion_mnist import needs_fashion_mnist

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")
MAKE = re.compile(r"^([a-z-]+):", re.MULTILINE)
SLOW = {
    "write-a-plugin.md",
    "start.md",
    "ensembles.md",
    "adaptive-attacks.md",
    "adaptive-networks.md",
    "campaign-file.md",
    "ci.md",
    "distilled-data.md",
    "encoders.md",
}  # packages installed, networks trained, many checks
# These take minutes or never end; that they exist, and read their file, is checked here, and they are run elsewhere.
LONG = {
    *presets.names(),
    "ui",
    "view",
    "doctor",
    "two-of-the-zoo.yaml",
    "imitation.yaml",
    "endpoint.yaml",
}


def marks(page):
    if page == "diffusion.md":  # plans a campaign on it
        return needs_fashion_mnist
    return pytest.mark.slow if page in SLOW else ()


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page):
    return [line[2:] for text in blocks(page, "console") for line in text.splitlines() if line.startswith("$ ")]


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
    """A folder with the files that a page shows; those that belong into a folder of its commands come when that is there."""
    files = {}
    for language in ("yaml", "python"):
        for text in blocks(request.param, language):
            if match := FILE.search(text):
                files[tmp_path / match[1]] = text
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = set(sys.modules)

    def write():
        for path in [path for path in files if path.parent.is_dir()]:
            path.write_text(files.pop(path))

    write()
    yield request.param, write
    for name in set(sys.modules) - loaded:
        if name.startswith("robustkd_"):  # a plug-in of the page's own
            del sys.modules[name]
    forget_plugins()


def forget_plugins():
    plugins.refresh()


def install(package, site, monkeypatch):
    """As pip does it with --editable: the entry points in a folder of packages, the code where it is."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    command = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*command, *options, package], check=True, capture_output=True)
    for path in (str(site), package):
        monkeypatch.syspath_prepend(path)
    forget_plugins()


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.parametrize(
    "folder",
    [pytest.param(page, marks=marks(page.name), id=page.name) for page in PAGES],
    indirect=True,
)
def test_commands_and_code_run(folder, tmp_path, monkeypatch, capsys):
    page, write = folder
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert set(words[1:]) <= set(MAKE.findall((ROOT / "Makefile").read_text())), line
        elif words[:1] == ["robustkd"]:
            robustkd(words[1:], monkeypatch)
            write()
        elif words[:3] == ["pip", "install", "--editable"]:
            install(str(Path(words[3]).resolve()), tmp_path / "site", monkeypatch)
        else:
            assert words[0] in {"git", "cd", "pip", "python", "sudo"}, line
    for text in blocks(page, "python"):
        if text.startswith("# run\n"):
            exec(compile(text, str(page), "exec"), {})
    sys.modules.pop("my_model", None)
    capsys.readouterr()


def robustkd(words, monkeypatch):
    if LONG & set(words) and words[0] != "init":
        assert words[0] in COMMANDS
        if words[0] in {"run", "plan", "report", "track"}:
            spec.load(words[1])
        cli.get_command(None, words[0]).make_context(words[0], list(words[1:]))
        return
    here = ["--workers", "0"] if words[0] == "run" else []  # no child processes: the same cells, sooner
    monkeypatch.setattr(sys, "argv", ["robustkd", *words, *here])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
