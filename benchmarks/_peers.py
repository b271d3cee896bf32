"""Peers that cannot simply be called: those asked for decisions alone, ART's, and code that authors published (``_authors``)."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from _authors import authors, without_cuda
from _job import Job
from torch import Tensor, nn

from robustkd.contracts.threat import Norm
from robustkd.scoring.distances import distance

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class _Enough(Exception):
    """The queries are used up."""


class _Recorder(nn.Module):
    """A network that keeps the nearest adversarial image among the first ``queries`` that it is asked about, and then stops whoever asks.

    An attack by decisions alone is so compared at equal queries, whatever it calls a step.
    """

    def __init__(self, model: nn.Module, clean: Tensor, label: Tensor, norm: Norm, queries: int) -> None:
        super().__init__()
        self.model, self.clean, self.label, self.norm, self.left = model, clean, label, norm, queries
        self.nearest, self.length = clean.clone(), torch.inf

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        asked = len(x)
        x = x[: self.left].to(self.clean)
        if not len(x):
            raise _Enough
        self.left -= len(x)
        logits = self.model(x)
        lengths = distance(x - self.clean, self.norm).where(logits.argmax(1) != self.label, torch.inf)
        best = int(lengths.argmin())
        if float(lengths[best]) < self.length:
            self.nearest, self.length = x[best : best + 1].clone(), float(lengths[best])
        if len(x) < asked:
            raise _Enough  # whoever asked about more images would wonder about fewer answers
        return logits


def by_decisions(norm: Norm, attack: Callable[[nn.Module, Tensor, Tensor, Norm], object]) -> Callable[[Job], Attack]:
    """``attack(model, x, y, norm)`` on one image after the other, until the queries of the budget are used up."""

    def make(job: Job) -> Attack:
        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            found = []
            for clean, label in zip(x.split(1), y.split(1), strict=True):
                recorder = _Recorder(model, clean, label, norm, job.budget["queries"])
                with contextlib.suppress(_Enough):
                    attack(recorder.eval(), clean, label, norm)
                found.append(recorder.nearest)
            return torch.cat(found)

        return run

    return make


def foolbox_hopskipjump(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """foolbox's, with its own settings."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    foolbox.attacks.HopSkipJumpAttack(constraint=norm)(wrapped, x, y, epsilons=None)


