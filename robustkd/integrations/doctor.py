"""`robustkd doctor` examines the environment; `robustkd doctor --fix` repairs it.

Two of the packages that robustkd works with cannot be left to a resolver. torchattacks pins requests 2.25, which
MLflow 3 refuses, and its wheel drops a ``robustbench/`` of its own over the real one; robustbench pins timm and gdown to
single versions. So both are installed without their requirements, in the order in which robustbench's files end up
being robustbench's, together with what robustbench really needs (the extra ``robustbench``); and all of it is verified.

What is installed is pinned: ``doctor.lock`` names each package's version and the hashes of its files, so that another index can
bring no other file. torchvision is left to the user, since its build must belong to torch's.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import importlib.metadata as metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement

from robustkd.contracts import RobustkdError, UsageError
from robustkd.contracts.devices import devices
from robustkd.contracts.extras import installation, requirements
from robustkd.integrations import checkout
from robustkd.integrations.robustbench import import_robustbench
from robustkd.redaction import redacted

PEERS = {"torchattacks": "3.5.1", "robustbench": "1.1.1"}
"""The versions that robustkd's adapters are written for and tested with."""

LOCK = Path(__file__).with_name("doctor.lock")
_FIX = "robustkd doctor --fix"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was examined, whether it is in order, the details, and how to mend it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Examine all packages and devices. It imports the packages, so it takes some seconds."""
    return [
        Finding(
            "python", sys.version_info >= (3, 11), f"{platform.python_version()} in {sys.prefix}", "use Python 3.11 to 3.13"
        ),
        _plugins(),
        _imports("torch"),
        _numpy(),
        _torchvision(),
        _imports("mlflow"),
        _imports("foolbox"),
        _torchattacks(),
        _robustbench(),
        *_extras(),
        _devices(),
    ]


Install = Callable[[Sequence[str], str], None]
"""``install(options, requirements)`` runs an installer; the requirements are lines of a file, each with its hashes."""


def repair(install: Install | None = None, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Install what is missing or damaged, and look again, in a fresh process.

    Args:
        install: runs the installer; by default pip, or uv where the environment has no pip.
        say: hears what will be installed, and from where, before it is.

    Raises:
        RobustkdError: the installer failed, or there is none, or a file is not the one that robustkd was tried with.
    """
    run = install or _install
    locked = _locked()

    def install_said(names: Iterable[str], *options: str) -> None:
        requirements = [locked[name] for name in names]
        packages = ", ".join(line.split()[0] for line in requirements)
        say(f"installs {packages} without further requirements, each file by its hash (SHA-256), from {_index()}")
        run(["--no-deps", *options, "--require-hashes"], "\n".join(requirements) + "\n")

    needs = {need.name for need in unmet("robustbench")}
    lacking = [name for name in locked if name not in PEERS and (name in needs or not _version(name))]
    if needs & set(lacking):
        install_said(lacking)
    sound = _version("torchattacks") == PEERS["torchattacks"] and _version("robustbench") == PEERS["robustbench"]
    if not sound or foreign_files("robustbench"):
        install_said(["torchattacks"])
        install_said(["robustbench"], "--force-reinstall")
    return examine_afresh()


def _locked() -> dict[str, str]:
    """The lines of ``doctor.lock`` that are for this Python and machine, by the package's name."""
    lines = LOCK.read_text().replace("\\\n", " ").splitlines()
    found = {}
    for line in lines:
        wanted, _, hashes = line.partition(" --hash=")
        if not hashes:
            continue
        need = Requirement(wanted)
        if need.marker is None or need.marker.evaluate():
            found[need.name] = f"{need.name}{need.specifier} --hash={' '.join(hashes.split())}"
    return found


def examine_afresh() -> list[Finding]:
    """``examine`` in a new process, which sees what was installed since this one started."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "robustkd.integrations.doctor"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RobustkdError(f"the check could not run: {done.stderr.strip()[-500:]}")
    return [Finding(**finding) for finding in json.loads(done.stdout.splitlines()[-1])]


def foreign_files(package: str) -> list[str]:
    """The files of an installed package's import folder that are missing, or not the ones that it was installed with."""
    try:
        installed = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return []
    # Not installed.files: from Python 3.12 on it leaves missing files out.
    record = csv.reader((installed.read_text("RECORD") or "").splitlines())
    own = [(name, recorded) for name, recorded, _ in record if name.startswith(f"{package}/") and recorded]
    return [name for name, recorded in own if not _is_as_recorded(Path(str(installed.locate_file(name))), recorded)]


