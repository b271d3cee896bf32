"""A results folder comes by mail or from a server. Code that its cards name does not run, and nothing is written outside of --out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.store import META
from robustkd.targets.files import CARD
from support.campaigns import tiny_campaign

HARMLESS = tiny_campaign()
OWN_CODE = HARMLESS.replace(
    "plain: {kind: standard, model: tiny-cnn, epochs: 1}", "mine: {kind: external, code: 'net.py:build'}"
)
NET = """\
from torch import nn

def build(width=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width))
"""
OPTIONS = ("--no-track", "--workers", "0", "--device", "cpu", "--quiet")
Command = Callable[..., tuple[int, str]]


def run(say: Command, text: str) -> tuple[int, str]:
    Path("c.yaml").write_text(text)
    return say("run", "c.yaml", "--out", "out", *OPTIONS)


def has_run(say: Command) -> None:
    """The harmless campaign is finished in ``out``: run by the first test that asks for it, and copied by the others."""
    finished = Path.cwd().parent / "finished by the harmless campaign"
    if finished.exists():
        Path("c.yaml").write_text(HARMLESS)
        shutil.copytree(finished, "out")
    else:
        assert run(say, HARMLESS)[0] == 0
        shutil.copytree("out", finished)


def cell(kind: str) -> Path:
    """The finished cell of this kind; with none it is an error."""
    notes = Path("out").glob("cells/*/*/meta.json")
    return next(note.parent for note in notes if json.loads(note.read_text())["kind"] == kind)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Another card in a cell whose checksums are right."""
    card = folder / CARD
    card.write_text(json.dumps(change(json.loads(card.read_text()))))
    note = json.loads((folder / META).read_text())
    note["files"][CARD] = sha256(card.read_bytes()).hexdigest()
    note.pop("seal")
    (folder / META).write_text(json.dumps(note | {"seal": digest(note)}))


def forget_attacks() -> None:
    for child in (folder := cell("attack")).iterdir():
        child.unlink()
    folder.rmdir()


def shell(card: dict[str, Any]) -> dict[str, Any]:
    return card | {"origin": {"code": "os:system", "kwargs": {"command": "touch pwned"}}}


def alone(card: dict[str, Any]) -> dict[str, Any]:
    return shell(card)


def in_an_ensemble(card: dict[str, Any]) -> dict[str, Any]:
    return {"target": "ensemble", "members": [card, shell(card)]}


def behind_a_transform(card: dict[str, Any]) -> dict[str, Any]:
    return {"target": "pipeline", "transforms": [{"kind": "bit-depth", "bits": 3}], "base": shell(card)}


@pytest.mark.parametrize("change", [alone, in_an_ensemble, behind_a_transform])
def test_code_that_a_card_names_does_not_run(say: Command, change: Any) -> None:
    has_run(say)
    rewritten(cell("train"), change)
    forget_attacks()
    code, said = run(say, HARMLESS)
    assert not Path("pwned").exists()
    assert code != 0
    assert "names code, os:system(command='touch pwned')" in said
    assert "Traceback" not in said


def test_code_runs_that_the_campaign_names_and_only_with_its_arguments(say: Command) -> None:
    Path("net.py").write_text(NET)
    assert run(say, OWN_CODE)[0] == 0  # the attack's cell has read the target back
    forget_attacks()
    rewritten(cell("train"), lambda card: card | {"origin": card["origin"] | {"kwargs": {"width": 11}}})
    code, said = run(say, OWN_CODE)
    assert code != 0
    assert "net.py:build(width=11)" in said


@pytest.mark.parametrize("command", ["attack", "audit"])
def test_code_of_a_saved_target_runs_where_the_command_line_names_it(say: Command, command: str) -> None:
    Path("net.py").write_text(NET)
    assert run(say, OWN_CODE)[0] == 0
    folder = cell("train")
    line = ("attack", "fgsm", "--model", folder) if command == "attack" else ("audit", folder, "--attack", "fgsm")
    line = (*line, "--n", 20, "--eps", "0.1")
    code, said = say(*line)
    reference = f"{Path('net.py').resolve()}:build"
    assert code == 1
    assert f"names code, {reference}()" in said
    assert f"--code {reference}" in said
    assert say(*line, "--code", reference)[0] in (0, 4)


