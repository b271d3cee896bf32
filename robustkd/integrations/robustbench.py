"""RobustBench's model zoo, made importable.

robustbench 1.1.1 cannot be imported from a clean installation: it wants ``autoattack``, which is on no registry under
that name, and ``pkg_resources``, which setuptools 81 dropped. Where no real ones are installed, stand-ins for both are
put into ``sys.modules`` during the import and removed again, so that nobody else mistakes them for the real ones. The AutoAttack
among them is robustkd's own: ``robustbench.benchmark`` runs on this engine. (Requiring setuptools < 81 instead would hold back the whole
environment's build tool, and ``import robustbench`` would still fail for want of ``autoattack``.)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robustkd.contracts import PluginError, TargetError, UsageError, suggestion
from robustkd.integrations.autoattack import AutoAttack, EvaluationState

if TYPE_CHECKING:
    from torch import nn


def import_robustbench() -> ModuleType:
    """Import robustbench, with stand-ins for the packages that it misses.

    Raises:
        PluginError: it is not installed, or something else that it needs is missing.
    """
    try:
        with _temporary_modules(_stand_ins()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it still calls timm's modules by their old names
            return importlib.import_module("robustbench")
    except Exception as error:
        raise PluginError(
            f"robustbench cannot be imported: {type(error).__name__}: {error}", fix="robustkd doctor --fix"
        ) from error


def build(model_id: str, dataset: str = "cifar10", threat_model: str = "Linf") -> nn.Module:
    """The architecture of a zoo entry, freshly initialised; no weights are downloaded.

    Raises:
        UsageError: the zoo has no such entry.
    """
    import_robustbench()
    import timm

    utils = importlib.import_module("robustbench.utils")
    entries = _entries(model_id, dataset, threat_model)
    # The rule by which robustbench.utils.load_model prefers an architecture that timm knows under the entry's name.
    registered = f"{model_id.lower().replace('-', '_')}_{dataset}_{threat_model.lower()}"
    if timm.is_model(registered):
        classes = utils.DATASET_CLASSES[utils.BenchmarkDataset(dataset)]
        network: nn.Module = timm.create_model(registered, num_classes=classes, pretrained=False)
    else:
        network = entries[model_id]["model"]()
    return network.eval()


def load(model_id: str, dataset: str = "cifar10", threat_model: str = "Linf", model_dir: Path | str = "models") -> nn.Module:
    """The zoo's model with its weights: from ``<model_dir>/<dataset>/<threat_model>/<model_id>.pt``, else downloaded there.

    Raises:
        UsageError: the zoo has no such entry.
        TargetError: the checkpoint cannot be downloaded or does not fit.
    """
    robustbench: Any = import_robustbench()
    _entries(model_id, dataset, threat_model)
    place = Path(model_dir) / dataset / threat_model / f"{model_id}.pt"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            network: nn.Module = robustbench.load_model(model_id, model_dir, dataset, threat_model)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise TargetError(
            f"RobustBench cannot load {model_id} ({dataset}, {threat_model}): {type(error).__name__}: {reason}",
            fix=f"without the internet, put its checkpoint (a state_dict) at {place}",
        ) from error
    return network.eval()


def checkpoints(model_id: str, dataset: str, threat_model: str, model_dir: Path | str) -> list[Path]:
    """Where an entry's weights lie: one file, or those of an ensemble's members. Imports nothing."""
    folder = Path(model_dir) / dataset / threat_model
    return sorted(folder.glob(f"{model_id}_m*.pt")) or [folder / f"{model_id}.pt"]


def _entries(model_id: str, dataset: str, threat_model: str) -> dict[str, Any]:
    zoo = importlib.import_module("robustbench.model_zoo")
    by_dataset = {
        key.value: {threat.value: models for threat, models in threats.items()} for key, threats in zoo.model_dicts.items()
    }
    for kind, key, choices in (("dataset", dataset, by_dataset), ("threat model", threat_model, by_dataset.get(dataset, {}))):
        if key not in choices:
            raise UsageError(f"RobustBench has no {kind} '{key}'", fix=f"one of: {', '.join(choices)}")
    entries: dict[str, Any] = by_dataset[dataset][threat_model]
    if model_id not in entries:
        hint = suggestion(model_id, entries)
        raise UsageError(
            f"RobustBench has no model '{model_id}' for {dataset}, {threat_model}", fix=hint or f"such as {next(iter(entries))}"
        )
    return entries


def _stand_ins() -> dict[str, ModuleType]:
    attack, state, pkg = ModuleType("autoattack"), ModuleType("autoattack.state"), ModuleType("pkg_resources")
    vars(attack).update(AutoAttack=AutoAttack, state=state, __path__=[])
    vars(state).update(EvaluationState=EvaluationState)
    vars(pkg).update(resource_filename=_resource_filename)
    missing: dict[str, ModuleType] = {}
    if not _installed("autoattack"):
        missing |= {"autoattack": attack, "autoattack.state": state}
    if not _installed("pkg_resources"):
        missing |= {"pkg_resources": pkg}
    return missing


def _resource_filename(package: str, name: str) -> str:
    # RobustBench passes the name of a module; its resources lie beside it.
    return str(resources.files(package.rpartition(".")[0] or package) / name)


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


@contextmanager
def _temporary_modules(modules: dict[str, ModuleType]) -> Iterator[None]:
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
