"""Everything public says what it is: what Python code may import, the contracts, and every plug-in."""

from __future__ import annotations

import ast
import inspect

import pytest

import robustkd
from robustkd import contracts, plugin_kit, plugins

PUBLIC = [
    *((robustkd, name) for name in robustkd.__all__ if callable(getattr(robustkd, name))),
    *((contracts, name) for name in contracts.__all__),
    *((plugin_kit, name) for name in plugin_kit.__all__),
]
PLUGINS = [(group, name) for group in plugins.GROUPS for name in plugins.names(group) if plugins.family(group, name) is None]


def undocumented(owner: type) -> list[str]:
    """The public methods and properties that neither the class nor what it derives from says a word about."""
    fields = vars(owner).get("__annotations__", {})  # the class's docstring tells of them
    own = {name: value for name, value in vars(owner).items() if not name.startswith("_") and name not in fields}
    callables = {name: value for name, value in own.items() if inspect.isfunction(value) or isinstance(value, property)}
    return [name for name in callables if not inspect.getdoc(getattr(owner, name))]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_a_public_name_is_documented(module, name):
    found = getattr(module, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        text = found.__doc__ or ""
        assert text
        assert not text.startswith(f"{name}("), "a signature, as dataclasses write it, is no docstring"
        assert not inspect.isclass(found) or undocumented(found) == []
    else:  # a type's alias: the text stands below it
        texts = [inspect.getsource(part) for part in vars(contracts).values() if inspect.ismodule(part)]
        body = ast.parse(next(text for text in texts if f"\n{name} = " in text)).body
        place = next(at for at, node in enumerate(body) if isinstance(node, ast.Assign) and node.targets[0].id == name)
        assert isinstance(body[place + 1], ast.Expr)
        assert isinstance(body[place + 1].value, ast.Constant)


@pytest.mark.parametrize(("group", "name"), PLUGINS, ids=lambda value: value)
def test_a_plugin_is_documented(group, name):
    plugin = plugins.load(group, name)
    assert vars(plugin).get("__doc__"), "the class has no docstring of its own"
    assert undocumented(plugin) == []
    if group in ("attacks", "defenses", "checks"):
        assert plugin.source
    for key, field in getattr(plugin, "Params", contracts.Params).model_fields.items():
        assert field.description, key
