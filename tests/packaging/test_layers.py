"""What the import-linter does not see: circles among modules, in the benchmarks too, and by imports inside of functions."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("attacks", "defenses", "campaigns")


def modules() -> dict[str, Path]:
    """Every module of the distribution and of the benchmarks, by its name."""
    found = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    for top in ("robustkd", *FOLDERS):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if top == "robustkd" and parts[1] in FOLDERS:
                continue  # a link to the folder beside
            parts = parts if top == "robustkd" else ("robustkd", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ``known`` that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= named if named <= known.keys() else named | {node.module}
    return found & known.keys()


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    assert {"robustkd.api", "robustkd.attacks", "_harness"} <= known.keys()
    order = graphlib.TopologicalSorter({name: imports(path, known) for name, path in known.items()})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        raise AssertionError("a circle of imports: " + " <- ".join(error.args[1])) from None


@pytest.mark.parametrize("folder", ["attacks/image", "attacks/text", "attacks/diffusion", "defenses/image", "campaigns"])
def test_a_folder_can_be_taken_in_at_a_glance(folder: str) -> None:
    entries = {path.name for path in (ROOT / folder).iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert len(entries) <= 12, "give what belongs together a folder of its own"


def test_weights_are_moved_in_one_place() -> None:
    moved = {
        str(path.relative_to(ROOT))
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("optimiser.step")
    }
    assert {path for path in moved if not path.startswith("benchmarks")} == {"robustkd/targets/training.py"}
