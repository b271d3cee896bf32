"""Texts from outside (errors, findings of plug-ins, class names, requests, answers) in all that robustkd writes: terminal, pages, MLflow.

Whatever they hold, each file is written and can be read, no control character reaches a terminal, no tag and no link of theirs becomes
one of the page, and nothing grows with them without an end.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from robustkd.cli.table import print_results
from robustkd.contracts.check import Finding
from robustkd.redaction import safe_to_show
from robustkd.reporting import SampleEvidence, write_report
from robustkd.reporting.transcripts import PromptItem
from robustkd.tracking import MlflowTracker, transcripts
from support.tracked_campaign import campaign, cell, client, defended, failed, results, runs

BITS = st.sampled_from(
    [
        "\udcff", "\ud800", "\x1b]0;PWNED\x07", "\x1b[2J", "\x1b]8;;http://evil.test\x1b\\here\x1b]8;;\x1b\\", "\x00", "\x9b31m", "\u202e",
        "<script>evil()</script>", "</script><script>evil()", '"><img src=x onerror=evil()>', "<!--", "]]>", "&lt;b&gt;", "{{ 7*7 }}",
        "[here](javascript:evil())", "![x](http://evil.test/x.png)", "<http://evil.test>", "http://evil.test", "| a | b |",
        "\n# evil\n", "```\n", "`",
        "\\input{evil}", "$x_1$", "%", "=cmd|' /C calc'!A0", "\r\n", "\u2028", "é", " ", "a",
    ]
)  # fmt: skip
TEXTS = st.lists(BITS, min_size=1, max_size=6).map("".join) | st.text(st.characters(), max_size=40)
LONG = 500_000


class Page(HTMLParser):
    """The tags of a page that could do something, and its addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src", "action")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def harmless_page(text: str) -> None:
    page = Page()
    page.feed(text)
    assert not page.handlers
    assert not [address for address in page.addresses if "evil" in address]
    assert "evil()" not in "".join(re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)).replace("\\u003c", "<").replace(
        '"', ""
    ) or page.tags.count("script") == text.count("<script")


def harmless_markdown(text: str) -> None:
    tokens = [
        child for token in MarkdownIt("commonmark").enable("table").parse(text) for child in [token, *(token.children or ())]
    ]
    assert not [token for token in tokens if token.type in ("html_block", "html_inline") and "evil" in token.content]
    assert not [token for token in tokens if "evil" in str(token.attrs)]
    assert not [token for token in tokens if token.type == "heading_open" and "evil" in token.content]


def printable(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)


@pytest.mark.timeout(900)
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
@given(texts=st.lists(TEXTS, min_size=6, max_size=6), long=st.booleans())
def test_every_sink_takes_every_text(texts, long, tmp_path_factory, empty_store, capsys):
    folder = tmp_path_factory.mktemp("sinks")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    error, explanation, fix, label, request, answer = texts
    if long:
        answer, error = LONG * "x " + answer, LONG * "y" + error
    finding = Finding("zero-gradient", "severe", True, {"explanation": safe_to_show(explanation)}, safe_to_show(fix))
    outcome = results(
        cell(),
        failed("mtard", "cw", 0, safe_to_show(error)),
        defenses=(defended(checks=[finding]), replace(defended("other"), status="failed", error=safe_to_show(error))),
    )
    items = [PromptItem("mtard", "pgd", 0, label, request, request + "?", answer, 2, True)]
    files = write_report(outcome, folder, items, SampleEvidence((label, request), (), (request,)))
    for file in (files.html, files.markdown, files.latex):
        written = file.read_bytes().decode("utf-8")
        printable(written)
        assert len(written) < 3_000_000, file
    harmless_page(files.html.read_text("utf-8"))
    harmless_markdown(files.markdown.read_text("utf-8"))
    assert "\\input{evil}" not in files.latex.read_text("utf-8")
    capsys.readouterr()
    print_results(outcome, [], folder, tracked=False, shown="c.yaml")
    said = "".join(capsys.readouterr())
    printable(said)
    assert len(said) < 100_000
    json.loads(json.dumps(outcome.to_dict())).keys()
    table = transcripts.table(items)
    table.encode("utf-8")
    assert len(table) < 100_000
    tracker = MlflowTracker(folder, campaign(), warn=lambda text: None)
    tracker.finish(outcome, gallery=lambda result: items if result.attack == "pgd" else [], force=True)
    assert tracker.problem is None
    for run in runs(folder).values():
        for value in (*run.data.tags.values(), *run.data.params.values()):
            value.encode("utf-8")
            assert "\x1b" not in value
            assert "\x00" not in value
        harmless_markdown(run.data.tags.get("mlflow.note.content", ""))
    assert client(folder)
