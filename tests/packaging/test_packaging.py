"""The distribution: a wheel holds each file once, and every kind of installation runs, away from the checkout."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from robustkd import plugins

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("attacks", "defenses", "campaigns")
DISTRIBUTED = (
    "robustkd",
    *FOLDERS,
    "entry_points",
    "setup.py",
    "MANIFEST.in",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "NOTICE",
)

LOOK = """
import importlib.metadata as metadata, importlib.resources as resources, importlib.util as util, json, sys
import robustkd
import robustkd.attacks, robustkd.defenses, robustkd.campaigns
from robustkd import plugins
before = set(sys.modules)
names = {group: plugins.names(group) for group in plugins.GROUPS}
presets = resources.files("robustkd.campaigns.file") / "presets"
print(json.dumps({
    "home": robustkd.__file__,
    "names": names,
    "torch": "torch" in sys.modules,
    "presets": {preset.name: len(preset.read_text()) for preset in presets.iterdir() if preset.name.endswith(".yaml")},
    "strays": [name for name in ("attacks", "defenses", "campaigns") if util.find_spec(name)],
}))
"""

LOAD = """
import importlib.metadata as metadata, json
failures = {}
for point in metadata.distribution("robustkd").entry_points:
    try:
        point.load()
    except Exception as error:
        failures[f"{point.group} {point.name}"] = f"{type(error).__name__}: {error}"
print(json.dumps(failures))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs of the checkout, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in DISTRIBUTED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    succeeded([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(checkout)])
    return next(out.glob("*.whl"))


def succeeded(command: list[str], **options: object) -> str:
    # Nothing of this process's environment reaches the installation under test.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def environment(folder: Path, *install: str) -> Path:
    """The Python of a new environment with robustkd installed, and this environment's packages behind its own.

    A folder that a .pth file names is searched, but its own .pth files are not run: this environment's editable
    robustkd stays out of sight.
    """
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(succeeded([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "packages_of_the_test.pth").write_text("\n".join(here) + "\n")
    succeeded([*_installer(python), "--quiet", "--no-deps", "--no-build-isolation", *install])
    return python


def _installer(python: Path) -> list[str]:
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv:
        return [uv, "pip", "install", "--python", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]


def looked(python: Path, where: Path) -> dict[str, object]:
    return json.loads(succeeded([str(python), "-c", LOOK], cwd=where).splitlines()[-1])


def test_the_wheel_holds_each_file_once_and_no_top_level_but_ours(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"robustkd"}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "robustkd").rglob("*.py")}
    ours = {name for name in ours if name.split("/")[1] not in FOLDERS}
    for folder in FOLDERS:
        ours |= {f"robustkd/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours
    presets = {
        f"robustkd/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "campaigns" / "file" / "presets").glob("*.yaml")
    }
    assert presets <= set(names)
    assert "robustkd/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_the_notice_says_where_every_table_and_weight_comes_from(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    notice = archive.read(next(name for name in archive.namelist() if name.endswith("/NOTICE"))).decode()
    code, examples = {".py", ".j2", ".js", ".css", ".typed", ".md"}, {"presets", "starters"}
    data = {
        name
        for name in archive.namelist()
        if name.startswith("robustkd/") and Path(name).suffix not in code and not examples & set(Path(name).parts)
    }
    assert len(data) >= 5
    assert {name for name in data if name not in notice} == set()
    named = [line.split(",")[0] for line in notice.splitlines() if line.startswith(("robustkd/", "attacks/"))]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_wheel_built_from_the_source_distribution_is_the_same(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    # `build` without --wheel packs a source distribution and builds the wheel from that, in a folder of its own.
    succeeded([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(checkout)])
    again = next(tmp_path.glob("*.whl"))
    assert {item.filename: item.CRC for item in zipfile.ZipFile(again).infolist() if not item.filename.endswith("/RECORD")} == {
        item.filename: item.CRC for item in zipfile.ZipFile(wheel).infolist() if not item.filename.endswith("/RECORD")
    }


def test_every_file_of_entry_points_registers_its_own_group(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))).decode()
    built = configparser.ConfigParser(delimiters="=")
    built.optionxform = str  # type: ignore[assignment,method-assign]
    built.read_string(text)
    for path in (ROOT / "entry_points").glob("*.ini"):
        written = configparser.ConfigParser(delimiters="=")
        written.optionxform = str  # type: ignore[assignment,method-assign]
        written.read(path)  # a name that is written twice is an error
        assert written.sections() == [f"robustkd.{path.stem}"]
        assert dict(written[f"robustkd.{path.stem}"]) == dict(built[f"robustkd.{path.stem}"])
    assert {path.stem for path in (ROOT / "entry_points").glob("*.ini")} == set(plugins.GROUPS)


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("wheel") / "venv", str(wheel))


def test_a_wheel_runs_away_from_the_checkout(from_wheel: Path, tmp_path: Path) -> None:
    seen = looked(from_wheel, tmp_path)
    assert Path(str(seen["home"])).is_relative_to(from_wheel.parents[1])
    assert seen["strays"] == []
    assert "pgd" in seen["names"]["attacks"]  # type: ignore[index]
    assert seen["torch"] is False, "listing the plug-ins imported torch"
    expected = {path.name for path in (ROOT / "campaigns" / "file" / "presets").glob("*.yaml")}
    assert set(seen["presets"]) == expected  # type: ignore[call-overload]
    assert all(seen["presets"].values())  # type: ignore[attr-defined]


def test_every_entry_point_of_the_wheel_loads(from_wheel: Path, tmp_path: Path) -> None:
    output = succeeded([str(from_wheel), "-W", "ignore", "-c", LOAD], cwd=tmp_path)
    assert json.loads(output.splitlines()[-1]) == {}


@pytest.mark.parametrize("editable", [False, True], ids=["plain", "editable"])
def test_an_installation_from_the_folder_runs_inside_and_outside_of_it(checkout: Path, tmp_path: Path, editable: bool) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkout, source, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    python = environment(tmp_path / "venv", *(["--editable"] if editable else []), str(source))
    (tmp_path / "elsewhere").mkdir()
    outside, inside = looked(python, tmp_path / "elsewhere"), looked(python, source)
    assert Path(str(outside["home"])).is_relative_to(source if editable else tmp_path / "venv")
    assert Path(str(inside["home"])).is_relative_to(source)  # Python looks in the current folder first
    for seen in (outside, inside):
        assert seen["names"] == outside["names"]
        assert "pgd" in seen["names"]["attacks"]  # type: ignore[index]
        assert seen["presets"] == outside["presets"]
