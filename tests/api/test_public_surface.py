"""What Python code may import: what it shows, how it is called alike, and what its results say of themselves."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import robustkd
from robustkd import contracts
from robustkd.contracts import UsageError

ROOT = Path(__file__).parents[2]
NAMES = {"attack", "evaluate", "audit", "run", "load", "samples", "report", "compare", "contracts", "plugins", "__version__"}


@pytest.fixture(scope="module")
def case():
    """A linear network that brightens class by class, and images that it classifies rightly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(12, 1, 4, 4)
    return net, x, net(x).argmax(1)


def test_dir_shows_what_there_is():
    assert set(dir(robustkd)) >= NAMES
    assert dir(robustkd) == sorted(robustkd.__all__)
    assert all(getattr(robustkd, name) is not None for name in robustkd.__all__)
    assert re.fullmatch(r"\d+\.\d+.*", robustkd.__version__)


def test_importing_it_is_light():
    code = (
        "import sys, robustkd; dir(robustkd)\n"
        "assert not {'torch', 'numpy', 'pydantic', 'mlflow', 'click'} & set(sys.modules)\n"
        "import robustkd.reporting, robustkd.application.campaign\n"
        "assert callable(robustkd.report) and callable(robustkd.run)\n"  # no submodule takes the place of a function
        "assert not {'mlflow', 'pandas', 'click', 'rich'} & set(sys.modules)\n"
        "from robustkd.contracts import Attack, Norm\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_contracts_hand_out_what_a_plugin_needs():
    for name in ("SampleRng", "Norm", "LossFamily", "Verdict", "Precision", "Goal", "Level", "CONTRACT_VERSION"):
        assert name in contracts.__all__
        assert getattr(contracts, name)


def test_the_command_line_is_not_needed_from_python():
    """No module that ``robustkd.run`` is made of imports click, rich or the command line, wherever in it."""
    folders = [
        ROOT / "robustkd" / "application",
        ROOT / "campaigns",
        ROOT / "robustkd" / "evaluation",
        ROOT / "robustkd" / "scoring",
    ]
    files = [ROOT / "robustkd" / "api.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in named if re.match(r"(click|rich|robustkd\.cli)(\.|$)", name)], file


def test_the_functions_are_called_alike():
    attack, evaluate, audit = (
        inspect.signature(call).parameters for call in (robustkd.attack, robustkd.evaluate, robustkd.audit)
    )
    assert next(iter(attack)) == "attack"
    shared = {"model", "x", "y", "norm", "eps", "goals", "seed", "batch_size", "precision", "models", "fit_data"}
    assert shared <= attack.keys() & evaluate.keys() & audit.keys()
    assert {"attacks", "level", "samples"} <= evaluate.keys() & audit.keys()
    for name in shared:
        assert attack[name].default == evaluate[name].default == audit[name].default, name


@pytest.mark.parametrize(
    ("name", "norm", "params"),
    [
        ("fmn", "linf", {"norm": "l2", "steps": 3}),
        ("fab", "linf", {"norm": "l2", "steps": 3}),
        ("fab-t", "l2", {"norm": "linf", "steps": 3}),
        ("deepfool", "linf", {"norm": "l2"}),
    ],
)
def test_a_parameter_called_as_one_of_ours_has_a_way_in(case, name, norm, params):
    """The attack minimises its own norm, and is judged in the other."""
    found = robustkd.attack(name, *case, norm=norm, eps=1.0, params=params)
    alike = robustkd.attack({"kind": name, **params}, *case, norm=norm, eps=1.0)
    plain = robustkd.attack(name, *case, norm=params["norm"], eps=1.0, params=params)
    assert torch.equal(found.adversarial, alike.adversarial)
    assert torch.equal(found.adversarial, plain.adversarial)  # norm= is what it is judged in
    assert (found.outcome.distance != plain.outcome.distance).any()


def test_the_batch_size_of_an_attack_is_not_the_platform_s(case):
    net, x, y = case
    found = robustkd.attack(
        "universal", net, x, y, eps=0.3, fit_data=(x, y), batch_size=5, params={"batch_size": 4, "epochs": 1}
    )
    assert len(found.outcome) == len(x)


def test_a_parameter_that_is_named_attack(case):
    found = robustkd.attack("eot", *case, eps=0.1, attack={"kind": "pgd", "steps": 2}, samples=2)
    assert len(found.outcome) == 12


@pytest.mark.parametrize("params", [{"steps": 3}, {"kind": "fgsm"}])
def test_a_parameter_that_is_given_twice(case, params):
    with pytest.raises(UsageError, match="given already"):
        robustkd.attack("pgd", *case, params=params, steps=2)


def test_the_former_name_of_an_argument_still_works(only_checks, case):
    only_checks("zero-gradient")
    with pytest.warns(DeprecationWarning, match="audit.attacks=..") as caught:
        old = robustkd.audit(*case, attack="fgsm", eps=0.1, samples=2)
    assert caught[0].filename == __file__
    assert list(old.attacks) == ["fgsm"]


def test_an_evaluation_without_checks_has_no_verdict(case):
    net, x, y = case
    each = torch.linspace(0.01, 0.5, len(x))
    report = robustkd.evaluate(net, x, y, attacks="pgd", eps=each, level="none")
    alone = robustkd.attack("pgd", net, x, y, eps=each)
    assert (report.verdict, report.findings) == (None, ())
    assert report.robust_accuracy == alone.robust_accuracy
    assert "not checked" in str(report)
    with pytest.raises(UsageError, match="one budget"):
        robustkd.evaluate(net, x, y, attacks="pgd", eps=each)


def test_an_evaluation_can_be_targeted(case):
    net, x, y = case
    goals = (y + 1) % 3
    report = robustkd.evaluate(net, x, y, attacks="pgd", eps=0.3, goals=goals, level="none")
    after = report.attacks["pgd"].outcome.after
    assert (after[report.attacks["pgd"].success] == goals.numpy()[report.attacks["pgd"].success]).all()


@pytest.mark.usefixtures("no_escalation")
def test_reports_tell_themselves(case):
    report = robustkd.evaluate(*case, attacks=["fgsm", {"kind": "pgd", "steps": 3}], eps=0.1, samples=2)
    found = report.attacks["fgsm"]
    for one in (report, found):
        assert len(repr(one)) < 400
        assert "tensor" not in repr(one)
        assert json.loads(one.to_json()) == json.loads(json.dumps(one.to_dict()))
        assert one._repr_html_().startswith("<table>")
    assert f"<td>{report.verdict}</td>" in report._repr_html_()
    table = report.to_dataframe()
    assert list(table.attack) == ["worst case", "fgsm", "pgd(steps=3)"]
    assert table.robust_accuracy[0] == report.robust_accuracy
    assert table.verdict[0] == report.verdict
    samples = found.to_dataframe()
    assert list(samples.success) == list(found.success)
    assert {"label", "before", "after", "distance", "forwards"} <= set(samples.columns)


def test_what_a_notebook_shows_is_escaped(case):
    class Evil(contracts.Attack):
        """An attack with a name that is markup."""

        name = "<script>"

        def run(self, target, batch, threat, rng):
            nothing = torch.zeros(len(batch), dtype=torch.int64)
            return contracts.AttackResult(batch.inputs, nothing.bool(), nothing, nothing)

    shown = robustkd.evaluate(*case, attacks=Evil(), level="none")._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown


def test_without_pandas_one_error_says_so(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="needs pandas"):
        robustkd.attack("fgsm", *case).to_dataframe()
