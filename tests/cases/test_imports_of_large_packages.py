"""torch, MLflow and matplotlib are imported while the garbage collector rests, and nothing else of it changes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from robustkd.lazy import large_import


class Ring:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector():
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


def test_the_collector_rests_meanwhile_and_frees_afterwards_what_came_before() -> None:
    gc.enable()
    frozen, ring = gc.get_freeze_count(), Ring()
    gone = weakref.ref(ring)
    del ring
    with large_import():
        assert not gc.isenabled()
        with large_import():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    gc.collect()
    assert gone() is None


def test_a_collector_that_its_user_disabled_stays_so() -> None:
    gc.disable()
    with large_import():
        pass
    assert not gc.isenabled()


def test_imports_of_two_threads_overlap() -> None:
    gc.enable()
    begun, end = threading.Event(), threading.Event()

    def other() -> None:
        with large_import():
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    with large_import():
        pass
    assert not gc.isenabled()
    end.set()
    thread.join()
    assert gc.isenabled()


def test_an_import_that_fails_starts_it_again() -> None:
    gc.enable()
    with pytest.raises(ModuleNotFoundError), large_import():
        import no_such_package  # noqa: F401
    assert gc.isenabled()


COUNTED = """
import gc
looked_at = 0
def count(phase, facts):
    global looked_at
    looked_at += phase == "start"
gc.callbacks.append(count)
{imports}
print(looked_at)
"""


def test_torch_is_imported_without_a_collection(tmp_path: Path) -> None:
    """Beside it, what the plain import makes the collector do."""

    def collections(imports: str) -> int:
        script = COUNTED.format(imports=imports)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert collections("import torch") > 100
    ours = collections("from robustkd.lazy import torch\nlooked_at = 0\ntorch.Tensor")
    assert ours <= 3  # of what comes after


def test_a_command_that_used_torch_and_its_compiler_ends_without_a_word() -> None:
    """Bindings that are written with nanobind name every object that is left when Python ends."""
    pytest.importorskip("triton")
    script = (
        "import sys, triton._C.libtriton, torch\nfrom robustkd.cli import main\n"
        "sys.argv = ['robustkd', 'list', 'checks']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "reference-attack" in done.stdout
    assert done.stderr == ""
