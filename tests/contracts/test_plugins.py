import pytest

from robustkd import plugins
from robustkd.contracts import Params, PluginError, TargetRef, target_references


@pytest.fixture
def stranger(tmp_path, monkeypatch, installed):
    """An installed third-party package with one good and two broken plug-ins."""
    (tmp_path / "stranger.py").write_text(
        "from robustkd.contracts import Attack\nclass Good(Attack):\n    def run(self, target, batch, threat, rng): ...\n"
    )
    (tmp_path / "stranger_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    attacks = {"good": "stranger:Good", "bad": "stranger_broken:Bad", "absent": "stranger:NotThere"}
    installed("stranger", {"attacks": attacks}, version="1.2")


def test_a_stranger_s_plugin_is_found_by_the_same_door(stranger):
    assert plugins.load("attacks", "good").__name__ == "Good"
    info = next(item for item in plugins.listing("attacks") if item.name == "good")
    assert (info.package, info.package_version) == ("stranger", "1.2")


@pytest.mark.parametrize(("name", "why"), [("bad", "a_module_that_is_not_there"), ("absent", "NotThere")])
def test_a_broken_plugin_is_named_and_takes_nothing_down(stranger, name, why):
    assert {"pgd", "good", name} <= set(plugins.names("attacks"))
    with pytest.raises(PluginError) as caught:
        plugins.load("attacks", name)
    assert f"attack '{name}' of package stranger" in str(caught.value)
    assert why in str(caught.value)
    assert plugins.load("attacks", "pgd").__name__ == "PGD"


@pytest.mark.parametrize(
    ("name", "said"),
    [("pdg", "did you mean 'pgd'?"), ("pgd:x", "write 'pgd'"), ("nothing-like-it", "one of: ")],
)
def test_an_unknown_name_is_answered_with_a_suggestion(name, said):
    with pytest.raises(PluginError, match="unknown attack") as caught:
        plugins.load("attacks", name)
    assert said in str(caught.value)


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_built_in_plugin_loads(group):
    for name in plugins.names(group):
        if plugins.family(group, name) is None:
            plugin = plugins.load(group, name)
            assert not isinstance(getattr(plugin, "name", None), str)  # a class may be registered under several names


def test_references_to_other_defenses_are_found_in_every_shape():
    class Inner(Params):
        teacher: TargetRef
        other: str = "not me"

    class Outer(Params):
        one: TargetRef
        maybe: TargetRef | None = None
        several: dict[str, TargetRef]
        many: tuple[TargetRef, ...] = ()
        inner: Inner
        name: str = "nor me"

    params = Outer(one="a", several={"x": "b", "y": "a"}, many=("c",), inner=Inner(teacher="d"))
    assert target_references(params) == ["a", "b", "c", "d"]
