"""A model's error quotes what it met: a file name that is no UTF-8, escape sequences of a terminal, fifty megabytes, a key.

The campaign has its table and its report all the same, and a reader meets none of it.
"""

import json

import pytest

from robustkd.cli import main
from robustkd.redaction import LONGEST, redacted, safe_to_show
from support.campaigns import PLAIN, tiny_campaign

MODEL = """\
def build(api_key, what):
    raise RuntimeError({"surrogate": "no file b\\udcff", "escape": "\\x1b]0;PWNED\\x07\\x1b[2J", "long": 50_000_000 * "x"}[what])
"""
KEY = "sk-live-0123456789"


def test_the_table_and_the_report_stand(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.py").write_text(MODEL)
    names = ("surrogate", "escape", "long")
    faulty = {what: f"{{kind: external, code: 'model.py:build', kwargs: {{api_key: {KEY}, what: {what}}}}}" for what in names}
    (tmp_path / "c.yaml").write_text(tiny_campaign("texts", train=60, defenses={**PLAIN, **faulty}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["robustkd", "run", "c.yaml", "--out", "out", "--workers", "0", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    printed = "".join(capsys.readouterr())
    assert "plain" in printed.partition("worst case")[2]
    assert "\x1b" not in printed
    assert len(printed) < 50_000
    told = {row["defense"]: row["error"] for row in json.loads((tmp_path / "out/results.json").read_text())["defenses"]}
    assert told["plain"] is None
    assert all("RuntimeError" in told[name] and len(told[name]) < LONGEST + 200 for name in names)
    assert "no file b\N{REPLACEMENT CHARACTER}" in told["surrogate"]
    for name in ("report.html", "report.md", "results.json", "record.json"):
        written = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert KEY not in written, name
        assert "\x1b" not in written, name
        assert len(written) < 2_000_000, name
    assert KEY.encode() not in b"".join(file.read_bytes() for file in (tmp_path / "out").glob("mlflow.db*"))
    assert not [
        file for file in (tmp_path / "out/mlartifacts").rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"password: {KEY}",
        f"{{api_key: {KEY}, width: 3}}",
        f'"api_key": "{KEY}", "width": 3',
        f"{{'access_token': '{KEY}'}}",
        f"Authorization: Bearer {KEY}",
        f"https://x.org/?token={KEY}&a=1",
        f"MY_SECRET={KEY}",
    ],
)
def test_a_secret_is_masked_in_whatever_form(text):
    assert KEY not in redacted(text)
    assert redacted(text).count("***") == 1


def test_what_is_no_secret_stays():
    for text in ("max_new_tokens: 20", "tokens: 3", "the token 'x' is unknown", "secrets of the trade", "keys: [a]"):
        assert redacted(text) == text


def test_a_secret_at_the_cut_is_masked_whole(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", KEY)
    for before in range(LONGEST - len(KEY), LONGEST + 2):
        assert "sk-live" not in safe_to_show(before * " " + KEY + 100 * " ")


def test_a_long_text_of_words_and_hyphens_takes_no_time():
    assert len(safe_to_show(1_000_000 * "a-")) == LONGEST
    assert redacted(20_000 * "a-") == 20_000 * "a-"


def test_what_is_masked_before_a_secret_does_not_bring_half_of_it_into_sight(monkeypatch):
    monkeypatch.setenv("SERVICE_API_KEY", KEY)
    masked = "password=" + 120 * "a" + " "
    for before in range(2 * LONGEST - len(KEY), 2 * LONGEST + 1):
        filling = (masked * (before // len(masked) + 1))[: before - 1] + " "
        assert KEY[:8] not in safe_to_show(filling + KEY)
