"""A model's code is imported while others import: modules that load themselves on first use, and a thread of our own.

Asking such a module for its file ran its code; the error was taken for one of the model, or the model for a bug.
"""

import sys
import threading

import pytest

import robustkd
from robustkd.plugins.sources import files_read, unwatched
from support.campaigns import external, tiny_campaign

LAZY = """\
import sys, types
import torch

class Lazy(types.ModuleType):
    def __getattr__(self, name):
        raise ImportError(f"the optional package that {name} is in is not installed")

class NoModule:
    def __getattr__(self, name):
        raise RuntimeError(f"no class {name}")

sys.modules["loads_itself"] = Lazy("loads_itself")
sys.modules["no_module"] = NoModule()

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
CAMPAIGN = tiny_campaign("lazy", external("lazy_net.py:build"), train=60, test=12)


@pytest.fixture(autouse=True)
def no_such_modules_afterwards():
    yield
    for name in ("loads_itself", "no_module"):
        sys.modules.pop(name, None)


def test_a_model_whose_code_has_such_modules_is_attacked(tmp_path):
    (tmp_path / "lazy_net.py").write_text(LAZY)
    (tmp_path / "lazy.yaml").write_text(CAMPAIGN)
    results = robustkd.run(tmp_path / "lazy.yaml", tmp_path / "out", workers=0, device="cpu", track=False)
    assert [cell.status for cell in results.cells] == ["done"], [cell.error for cell in results.cells]


def test_what_a_thread_of_ours_reads_meanwhile_is_no_file_of_the_model(tmp_path):
    for name in ("weights", "log"):
        (tmp_path / name).write_text(name)

    def ours():
        unwatched()
        (tmp_path / "log").read_text()

    def the_model_s():
        (tmp_path / "weights").read_text()

    with files_read() as read, files_read() as again:
        for work in (ours, the_model_s):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert read == again == [tmp_path / "weights"]
