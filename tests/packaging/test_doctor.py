"""The environment's check and its repair."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    monkeypatch.setattr(doctor, "examine_afresh", lambda: [doctor.Finding("all", True, "fine")])
    monkeypatch.setattr(doctor, "unmet", lambda extra: [])
    return []


def test_a_sound_environment_is_left_alone(asked: list[tuple[list[str], str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", doctor.PEERS.get)
    monkeypatch.setattr(doctor, "foreign_files", lambda package: [])
    assert doctor.repair(lambda *given: asked.append(given)) == [doctor.Finding("all", True, "fine")]
    assert asked == []


@pytest.mark.parametrize("damage", ["missing", "overwritten"])
def test_the_peers_are_installed_in_the_order_that_leaves_robustbench_whole(
    damage: str, asked: list[tuple[list[str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", doctor.PEERS.get if damage == "overwritten" else lambda package: None)
    monkeypatch.setattr(doctor, "foreign_files", lambda package: ["robustbench/data.py"] if damage == "overwritten" else [])
    monkeypatch.setattr(doctor, "_installer", lambda: ["uv", "pip", "install"])
    monkeypatch.setenv("UV_INDEX_URL", "https://me:planted-password@packages.example/simple")
    said: list[str] = []
    doctor.repair(lambda *given: asked.append(given), said.append)
    how = "without further requirements, each file by its hash (SHA-256), from https://***@packages.example/simple"
    assert said[-2:] == [f"installs torchattacks==3.5.1 {how}", f"installs robustbench==1.1.1 {how}"]
    assert [options for options, _ in asked[-2:]] == [
        ["--no-deps", "--require-hashes"],
        ["--no-deps", "--force-reinstall", "--require-hashes"],
    ]
    assert [requirements.split()[0] for _, requirements in asked[-2:]] == ["torchattacks==3.5.1", "robustbench==1.1.1"]
    for _, requirements in asked:
        assert all("--hash=sha256:" in line for line in requirements.splitlines())


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
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        seen.append([*command, requirements])
        return subprocess.CompletedProcess(command, int("fails" in command), "", "no such package")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_what_may_be_installed_is_pinned_by_hash_and_moves_neither_torch_nor_numpy_nor_mlflow() -> None:
    locked = doctor._locked()
    assert not {"torch", "torchvision", "numpy", "mlflow", "requests"} & set(locked)
    assert {name: locked[name].split()[0] for name in doctor.PEERS} == {
        name: f"{name}=={version}" for name, version in doctor.PEERS.items()
    }
    for line in locked.values():
        name, *hashes = line.split()
        assert "==" in name
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
    needed = [Requirement(line) for line in metadata.requires("robustkd") or []]
    for need in needed:
        if need.marker and need.marker.evaluate({"extra": "robustbench"}) and not need.marker.evaluate({"extra": ""}):
            assert need.name == "torchvision" or need.specifier.contains(locked[need.name].split()[0].partition("==")[2])


@pytest.mark.network
def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    """By the real installer, into a folder of the test's own."""
    (line,) = (line for name, line in doctor._locked().items() if name == "tqdm")
    target = ["--no-deps", "--require-hashes", "--target", str(tmp_path)]
    doctor._install(target, line + "\n")
    assert (tmp_path / "tqdm").is_dir()
    changed = re.sub("sha256:[0-9a-f]{4}", "sha256:0000", line)
    with pytest.raises(RobustkdError, match=r"(?i)hash"):
        doctor._install([*target, "--no-cache"], changed + "\n")


def test_a_failed_installation_is_an_error_with_what_the_installer_said(commands: list[list[str]]) -> None:
    with pytest.raises(RobustkdError, match=r"installing fails==1 failed:\nno such package"):
        doctor._install(["fails"], "fails==1 --hash=sha256:0\n")
    assert commands[0][-1] == "fails==1 --hash=sha256:0\n"


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
