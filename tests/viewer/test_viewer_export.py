"""The viewer's pages as files: every link leads to one, and harmful content travels only when it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from viewer.conftest import Page

from robustkd.cli import cli


def run(*arguments):
    return CliRunner().invoke(cli, ["view", *map(str, arguments)])


def said(runs):
    """What was asked and answered in the campaign of texts."""
    lines = [json.loads(line) for file in runs.glob("cupboards/cells/*/*/transcripts.jsonl") for line in file.open()]
    return {text for line in lines for text in (line["request"], line["output"]) if len(text) > 12}


def test_pages_are_files_and_every_link_leads_to_one(finished, tmp_path):
    done = run(finished, "--export", tmp_path / "out", "--samples", 3)
    assert done.exit_code == 0, done.output
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert f"{len(files)} files" in done.output
    for name, file in files.items():
        assert file.stat().st_size, name
        if name.endswith(".html"):
            page = Page(file.read_text())
            for link in (*page.links, *page.pictures):
                assert link in files or link.startswith("#"), (name, link)
    assert sum(name.startswith("sample-pictures-plain") for name in files) == 3
    assert "form" not in Page(files["index.html"].read_text()).tags


@pytest.mark.parametrize("harmful", [False, True])
def test_requests_answers_and_drawings_stay_unless_they_are_asked_for(finished, tmp_path, harmful):
    assert run(finished, "--export", tmp_path / "out", *(["--with-harmful"] if harmful else [])).exit_code == 0
    pages = "\n".join(file.read_text() for file in (tmp_path / "out").glob("*.html"))
    pages = pages.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'")
    texts = said(finished)
    assert texts
    kept = [text for text in texts if text in pages]
    assert bool(kept) == harmful
    drawn = list((tmp_path / "out").glob("image-squares*"))
    assert bool(drawn) == harmful
    assert list((tmp_path / "out").glob("image-pictures*"))
    assert ("left out of this export" in pages) != harmful
    assert "number (decides)" in pages  # how it was judged is no harm


def test_an_export_replaces_nothing(finished, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    done = run(finished, "--export", tmp_path / "out")
    assert "is not empty" in str(done.exception)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert "there is no folder" in str(run(tmp_path / "nowhere").exception)
    (tmp_path / "campaign.yaml").write_text((finished / "pictures/campaign.yaml").read_text())
    assert "there is no folder runs/pictures" in str(run(tmp_path / "campaign.yaml").exception)
    assert "for --export" in run(finished, "--with-harmful").output


def test_addresses_of_files_are_plain(finished, tmp_path):
    run(finished, "--export", tmp_path / "out", "--samples", 1)
    names = [file.name for file in Path(tmp_path / "out").iterdir()]
    assert all(unquote(name) == name and " " not in name for name in names)
    assert len({name.lower() for name in names}) == len(names)


def test_a_campaign_is_named_as_every_command_takes_it(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.parent)
    for number, named in enumerate(("pictures", "runs/pictures")):
        done = run(named, "--export", tmp_path / str(number), "--samples", 1)
        assert done.exit_code == 0, done.output
    first, second = (sorted(file.name for file in (tmp_path / number).iterdir()) for number in "01")
    assert first == second
