"""Peers under threats that are no norm: patches, flows, colours and perceptual distances."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from _authors import authors, stand_in
from _job import Job
from _peers import Attack, classifier
from torch import Tensor, nn
from torch.nn import functional as F

from robustkd.attacks.image.patch.placement import pasted
from robustkd.targets.activations import recorded, submodules

LAYERS = ("layer1", "layer2", "layer3")
"""The stages of ``cifar10_resnet20``, whose outputs a perceptual distance compares."""


def authors_patch_training(job: Job) -> Attack:
    """The patch of Rao et al., which moves in the best of four directions after each step (``full``): five passes and one back."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        stand_in(
            "imgaug", "sklearn.metrics", "tensorboard.backend.event_processing.event_accumulator", "h5py", "umap", "deepdish"
        )
        patches = authors("attacks.adversarial_patch", "patch_training")
        objectives, masks = authors("attacks.objectives"), authors("common.mask")
        side = int(job.eps)
        place = masks.MaskGenerator(tuple(x.shape[2:]), (side, side), exclude_list=_nothing())
        objective = objectives.UntargetedF0Objective()
        objective.set(true_classes=y)
        attack = patches.AdversarialPatch(
            place, job.budget["step_size"], job.budget["peer_steps"], True, "full", stride=1, signed_grad=True
        )
        changes, _ = attack.run(model.eval(), x, objective)
        return (x + torch.as_tensor(changes)).clamp(0, 1)

    return run


def art_universal_patch(job: Job, others: Tensor, labels: Tensor) -> Attack:
    """ART's patch for all images, by Adam with its step size, upright and of one size; it is put at as many random places as ours."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks.evasion.adversarial_patch.adversarial_patch_pytorch import AdversarialPatchPyTorch

        side = int(job.eps)
        scale = side / x.shape[-1]
        attack = AdversarialPatchPyTorch(
            classifier(model, x),
            rotation_max=0.0,
            scale_min=scale,
            scale_max=scale,
            learning_rate=5 / 255,
            max_iter=job.budget["epochs"],
            batch_size=job.budget["batch_size"],
            patch_shape=(x.shape[1], side, side),
            patch_type="square",
            targeted=False,
            verbose=False,
        )
        patch, _ = attack.generate(others.cpu().numpy(), labels.cpu().numpy())
        content = torch.as_tensor(patch).to(x).expand(len(x), -1, -1, -1)
        found, standing = x.clone(), torch.ones_like(y, dtype=torch.bool)
        for _ in range(job.budget["places"]):
            places = torch.randint(x.shape[-1] - side + 1, (len(x), 2))
            patched = pasted(x, content, places)
            with torch.no_grad():
                broken = standing & (model(patched).argmax(1) != y)
            found[broken], standing = patched[broken], standing & ~broken
        return found

    return run


def _nothing() -> Any:
    import numpy as np

    return np.zeros((0, 4))


def authors_of_recoloradv(threat: str) -> Any:
    """ReColorAdv, or the bounded stAdv beside it: Adam on the margin less a penalty on roughness.

    Their bound of a flow is a share of half an image's side. Beyond its border an image goes on as in ours; theirs is black there, which is
    another threat. The grid of colours gets as many points as ours.
    """

    def make(job: Job) -> Attack:
        peer = authors("recoloradv.utils")
        moving = authors("recoloradv.mister_ed.spatial_transformers")
        moving.F = SimpleNamespace(**{**vars(F), "grid_sample": functools.partial(F.grid_sample, padding_mode="border")})

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = peer.get_attack_from_name(threat, model.eval(), nn.Identity())
            attack.set_gpu(False)
            attack.attack_kwargs["num_iterations"] = job.budget["steps"]
            (only,) = attack.adv_attack_obj.threat_model.param_kwargs
            only.param_kwargs["lp_bound"] = job.eps / (x.shape[-1] / 2) if threat == "stadv" else job.eps
            if threat == "recoloradv":
                only.param_kwargs["xform_params"] = dict.fromkeys(("resolution_x", "resolution_y", "resolution_z"), 16)
            found: Tensor = attack.attack(x, y)[0]
            return found.detach()

        return run

    return make


class _WithFeatures(nn.Module):
    """A network that gives the activations of its stages, too, as the authors' perceptual attacks want them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.layers = model, submodules(model, [f"network.{name}" for name in LAYERS])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits

    def features_logits(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with recorded(self.model, self.layers) as made:
            logits = self.model(x)
        return tuple(made.taken(len(x))), logits

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.features_logits(x)[0]


def authors_perceptual(name: str, **renamed: str) -> Any:
    """LPA or PPGD by the network's own features; ``renamed``: their parameter -> our budget's entry."""

    def make(job: Job) -> Attack:
        stand_in("robustness.datasets", "robustness.data_augmentation", "robustness.model_utils", "robustness.attacker")
        stand_in("robustness.cifar_models.resnet", "advex_uar.common.pyt_common")
        peer = authors("perceptual_advex.perceptual_attacks")

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            given = {theirs: job.budget[ours] for theirs, ours in renamed.items()}
            attack = getattr(peer, name)(_WithFeatures(model).eval(), bound=job.eps, lpips_model="self", **given)
            with torch.enable_grad():
                found: Tensor = attack(x.clone(memory_format=torch.contiguous_format), y)
            return found.detach()

        return run

    return make
