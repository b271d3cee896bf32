"""A model on the hub whose revision is no commit may be another one tomorrow, under the same identity: whoever plans or runs it is told."""

import pytest

from robustkd import plugins
from robustkd.campaigns.execution.engines import Limits
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning

CAMPAIGN = """\
version: 1
name: hub
data: {name: vaults}
threat: {attempts: 2}
defenses:
  theirs: {kind: causal-lm, hub: somebody/model%s}
attacks:
  no-attack: {kind: no-attack}
checks: none
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOVING = {"": "where it may change", ", revision: main": "where its branch or tag main may change"}


@pytest.mark.parametrize("kind", ["causal-lm", "text-to-image"])
def test_a_commit_stays_and_all_else_may_change(kind):
    def told(**revision: str) -> str | None:
        return plugins.make("defenses", {"kind": kind, "hub": "somebody/model", **revision}).may_change

    assert told(revision=COMMIT) is None
    assert "somebody/model comes from the hub, where it may change" in told()
    assert "name a commit" in told(revision="main")


@pytest.mark.parametrize("revision", MOVING)
def test_the_plan_and_the_run_tell_it(robustkd, tmp_path, monkeypatch, revision):
    (tmp_path / "c.yaml").write_text(CAMPAIGN % revision)
    monkeypatch.chdir(tmp_path)
    assert MOVING[revision] in robustkd("plan", "c.yaml")[1]

    texts: list[str] = []

    class Said(Observer):
        def noted(self, text: str) -> None:
            texts.append(text)

    class NoTime(InlineEngine):
        out_of_time = property(lambda self: True)

    planned = planning.build(spec.load(str(tmp_path / "c.yaml")))
    run(planned, tmp_path / "out", NoTime(limits=Limits(max_hours=1)), device="cpu", observers=[Said()])
    assert any(MOVING[revision] in text and text.startswith("theirs: ") for text in texts)


def test_nothing_is_said_of_a_commit(robustkd, tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(CAMPAIGN % f", revision: {COMMIT}")
    monkeypatch.chdir(tmp_path)
    assert "may change" not in robustkd("plan", "c.yaml")[1]
