from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from robustkd import plugins
from robustkd.tracking import new_database, run_store
from support.command_line import CommandLine
from support.packages import write_metadata

collect_ignore = ["plugin_example"]  # a package of its own, whose tests need it installed: tests/plugin_kit does both

# Workers of xdist have it, and commands keep to it; a pipe has no width, and what is printed into one is what tests read.
os.environ.pop("COLUMNS", None)

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # child processes as well: two of them on two cores with two threads each only wait

torch.set_num_threads(1)  # the tests' networks are too small to gain from more, and xdist fills the cores


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test or its fixtures draw from torch's own generator must not depend on which tests came before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """The same again: a fixture of the module was made for this test or for an earlier one."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to get the same order again; pytest-randomly does so in the header, which ``-q`` leaves out."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None and config.getoption("randomly_reorganize", True):
        terminalreporter.write_line(f"the order of the tests: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The measuring data's folder; tests that use it are marked ``shared_data`` and skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ROBUSTKD_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no measuring data in {folder}")
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow store with its tables, which take a second and a half to create."""
    made, kept = tmp_path_factory.mktemp("mlflow") / "mlflow.db", tmp_path_factory.mktemp("kept") / "empty.db"
    run_store.connect(f"sqlite:///{made}").search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_database, "empty_database", lambda: kept)
        new_database.keep(made)
    return kept


@pytest.fixture(scope="session", autouse=True)
def _copied_stores(request: pytest.FixtureRequest) -> Iterator[None]:
    """A campaign that is tracked in a new folder begins with a copy of the empty store; child processes look into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_database, "empty_database", lambda: request.getfixturevalue("empty_store"))
        yield


@pytest.fixture
def robustkd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command: exit code, standard output, standard error."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def no_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations end with their checks: for tests of findings and verdicts, and not of the attacks that findings call for."""
    for module in ("robustkd.api", "robustkd.campaigns.execution.work.checks"):
        monkeypatch.setattr(f"{module}.run_remedies", lambda *_, **__: None)


@pytest.fixture
def no_escalation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedies are those that findings name, and no stronger attacks follow."""
    monkeypatch.setattr("robustkd.evaluation.checks.escalation", lambda *_: iter(()))


@pytest.fixture
def only_checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``only_checks("not-trained")``: evaluations and campaigns run these checks alone."""

    def choose(*names: str) -> None:
        for module in ("robustkd.api", "robustkd.campaigns.file.resolve"):
            monkeypatch.setattr(f"{module}.check_names", lambda *_: list(names))

    return choose


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``installed(name, {group: {plug-in: "module:Class"}})``: a package that registers these until the test ends."""

    def install(name: str, points: Mapping[str, Mapping[str, str]], version: str = "1.0") -> None:
        write_metadata(tmp_path / "site", name, points, version)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        plugins.refresh()

    yield install
    plugins.refresh()
