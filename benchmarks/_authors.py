"""Code that authors published beside a paper: files of a folder, not packages.

``ROBUSTKD_AUTHORS`` names the folder. Its files, and where they are from:

- ``rs_attacks.py``, ``utils.py``: github.com/fra31/sparse-rs
- ``spgd.py``: ``autoattack/spgd.py`` of github.com/CityU-MLO/sPGD
- ``pgd_attacks_pt.py``, ``utils_pt.py``: github.com/fra31/sparse-imperceivable-attacks
- ``RayS.py``: github.com/uclaml/RayS
- ``bandits.py``: ``src/main.py`` of github.com/MadryLab/blackbox-bandits, with its IMAGENET_PATH filled in, as it asks (no image is read)
- ``surfree/``: ``surfree.py`` and ``utils/`` of github.com/t-maho/SurFree
- ``recoloradv/``: github.com/cassidylaidlaw/ReColorAdv, with the authors' stAdv
- ``perceptual_advex/``: github.com/cassidylaidlaw/perceptual-advex
- ``transferattack/``: github.com/Trustworthy-AI-Group/TransferAttack
- ``mora/mora_attack.py``: github.com/lafeat/mora
- ``transferattack/model_related/sgm.py``: of the same repository
- ``advencoder/``: ``gan_per_attack.py``, ``gan_pat_attack.py``, ``model/`` and ``utils/`` of github.com/CGCL-codes/AdvEncoder
- ``robustvlm/``: ``train/pgd_train.py`` and ``vlm_eval/attacks/utils.py`` of github.com/chs20/RobustVLM
- ``patch_training/``: ``attacks/`` and ``common/`` of github.com/sukrutrao/Adversarial-Patch-Training
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch


def authors(module: str, folder: str = "") -> Any:
    """The module of that name in the authors' folder, or in a folder inside it."""
    root = os.environ.get("ROBUSTKD_AUTHORS")
    if root and (path := str(Path(root) / folder)) not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(module)


class without_cuda:
    """Inside the block, tensors and modules that authors' code moves to CUDA stay where they are."""

    def __enter__(self) -> None:
        self._moved = torch.Tensor.cuda, torch.nn.Module.cuda, torch.set_default_tensor_type
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda it, *_, **__: it  # type: ignore[method-assign,assignment]
        torch.set_default_tensor_type = lambda *_: None

    def __exit__(self, *_: object) -> None:
        torch.Tensor.cuda, torch.nn.Module.cuda, torch.set_default_tensor_type = self._moved  # type: ignore[method-assign]


def torch_but(**functions: Any) -> Any:
    """The module ``torch`` for code that asks it for tensors of a fixed shape, with other functions in the place of some."""
    return types.SimpleNamespace(**{**vars(torch), **functions})


class _Anything(type):
    """The class of what stands in for classes and tables of a package that is not needed."""

    def __setitem__(cls, key: Any, value: Any) -> None:
        pass


def stand_in(*packages: str) -> None:
    """Let packages be imported, whatever is imported from them, that authors' code names and that the attack does without."""
    for package in packages:
        parts = package.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules:
                module = sys.modules[name] = types.ModuleType(name)
                vars(module).update(__path__=[], __getattr__=_anything)


def _anything(attribute: str) -> type:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return _Anything(attribute, (), {})