def test_a_served_model_s_card_runs_nothing(say: Command) -> None:
    from robustkd.contracts import TargetError
    from robustkd.tracking.pyfunc import _load_pyfunc

    has_run(say)
    rewritten(cell("train"), shell)
    with pytest.raises(TargetError, match="names code, os:system"):
        _load_pyfunc(str(cell("train")))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("card", ["[]", '"x"', "{}", '{"target": "classifier", "origin": 3}', "[" * 100_000])
def test_a_card_that_is_none_is_one_sentence(say: Command, card: str) -> None:
    has_run(say)
    (cell("train") / CARD).write_text(card)
    code, said = say("attack", "fgsm", "--model", cell("train"))
    assert code == 1
    assert "holds no saved target" in said
    assert "Traceback" not in said


def recorded(say: Command, **changes: Any) -> Path:
    """A folder with the record of a run, with other words in it."""
    if not Path("out").exists():
        has_run(say)
    foreign = Path("deep/er/foreign")
    foreign.mkdir(parents=True, exist_ok=True)
    record = json.loads(Path("out/record.json").read_text())
    record["runs"][-1] |= changes
    (foreign / "record.json").write_text(json.dumps(record))
    return foreign


def files() -> set[Path]:
    return {path for path in Path().rglob("*") if path.is_file()}


def test_a_record_s_files_are_copied_inside_the_folder_alone(say: Command) -> None:
    place = Path("evil/a/b/c")
    place.mkdir(parents=True)
    for name in ("evil/a/pwn", "evil/a/b/c/inside"):
        Path(name).write_text("x")
    (place / "link").symlink_to(Path("c.yaml").absolute())
    (place / "up").symlink_to(place.parent.parent.absolute())
    stolen = {
        "../../pwn": "",
        "inside": "",
        "link": "",
        "up/pwn": "",
        "c.yaml/../../../pwn": "",
        str(Path("c.yaml").absolute()): "",
    }
    source = recorded(say, folder=str(place.absolute()), files=stolen)
    before = files()
    code, said = say("reproduce", source, "--out", "again")
    assert code == 0, said
    assert "Traceback" not in said
    assert files() - before == {Path("again") / name for name in ("campaign.yaml", "inside", "recorded/record.json")}


def test_nothing_is_written_through_a_link_in_the_folder(say: Command) -> None:
    place = Path("evil")
    place.joinpath("sub").mkdir(parents=True)
    place.joinpath("sub", "new").write_text("x")
    source = recorded(say, folder=str(place.absolute()), files={"sub/new": ""})
    Path("again").mkdir()
    Path("elsewhere").mkdir()
    Path("again/sub").symlink_to(Path("elsewhere").absolute())
    assert say("reproduce", source, "--out", "again")[0] == 0
    assert not Path("elsewhere/new").exists()


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped-robustkd", "..", "", "x\n", 3, None])
def test_a_record_of_a_campaign_with_no_name_is_refused(say: Command, name: Any) -> None:
    source = recorded(say, campaign=name)
    before = files()
    code, said = say("reproduce", source)
    assert code == 2
    assert "record.json is damaged: campaign: Value error, names have up to 64 letters" in said
    assert "Traceback" not in said
    assert files() == before


@pytest.mark.parametrize("changes", [{"text": 3}, {"files": ["x"]}, {"files": {"x": 3}}, {"folder": None}, {"data": []}])
def test_a_record_of_other_types_is_refused(say: Command, changes: dict[str, Any]) -> None:
    code, said = say("reproduce", recorded(say, **changes), "--out", "again")
    assert code == 2
    assert next(iter(changes)) in said
    assert "Traceback" not in said


@pytest.mark.parametrize("text", [HARMLESS.replace("tiny\n", '"tiny\\n"\n', 1), HARMLESS.replace("plain:", '"plain\\n":')])
def test_a_name_does_not_end_in_a_line_break(say: Command, text: str) -> None:
    code, said = run(say, text)
    assert code == 2
    assert "names have up to 64 letters" in said
