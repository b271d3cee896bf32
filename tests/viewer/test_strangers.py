"""A results folder comes from anybody, and a page of the web may ask the server: nothing is run, and nothing else is shown."""

from __future__ import annotations

import json
import socket

import pytest
from safetensors.numpy import load_file, save_file
from viewer.conftest import rewritten, served

from robustkd.viewer.server import HOSTS

HOSTILE = [
    "</script><script>evil()</script>",
    '"><img src=x onerror=evil()>',
    "\x1b]0;PWNED\x07\u202e{{ 7*7 }}{% include 'report.js' %}",
    "\udcff half a pair \ud800",
    "\x00<!-- ]]> &lt;b&gt;",
]


def harmless(answer):
    page = answer.page
    assert not page.handlers
    assert page.tags.count("script") == 1  # the viewer's own, which is a file
    assert "evil()" not in "".join(page.links)
    assert not [letter for letter in answer.text if ord(letter) < 32 and letter not in "\n\t"]
    return page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_are_texts(runs, hostile):
    for transcripts in (runs / "cupboards").glob("cells/*/*/transcripts.jsonl"):
        lines = [json.loads(line) for line in transcripts.read_text().split("\n") if line]
        said = {"request": hostile, "prompt": hostile + " more", "output": hostile, "prefill": hostile, "system": hostile}
        lines = [line | said | {"turns": [[hostile, hostile]], "verdicts": {hostile: True}} for line in lines]
        rewritten(transcripts.parent, "transcripts.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    file = runs / "cupboards/results.json"
    results = json.loads(file.read_text())
    results["campaign"] = hostile
    for row in (*results["cells"], *results["defenses"]):
        row["defense"] = hostile if row["defense"] == "short-sighted" else row["defense"]
    results["defenses"][0]["error"] = results["cells"][0]["error"] = hostile
    file.write_text(json.dumps(results))
    with served(runs) as get:
        harmless(get("/"))
        campaign = harmless(get("campaign", run="cupboards"))
        lists = [link for link in campaign.links if link.startswith("/samples?")]
        listed = harmless(get(lists[0]))
        sample = harmless(get(next(link for link in listed.links if link.startswith("/sample?"))))
        assert "more" in sample.words
        harmless(get(next(link for link in campaign.links if link.startswith("/compare?"))))
        harmless(get("leaderboard", q="<script>evil()</script> pictures"))


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8350", "127.0.0.1.evil.test", "localhost.evil.test", "0.0.0.0", ""])
def test_another_name_than_this_machine_s_is_refused(get, host):
    assert get("/", host=host or " ").status == 400
    for own in HOSTS:
        assert get("/", host=f"{own}:8350").status == 200


def test_it_listens_on_this_machine_alone():
    from robustkd.viewer.server import listening

    listener = listening(0)
    address, port = listener.getsockname()
    assert address == "127.0.0.1"
    from robustkd.contracts import UsageError

    with pytest.raises(UsageError, match="--port"):
        listening(port)
    listener.close()
    assert socket.gethostname()


def test_headers_leave_a_page_to_itself(get):
    for path in ("/", "/style.css", "/view.js", "/nothing", "/campaign?run=pictures"):
        headers = get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"


def test_paths_stay_inside(runs, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "results.json").write_text((runs / "pictures/results.json").read_text())
    (secret / "page.html").write_text("the secret")
    (runs / "link").symlink_to(secret)
    report = runs / "pictures/report.html"
    report.unlink()
    report.symlink_to(secret / "page.html")
    cells = runs / "squares/cells"
    cells.rename(secret / "cells")
    cells.symlink_to(secret / "cells")
    cell = next((secret / "cells").glob("*/*"))
    with served(runs) as get:
        assert "secret" not in get("/").text
        for path in (
            "/campaign?run=link",
            "/campaign?run=..",
            "/campaign?run=../secret",
            "/campaign?run=",
            "/../secret/page.html",
        ):
            assert get(path).status == 404, path
        assert get("report", run="pictures").status == 404
        assert get("image", run="squares", cell=cell.name, row=0, which="adversarial").status == 404
        for bad in ("../../../secret", "..", "%2e%2e", "\x00", "a" * 10_000):
            assert get("image", run="pictures", cell=bad, row=0, which="adversarial").status == 404
        assert get("samples", run="squares", defense="unlearnt", seed=0).status == 404


def test_code_that_a_folder_names_does_not_run(runs):
    campaign = runs / "pictures/campaign.yaml"
    (runs / "pictures/own.py").write_text("from pathlib import Path\nPath('pwned').touch()\ndef load(): ...\n")
    campaign.write_text(
        campaign.read_text().replace("{name: digits, train: 300, test: 20}", "{name: code, code: 'own.py:load'}")
    )
    with served(runs) as get:
        page = get("sample", run="pictures", defense="plain", seed=0, n=1).page
        assert "loaded by code that is not robustkd's own" in page.words
        assert any("which=adversarial" in address for address in page.pictures)
        assert not any("which=clean" in address for address in page.pictures)
    import sys

    assert "own" not in sys.modules


def test_other_data_are_not_shown_as_the_clean_ones(runs):
    campaign = runs / "pictures/campaign.yaml"
    campaign.write_text(campaign.read_text().replace("test: 20", "test: 21"))
    with served(runs) as get:
        assert "are other ones now" in get("sample", run="pictures", defense="plain", seed=0, n=1).page.words


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"campaign": 3}', "\udcff"])
def test_results_that_cannot_be_read_are_a_sentence(runs, text):
    (runs / "pictures/results.json").write_text(text, errors="surrogateescape")
    with served(runs) as get:
        assert "cupboards" in get("/").page.words
        answer = get("campaign", run="pictures")
        assert answer.status == 200
        assert "results.json" in answer.page.words


def test_damaged_logits_are_not_shown(runs):
    address = {"run": "pictures", "defense": "plain", "seed": 0, "n": 1}
    with served(runs) as get:
        assert "Logit, clean" in get("sample", **address).page.words
    for file in (runs / "pictures").glob("cells/*/*/adversarial.safetensors"):
        arrays = load_file(file)
        save_file(arrays | {"logits": -arrays["logits"]}, file)  # other classes come first than those that were predicted
    with served(runs) as get:
        assert "Logit, clean" not in get("sample", **address).page.words


def test_a_damaged_picture_is_not_shown(runs):
    for file in (runs / "pictures").glob("cells/*/*/adversarial.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with served(runs) as get:
        page = get("sample", run="pictures", defense="plain", seed=0, n=1).page
        kept = [address for address in page.pictures if "which=adversarial" in address]
        assert kept
        assert {get(address).status for address in kept} == {404}
