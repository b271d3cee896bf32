"""What the pages of the documentation name is what the code has: layers, checks, and lines that a diff can show."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from robustkd import plugins

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
UNBROKEN = ("|", "#", "![")  # rows of tables, headings and pictures cannot be wrapped


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_prose_is_longer_than_120(page):
    prose = FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert not [line for line in prose if len(line) > 120 and not line.startswith(UNBROKEN)]


def test_every_layer_of_the_import_contracts_is_on_the_architecture_page():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    houses = [contract for contract in contracts if contract.get("exhaustive")]
    assert [contract["containers"] for contract in houses] == [["robustkd"], ["robustkd.campaigns"]]
    text, picture = (DOCS / "architecture.md").read_text(encoding="utf-8"), (DOCS / "images" / "architecture.svg").read_text()
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    for contract in houses:
        for layer in contract["layers"]:
            names = layer.split(" | ")
            assert ", ".join(f"`{name}`" for name in names) in rows
            for name in names:
                assert f">{name}</text>" in picture


def test_every_module_that_the_architecture_page_names_exists():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for folder in re.findall(r"`(robustkd/[\w/.]+)`", text):
        assert (ROOT / folder).exists(), folder
    dotted = re.findall(r"`((?:application|campaigns|evaluation)\.[\w.]+)`", text)
    assert len(dotted) >= 8
    for name in dotted:
        path = ROOT.joinpath("robustkd", *name.split("."))
        module = path if path.is_dir() else path.with_suffix(".py")
        if not module.exists():  # a function of a module
            assert f"\ndef {path.name}(" in path.parent.with_suffix(".py").read_text(encoding="utf-8"), name


def test_the_tables_of_verdicts_name_every_check_and_nothing_else():
    images, prompts = (DOCS / "verdicts.md").read_text(encoding="utf-8").split("\n## Checks of ")[1:3]
    found = {info.name: plugins.load("checks", info.name) for info in plugins.listing("checks") if info.package == "robustkd"}
    for part, is_image in ((images, True), (prompts, False)):
        rows = dict(re.findall(r"^\| `([\w-]+)`.*? \| (\w+)", part.partition("\n\n## ")[0], re.MULTILINE))
        wanted = {name: check.severity for name, check in found.items() if ("images" in check.modalities) == is_image}
        assert rows == wanted


def test_the_number_of_checks_that_the_pages_tell_is_the_number_of_checks():
    names = [info.name for info in plugins.listing("checks") if info.package == "robustkd"]
    of_images = [name for name in names if "images" in plugins.load("checks", name).modalities]
    pages = (ROOT / "README.md", DOCS / "index.md", DOCS / "verdicts.md")
    readme, index, verdicts = (" ".join(page.read_text(encoding="utf-8").split()) for page in pages)
    assert f" {len(names)} checks look for" in readme
    assert f" {len(names)} checks look for" in index
    counts = f"There are {len(names)} checks: {len(of_images)} for image classifiers and {len(names) - len(of_images)} for"
    assert counts in verdicts


def test_the_glossary_is_in_alphabetical_order():
    terms = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) > 25
    assert terms == sorted(terms, key=str.lower)


def test_every_test_that_is_listed_beside_a_fault_is_there():
    lines = (DOCS / "contributing" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| what happens")]
    files = {row: re.findall(r"`([\w/]+\.py)`", row) for row in rows}
    assert len(files) > 30
    assert [row for row, named in files.items() if not named] == [rows[-1]]  # which pytest sees to
    assert not [file for named in files.values() for file in named if not (ROOT / file).is_file()]