def art_hopskipjump(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """ART's, with its own settings."""
    import art.attacks.evasion

    order: float | int = float("inf") if norm == "linf" else 2
    attack = art.attacks.evasion.HopSkipJump(classifier(model, x), norm=order, verbose=False)
    attack.generate(x.cpu().numpy(), y.cpu().numpy())


def art_geoda(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """ART's, with its own settings; its tolerance of 0.1 is that of images up to 255."""
    import art.attacks.evasion
    import numpy as np

    vars(np).setdefault("mat", np.asmatrix)  # ART 1.20 asks for it, NumPy 2 has it no more
    order: float | int = float("inf") if norm == "linf" else 2
    attack = art.attacks.evasion.GeoDA(classifier(model, x), norm=order, bin_search_tol=0.01, verbose=False)
    attack.generate(x.cpu().numpy(), y.cpu().numpy())


def art_simba(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """ART's, one pixel of one channel a step."""
    import art.attacks.evasion

    probabilities = nn.Sequential(model, nn.Softmax(1)).eval()
    attack = art.attacks.evasion.SimBA(classifier(probabilities, x), attack="px", epsilon=0.2, verbose=False)
    attack.generate(x.cpu().numpy(), nn.functional.one_hot(y, 10).cpu().numpy())


def authors_rays(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """RayS, which draws nothing."""
    sys.modules.setdefault("pgbar", types.ModuleType("pgbar"))
    vars(sys.modules["pgbar"])["progress_bar"] = lambda *_: None
    asked = types.SimpleNamespace(predict_label=lambda images: model(images).argmax(1))
    with without_cuda():
        authors("RayS").RayS(asked, epsilon=0.0).attack_hard_label(x, y)


def art_masked_pgd(job: Job) -> Attack:
    """ART's PGD, which a mask keeps inside the square at the upper left corner."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import art.attacks.evasion

        mask = torch.zeros_like(x)
        mask[..., : int(job.eps), : int(job.eps)] = 1
        attack = art.attacks.evasion.ProjectedGradientDescentPyTorch(
            classifier(model, x),
            eps=1.0,
            eps_step=job.budget.get("step_size") or job.budget["peer_step_size"],
            max_iter=job.budget["steps"],
            num_random_init=1,
            batch_size=len(x),
            verbose=False,
        )
        return torch.as_tensor(attack.generate(x.cpu().numpy(), y.cpu().numpy(), mask=mask.cpu().numpy())).to(x)

    return run


def art_spatial(job: Job) -> Attack:
    """ART's grid of transforms, one of which it chooses for all images together."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import art.attacks.evasion

        attack = art.attacks.evasion.SpatialTransformation(
            classifier(model, x),
            max_translation=100 * TRANSLATION,
            num_translations=job.budget["translations"],
            max_rotation=ROTATION,
            num_rotations=job.budget["rotations"],
            verbose=False,
        )
        return torch.as_tensor(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return run


def foolbox_spatial(job: Job) -> Attack:
    """foolbox's grid of transforms."""
    return _foolbox_spatial(num_translations=job.budget["translations"], num_rotations=job.budget["rotations"])


def foolbox_random_spatial(job: Job) -> Attack:
    """The worst of foolbox's random transforms, as many as ours looks at."""
    return _foolbox_spatial(grid_search=False, random_steps=job.budget["restarts"] * (job.budget["steps"] + 1))


def _foolbox_spatial(**search: Any) -> Attack:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        attack = foolbox.attacks.SpatialAttack(
            max_translation=round(TRANSLATION * x.shape[-1]), max_rotation=ROTATION, **search
        )
        raw, _, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=None)
        return torch.as_tensor(raw)

    return run


ROTATION, TRANSLATION = 15.0, 1 / 14
"""Degrees, and the share of an image's side: two of MNIST's pixels."""


def authors_sparse_rs(norm: str) -> Callable[[Job], Attack]:
    """Sparse-RS with the first share of the paper; of a patch, ``eps`` is its side."""

    def make(job: Job) -> Attack:
        peer = authors("rs_attacks")
        eps, first = (int(job.eps) ** 2, 0.4) if norm == "patches" else (int(job.eps), 0.3)

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            budget = {"eps": eps, "n_queries": job.budget["queries"], "p_init": first}
            attack = peer.RSAttack(model, norm=norm, seed=job.seed, verbose=False, **budget)
            found: Tensor = attack.perturb(x.clone(), y.clone())[1]
            return found

        return run

    return make


def authors_spgd(projected: bool) -> Callable[[Job], Attack]:
    """SPGD with the gradient of the projected or the unprojected mask."""

    def make(job: Job) -> Attack:
        for name in ("skimage", "skimage.util"):  # imported for noise that is not asked for
            module = sys.modules.setdefault(name, types.ModuleType(name))
            vars(module).setdefault("random_noise", None)
        peer = authors("spgd")

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = peer.SparsePGD(model, k=int(job.eps), t=job.budget["steps"], unprojected_gradient=not projected)
            found: Tensor = attack(x.clone(), y.clone(), seed=job.seed)[0]
            return found

        return run

    return make


def authors_pgd0(job: Job) -> Attack:
    """PGD_0, whose step size is the sum over all values."""
    peer = authors("pgd_attacks_pt")

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import numpy as np

        np.random.seed(job.seed)
        given = x.permute(0, 2, 3, 1).cpu().numpy()
        attack = types.SimpleNamespace(
            model=model,
            rs=True,
            num_steps=job.budget["steps"] + 1,
            step_size=job.budget["step_size"] * given[0].size,
            k=int(job.eps),
        )
        with without_cuda():
            found, _ = peer.perturb_L0_box(attack, given, y.cpu().numpy(), -given, 1 - given)
        return torch.as_tensor(found).permute(0, 3, 1, 2).to(x)

    return run


def classifier(model: nn.Module, x: Tensor) -> Any:
    """The network as ART wants it."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