def unmet(extra: str) -> list[Requirement]:
    """The requirements of one of robustkd's extras that the environment does not meet."""
    wanted = requirements(extra)
    installed = {need.name: _version(need.name) for need in wanted}
    return [need for need in wanted if not (version := installed[need.name]) or not need.specifier.contains(version, True)]


def _is_as_recorded(path: Path, recorded: str) -> bool:
    """Whether a file has the hash that RECORD gives it, as ``sha256=<urlsafe base64 without padding>``."""
    mode, _, expected = recorded.partition("=")
    if not path.is_file():
        return False
    digest = hashlib.new(mode, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == expected


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _imports(package: str, fix: str = "") -> Finding:
    version = _version(package)
    try:
        importlib.import_module(package)
    except Exception as error:
        detail = f"{version} does not import: {_first_line(error)}" if version else "not installed"
        return Finding(package, False, detail, fix or f"reinstall it: pip install --force-reinstall {package}")
    return Finding(package, True, version or "imports, but is not installed as a package")


def _plugins() -> Finding:
    stale = checkout.stale_install()
    return Finding("plug-ins", stale is None, stale or "as in the code", checkout.FIX)


def _numpy() -> Finding:
    finding = _imports("numpy")
    try:
        import numpy
        import torch

        torch.from_numpy(numpy.zeros(1))
    except Exception as error:
        return Finding(
            "numpy", False, f"torch cannot use numpy {_version('numpy')}: {_first_line(error)}", "pip install -U torch numpy"
        )
    return finding


def _torchvision() -> Finding:
    finding = _imports("torchvision", fix="its build must belong to torch's: pip install --force-reinstall torch torchvision")
    if finding.ok:
        return finding
    lost = "robustbench's models and timm need it; robustkd's own attacks and defenses do not"
    return Finding(finding.name, False, f"{finding.detail} (torch is {_version('torch')}); {lost}", finding.fix)


def _torchattacks() -> Finding:
    finding = _imports("torchattacks", fix=_FIX)
    version, wanted = _version("torchattacks"), PEERS["torchattacks"]
    if finding.ok and version != wanted:
        return Finding("torchattacks", False, f"{version} where {wanted} is expected", _FIX)
    return finding


def _robustbench() -> Finding:
    version, wanted = _version("robustbench"), PEERS["robustbench"]
    if version is None:
        stray = importlib.util.find_spec("robustbench") is not None
        return Finding("robustbench", False, "only the copy that torchattacks carries" if stray else "not installed", _FIX)
    if version != wanted:
        return Finding("robustbench", False, f"{version} where {wanted} is expected", _FIX)
    foreign = foreign_files("robustbench")
    if foreign:
        detail = f"{len(foreign)} of its files are not its own ({foreign[0]}): torchattacks was installed over it"
        return Finding("robustbench", False, detail, _FIX)
    try:
        import_robustbench()
    except RobustkdError as error:
        return Finding("robustbench", False, f"{version}: {error.message}", _FIX)
    return Finding("robustbench", True, f"{version}, its files are its own")


def _extras() -> Iterable[Finding]:
    for extra in sorted(metadata.metadata("robustkd").get_all("Provides-Extra") or []):
        missing = unmet(extra)
        detail = f"lacks {', '.join(need.name for need in missing)} ({installation(extra)})" if missing else "complete"
        # An extra is optional; where a check above needs one, it says so itself.
        yield Finding(f"extra {extra}", True, detail)


def _devices() -> Finding:
    try:
        return Finding("devices", True, ", ".join(f"{name}: {what}" for name, what in devices().items()))
    except Exception as error:
        return Finding("devices", False, _first_line(error), "see the finding about torch")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _install(options: Sequence[str], requirements: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "requirements.txt").write_text(requirements)
        command = [*_installer(), *options, "--requirement", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        names = ", ".join(line.split()[0] for line in requirements.splitlines())
        raise RobustkdError(
            f"installing {names} failed:\n{(done.stderr or done.stdout).strip()[-1000:]}",
            fix="see that the package index can be reached and has these very files, then: " + _FIX,
        )


def _index() -> str:
    """The package index that the installer is set to, without credentials."""
    installer = _installer()
    names = ("PIP_INDEX_URL",) if "-m" in installer else ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
    named = next(filter(None, map(os.environ.get, names)), "")
    if not named and "-m" in installer:
        command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        named = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return redacted(named) or "PyPI"


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet"]
    beside = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if beside:
        return [beside, "pip", "install", "--quiet", "--python", sys.executable]
    raise UsageError("this environment has neither pip nor uv", fix="python -m ensurepip, then: " + _FIX)


if __name__ == "__main__":
    print(json.dumps([asdict(finding) for finding in examine()]))
