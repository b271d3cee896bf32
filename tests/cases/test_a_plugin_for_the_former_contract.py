"""A plug-in of another package that was written before modules moved: one clear error names the change."""

from __future__ import annotations

import pytest

from robustkd import plugins

FORMER = """
from robustkd.attacks.image.ascent import fixed_budget
from robustkd.contracts import Attack
class Old(Attack):
    pass
"""

RENAMED = """
from robustkd.attacks.image.engine.ascent import Climbers
"""

NAMED = """
from robustkd.attacks.image import ball
"""

STILL = '''
from robustkd.contracts import Attack, AttackResult
class Still(Attack):
    """An attack that finds nothing."""
    source = "this test"
    def run(self, target, batch, threat, rng):
        nothing = batch.labels.new_zeros(len(batch))
        return AttackResult(batch.inputs, nothing.bool(), nothing, nothing)
'''


@pytest.fixture(autouse=True)
def former(tmp_path, monkeypatch):
    """A package is installed that is written for contract 1."""
    for name, text in (("former_old", FORMER), ("former_named", NAMED), ("former_renamed", RENAMED), ("former_still", STILL)):
        (tmp_path / f"{name}.py").write_text(text)
    info = tmp_path / "former-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: former\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[robustkd.attacks]\nold = former_old:Old\nnamed = former_named:Named\nrenamed = former_renamed:Renamed\n"
        "still = former_still:Still\n"
        "[robustkd.contract]\n1 = former_old\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.refresh()

    yield
    plugins.refresh()


@pytest.mark.parametrize(("name", "module"), [("old", "ascent"), ("named", "ball")])
def test_the_error_names_the_module_s_new_place(say, name, module):
    code, said = say("test-plugin", name, "--group", "attacks")
    assert code == 2
    assert said.count("error:") == 1
    assert f"attack '{name}' of package former is written for a former contract" in said
    assert f"robustkd.attacks.image.{module}, which is robustkd.attacks.image.engine.{module} now" in said


def test_the_error_names_what_a_class_is_called_now(say):
    code, said = say("test-plugin", "renamed", "--group", "attacks")
    assert code == 2
    assert (
        "robustkd.attacks.image.engine.ascent.Climbers, which is robustkd.attacks.image.engine.ascent.AttackState now" in said
    )


def test_a_plugin_that_can_be_imported_is_told_what_changed(say):
    code, said = say("test-plugin", "still", "--group", "attacks", "--quiet")
    assert code == 1
    assert "former is written for contract 1, robustkd has contract 2: modules have moved and names have changed" in said


def test_code_of_one_s_own_is_told_too(say, tmp_path):
    (tmp_path / "net.py").write_text("from robustkd.attacks.image.losses import cross_entropy\ndef build(): ...\n")
    code, said = say("attack", "pgd", "--model", f"{tmp_path / 'net.py'}:build", "--n", "4")
    assert code == 2
    assert "robustkd.attacks.image.losses, which is robustkd.attacks.image.engine.losses now" in said
