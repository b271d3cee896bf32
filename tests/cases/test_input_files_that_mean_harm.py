"""Files that somebody sends: bombs of aliases, thousands of levels, numbers of thousands of digits, keys twice, tags, control characters.

Each is refused in one sentence within a second of CPU time, whichever file it is.
"""

from __future__ import annotations

import json
import time

import pytest

import robustkd
from robustkd.campaigns.comparison import snapshot
from robustkd.campaigns.execution import profile
from robustkd.campaigns.file import spec
from robustkd.campaigns.results import results_file
from robustkd.contracts import RobustkdError
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign("harm")
ALIASES = "[" + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(12)) + "]"
VALUES = {
    "a bomb of aliases": ALIASES,
    "an endless alias": "&a [*a]",
    "many levels": 3_000 * "[" + 3_000 * "]",
    "very many levels": 200_000 * "[",
    "many levels of mappings": 3_000 * "{a: " + 3_000 * "}",
    "a number of 5,000 digits": 5_000 * "9",
    "a number of 100,000 hexadecimal digits": "0x" + 100_000 * "f",
    "a number beyond all": "1e999999999",
    "no number": ".nan",
    "a tag of Python": '!!python/object/apply:os.system ["true"]',
    "a key twice": "{a: 1, a: 2}",
    "a key twice, quoted once": '{a: 1, "a": 2}',
    "a list as a key": "{[1, 2]: 3}",
    "a merge of itself": "&m {<<: *m}",
    "a date": "2026-02-31",
    "a NUL": '"\\0"',
    "a real NUL": "\0",
    "half a surrogate pair": '"\\ud800"',
    "binary": "!!binary aGVsbG8=",
}
NAMES = {
    "a line's end": '"x\\n"',
    "a NUL in it": '"x\\0y"',
    "a path": "../../x",
    "a dot": '"."',
    "a character of a terminal": '"\\e[2J"',
    "100,000 characters": 100_000 * "n",
    "an RTL override": '"x\\u202Ey"',
}


def refused(read, *arguments) -> None:
    began = time.thread_time()  # not the process's: threads that earlier tests left behind are not what is asked
    with pytest.raises(RobustkdError) as told:
        read(*arguments)
    assert time.thread_time() - began < 1.0
    said = str(told.value)
    assert len(said) < 3000
    assert "\x1b" not in said
    assert "\0" not in said
    said.encode()


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_campaign_with_such_a_value(value, tmp_path):
    file = tmp_path / "c.yaml"
    for text in (
        CAMPAIGN.replace("train: 100", f"train: {value}"),
        CAMPAIGN.replace("{kind: fgsm}", f"{{kind: fgsm, more: {value}}}"),
        f"{CAMPAIGN}more: {value}\n",
        value,
    ):
        file.write_text(text)
        refused(spec.load, str(file))


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_profile_with_such_a_value(value, tmp_path):
    file = tmp_path / "p.yaml"
    for text in (f"engine: {value}\n", f"engine: {{kind: local, workers: {value}}}\n", f"limits: {{retries: {value}}}\n"):
        file.write_text(text)
        refused(profile.load, file)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_campaign_with_such_a_name(name, tmp_path):
    file = tmp_path / "c.yaml"
    for text in (
        CAMPAIGN.replace("name: harm", f"name: {name}"),
        CAMPAIGN.replace("  plain:", f"  {name}:" if len(name) < 1000 else f"  ? {name}\n  :"),
        CAMPAIGN.replace("  fgsm:", f"  {name}:" if len(name) < 1000 else f"  ? {name}\n  :"),
    ):
        assert text != CAMPAIGN
        file.write_text(text)
        refused(spec.load, str(file))


def test_two_documents_and_a_file_that_is_no_text(tmp_path):
    file = tmp_path / "c.yaml"
    for content in (
        f"{CAMPAIGN}---\n{CAMPAIGN}".encode(),
        b"\xff\xfe\x00",
        b"",
        b"\x00" * 100,
        CAMPAIGN.encode("utf-16"),
        b"- " * 100_000,
    ):
        file.write_bytes(content)
        refused(spec.load, str(file))


JSON = {
    "many levels": 3_000 * "[" + 3_000 * "]",
    "very many levels": 500_000 * "[",
    "a number of 5,000 digits": 5_000 * "9",
    "a number beyond all": "1e999999999",
    "no number": "NaN",
    "half a surrogate pair": '"\\ud800"',
    "nothing": "",
    "another thing": '"x"',
    "many levels of objects": 100_000 * '{"a":',
}


@pytest.mark.parametrize("value", JSON.values(), ids=JSON)
def test_results_and_baselines_with_such_a_value(value, tmp_path):
    file = tmp_path / "results.json"
    for text in (value, f'{{"version": {value or "null"}}}', f'{{"cells": {value or "null"}, "defenses": []}}'):
        file.write_text(text)
        refused(results_file.read, file)
        refused(robustkd.load, file)
        refused(snapshot.read, str(file))


@pytest.mark.parametrize("value", JSON.values(), ids=JSON)
def test_a_record_with_such_a_value(value, robustkd, tmp_path):
    for text in (
        value,
        f'{{"campaign": {value or "null"}, "files": {{}}}}',
        json.dumps({"campaign": 3, "files": {"../x": ""}}),
    ):
        (tmp_path / "record.json").write_text(text)
        code, _, err = robustkd("reproduce", "record.json", "--out", "again")
        assert code, err
        assert len(err) < 3000
        assert not (tmp_path / "again").exists()
