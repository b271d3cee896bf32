"""The authors' searches by scores: bandits and NES of one file, and SurFree, which asks for decisions."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from _authors import authors, torch_but, without_cuda
from _job import Job
from _peers import Attack
from torch import Tensor, nn

from robustkd.contracts.threat import Norm
from robustkd.scoring.distances import distance


class _Watched(nn.Module):
    """A network that keeps the first adversarial image of each sample that is within eps: an author's loop may leave it again."""

    def __init__(self, model: nn.Module, clean: Tensor, labels: Tensor, norm: Norm, eps: float) -> None:
        super().__init__()
        self.model, self.clean, self.labels, self.norm, self.eps = model, clean, labels, norm, eps
        self.found, self.broken = clean.clone(), torch.zeros_like(labels, dtype=torch.bool)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        inside = (distance(x - self.clean, self.norm) <= self.eps * (1 + 1e-6)) & (x == x.clamp(0, 1)).flatten(1).all(1)
        new = inside & (logits.argmax(1) != self.labels) & ~self.broken
        self.found[new], self.broken = x[new], self.broken | new
        return logits


def authors_bandits(norm: Norm) -> Callable[[Job], Attack]:
    """Bandits in time and with tiles of four pixels, with the authors' settings; each step is two queries and a look at the image."""
    sizes = {"linf": (0.1, 1.0, 100.0, 0.2), "l2": (0.01, 0.01, 0.1, 0.1)}[norm]  # the last is the step's share of eps

    def settings(job: Job, side: int) -> dict[str, object]:
        fd_eta, exploration, online_lr, share = sizes
        steps = (job.budget["queries"] - 1) // 3
        return {
            "nes": False,
            "fd_eta": fd_eta,
            "exploration": exploration,
            "online_lr": online_lr,
            "image_lr": share * job.eps,
            "max_queries": 2 * steps + 1,
            "gradient_iters": 1,
            "tiling": True,
            "tile_size": side // 4,
        }

    return _of_bandits(norm, settings)


def authors_nes(norm: Norm) -> Callable[[Job], Attack]:
    """NES of the same file, with its step size."""

    def settings(job: Job, side: int) -> dict[str, object]:
        steps, pairs = job.budget["steps"], job.budget["pairs"]
        return {
            "nes": True,
            "fd_eta": 0.1,
            "image_lr": {"linf": 0.2, "l2": 0.06}[norm] * job.eps,
            "max_queries": 2 * pairs * steps + 1,
            "gradient_iters": pairs,
            "tiling": False,
        }

    return _of_bandits(norm, settings)


def _of_bandits(norm: Norm, settings: Callable[[Job, int], dict[str, object]]) -> Callable[[Job], Attack]:
    def make(job: Job) -> Attack:
        with without_cuda():
            peer = authors("bandits")

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            channels, side = x.shape[1], x.shape[-1]
            vars(peer)["F"] = types.SimpleNamespace(normalize=lambda image, *_: image)
            vars(peer)["ch"] = torch_but(
                zeros=lambda *sides: torch.zeros(*sides[:1], *((channels, *sides[2:]) if sides[1:] else ()))
            )
            watched = _Watched(model, x, y, norm, job.eps).eval()
            given = {"mode": norm, "epsilon": job.eps, "batch_size": len(x), "log_progress": False}
            args = types.SimpleNamespace(**given, **settings(job, side))
            with without_cuda(), torch.no_grad():
                peer.make_adversarial_examples(x.clone(), y, args, watched, side)
            return watched.found

        return run

    return make


def authors_surfree(model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """SurFree with the settings of the example that its authors give."""
    images = _WithoutNull(model).eval()
    init = {"BS_gamma": 0.01, "BS_max_iteration": 10, "rho": 0.98, "T": 1, "theta_max": 30, "n_ortho": 10}
    attack = authors("surfree", "surfree").SurFree(steps=10**6, max_queries=10**6, quantification=False, **init)
    attack(images, x, y.view(1), basis_params={"basis_type": "dct", "dct_type": "full", "function": "constant"})


class _WithoutNull(nn.Module):
    """A network that is not asked about images of zeros: the authors' loop passes one on for each query that it does not need."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.answer = model, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.answer) or bool((x != 0).any()):
            self.answer = self.model(x)
        return self.answer
