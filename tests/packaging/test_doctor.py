"""The environment's check and its repair."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from robustkd.contracts import RobustkdError, UsageError
from robustkd.integrations import doctor


def installed(folder: Path, package: str, version: str, files: dict[str, str]) -> None:
    """What an installer leaves behind: files, and a RECORD with their hashes."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = []
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text)}")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages of our own, in front of the real one, with an intact robustbench."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {"robustbench/__init__.py": "a = 1\n", "robustbench/data.py": "b = 2\n", "tests/test_data.py": ""}
    installed(tmp_path, "robustbench", doctor.PEERS["robustbench"], files)
    return tmp_path


def test_files_that_another_package_wrote_or_removed_are_found(site: Path) -> None:
    assert doctor.foreign_files("robustbench") == []
    (site / "tests" / "test_data.py").unlink()  # not what is imported
    assert doctor.foreign_files("robustbench") == []
    (site / "robustbench" / "data.py").write_text("b = 3\n")
    assert doctor.foreign_files("robustbench") == ["robustbench/data.py"]
    (site / "robustbench" / "__init__.py").unlink()
    assert len(doctor.foreign_files("robustbench")) == 2
    finding = doctor._robustbench()
    assert not finding.ok
    assert "2 of its files are not its own" in finding.detail
    assert finding.fix == "robustkd doctor --fix"
    assert doctor.foreign_files("a-package-that-is-not-there") == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr(doctor, "examine_afresh", lambda: [doctor.Finding("all", True, "fine")])
    monkeypatch.setattr(doctor, "unmet", lambda extra: [])
    return []


def test_a_sound_environment_is_left_alone(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", doctor.PEERS.get)
    monkeypatch.setattr(doctor, "foreign_files", lambda package: [])
    assert doctor.repair(asked.append) == [doctor.Finding("all", True, "fine")]
    assert asked == []


@pytest.mark.parametrize("damage", ["missing", "overwritten"])
def test_the_peers_are_installed_in_the_order_that_leaves_robustbench_whole(
    damage: str, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", doctor.PEERS.get if damage == "overwritten" else lambda package: None)
    monkeypatch.setattr(doctor, "foreign_files", lambda package: ["robustbench/data.py"] if damage == "overwritten" else [])
    monkeypatch.setattr(doctor, "_installer", lambda: ["uv", "pip", "install"])
    monkeypatch.setenv("UV_INDEX_URL", "https://me:planted-password@packages.example/simple")
    said: list[str] = []
    doctor.repair(asked.append, said.append)
    assert said[0] == "installs torchattacks==3.5.1 without its requirements from https://***@packages.example/simple"
    assert len(said) == 2
    assert asked == [["--no-deps", "torchattacks==3.5.1"], ["--no-deps", "--force-reinstall", "robustbench==1.1.1"]]


def test_requirements_of_an_extra_are_compared_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2", 'timm>=1; extra == "robustbench"', 'gdown>=5; extra == "robustbench"', 'ruff; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda package: lines)
    monkeypatch.setattr(doctor, "_version", {"timm": "0.9"}.get)
    assert [str(need) for need in doctor.unmet("robustbench")] == ["timm>=1", "gdown>=5"]
    monkeypatch.setattr(doctor, "_version", {"timm": "1.0.1", "gdown": "6.0"}.get)
    assert doctor.unmet("robustbench") == []


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        constraints = Path(command[command.index("--constraint") + 1]).read_text()
        seen.append([*command, constraints])
        return subprocess.CompletedProcess(command, int("fails" in command), "", "no such package")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_an_installation_moves_neither_torch_nor_numpy_nor_mlflow(commands: list[list[str]]) -> None:
    doctor._install(["gdown>=5"])
    for package in ("torch", "numpy", "mlflow"):
        assert f"{package}=={doctor._version(package)}\n" in commands[0][-1]


def test_a_failed_installation_is_an_error_with_what_the_installer_said(commands: list[list[str]]) -> None:
    with pytest.raises(RobustkdError, match="no such package"):
        doctor._install(["fails"])


def test_pip_is_used_where_there_is_one_and_uv_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert doctor._installer()[:4] == [sys.executable, "-m", "pip", "install"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name, path=None: "/somewhere/uv")
    assert doctor._installer()[:3] == ["/somewhere/uv", "pip", "install"]
    assert doctor._installer()[-2:] == ["--python", sys.executable]
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(UsageError, match="neither pip nor uv"):
        doctor._installer()


def test_a_torchvision_that_does_not_load_is_said_with_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    finding = doctor._torchvision()
    assert not finding.ok
    assert "do not" in finding.detail
    assert "--force-reinstall torch torchvision" in finding.fix


def test_the_check_after_a_repair_runs_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    output = 'a warning\n[{"name": "torch", "ok": false, "detail": "gone", "fix": "reinstall"}]\n'
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, output, ""))
    assert doctor.examine_afresh() == [doctor.Finding("torch", False, "gone", "reinstall")]
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, "", "Traceback"))
    with pytest.raises(RobustkdError, match="Traceback"):
        doctor.examine_afresh()


def test_the_report_of_this_environment() -> None:
    findings = {finding.name: finding for finding in doctor.examine()}
    expected = ["python", "plug-ins", "torch", "numpy", "torchvision", "mlflow", "foolbox", "torchattacks", "robustbench"]
    assert list(findings)[: len(expected)] == expected
    assert "CPU" in findings["devices"].detail
    for name in ("python", "torch", "numpy", "mlflow", "foolbox", "devices"):
        assert findings[name].ok, findings[name]
    for finding in findings.values():
        assert finding.ok or finding.fix
