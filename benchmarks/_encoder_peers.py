"""Peers that make one perturbation for all images, and peers that see an encoder's features alone."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from _authors import authors, stand_in, torch_but, without_cuda
from _job import Job
from _peers import Attack, classifier
from torch import Tensor, nn

from robustkd.attacks.image.patch.placement import pasted
from robustkd.targets import ClassifierTarget
from robustkd.targets.encoder import EncoderTarget


class _Encoder(nn.Module):
    """What the last linear layer of a classifier is given."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features = EncoderTarget(ClassifierTarget(model.eval(), num_classes=10, input_shape=shape), unit=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def art_universal(job: Job, others: Tensor, labels: Tensor) -> Attack:
    """ART's universal perturbation, by DeepFool on one image after the other, as many times over the images as ours."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import art.attacks.evasion

        attack = art.attacks.evasion.UniversalPerturbation(
            classifier(model, x),
            attacker="deepfool",
            attacker_params={"verbose": False, "max_iter": 10},
            delta=0.0,
            max_iter=job.budget["epochs"],
            eps=job.eps,
            verbose=False,
        )
        attack.generate(others.cpu().numpy(), labels.cpu().numpy())
        return (x + torch.as_tensor(attack.noise).to(x)).clamp(0, 1)

    return run


def authors_feature_pgd(job: Job) -> Attack:
    """The inner maximisation of FARE: steps of a quarter of eps with momentum 0.9 on the squared distance, from a random point."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        peer, encoder = authors("train.pgd_train", "robustvlm"), _Encoder(model, tuple(x.shape[1:]))
        with torch.no_grad():
            clean = encoder(x)
        found: Tensor = peer.pgd(
            forward=lambda images, output_normalize: encoder(images),
            loss_fn=lambda features, _: (features - clean).square().sum(1).mean(),
            data_clean=x,
            targets=y,
            norm="linf",
            eps=job.eps,
            iterations=job.budget["steps"],
            stepsize=job.eps / 4,
            output_normalize=False,
            perturbation=torch.zeros_like(x).uniform_(-job.eps, job.eps),
            mode="max",
        )
        return found.clamp(0, 1)

    return run


def art_feature_target(job: Job, others: Tensor, labels: Tensor) -> Attack:
    """ART's feature adversaries, towards the features of an image of another class, drawn for each sample."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks.evasion import FeatureAdversariesPyTorch

        guides = torch.stack([others[_drawn(labels != label)] for label in y])
        estimator = classifier(nn.Sequential(_Encoder(model, tuple(x.shape[1:]))), x)
        attack = FeatureAdversariesPyTorch(
            estimator,
            delta=job.eps,
            layer=0,
            max_iter=job.budget["steps"],
            batch_size=len(x),
            step_size=2.5 * job.eps / job.budget["steps"],
            verbose=False,
        )
        return torch.as_tensor(attack.generate(x.cpu().numpy(), guides.cpu().numpy())).to(x)

    return run


def _drawn(chosen: Tensor) -> Tensor:
    """One of the places where ``chosen`` is true."""
    places = chosen.nonzero().flatten()
    return places[torch.randint(len(places), ())]


def authors_adv_encoder(job: Job, others: Tensor, labels: Tensor) -> Attack:
    """AdvEncoder's perturbation. Its generator has a fourth of their channels and one layer less, for images of half their side."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (x + _made(job, "gan_per_attack", "knn_per_fr", model, others)).clamp(0, 1)

    return run


def authors_adv_encoder_patch(place: Callable[[Job], tuple[int, int]]) -> Callable[[Job, Tensor, Tensor], Attack]:
    """AdvEncoder's patch at ``place``. What leaves the range of pixels, which their code lets it do, is cut back in the end."""

    def make(job: Job, others: Tensor, labels: Tensor) -> Attack:
        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            side, (top, left) = int(job.eps), place(job)
            mask = torch.zeros(x.shape[1:])
            mask[:, top : top + side, left : left + side] = 1
            noise = _made(job, "gan_pat_attack", "knn_patch_fr", model, others, mask).clamp(0, 1)
            content = noise[:, top : top + side, left : left + side].expand(len(x), -1, -1, -1)
            return pasted(x, content, torch.tensor([[top, left]]).expand(len(x), -1))

        return run

    return make


def _made(job: Job, script: str, evaluation: str, model: nn.Module, others: Tensor, *more: Tensor) -> Tensor:
    """(C, H, W) what a script of the authors of AdvEncoder hands over to its evaluation, after its last epoch."""
    authors("utils.nce", "advencoder")
    stand_in("utils.load_model", "utils.load_data", "utils.predict")
    peer, made = authors(script, "advencoder"), list[Tensor]()
    generator, size = peer.Generator, job.budget["batch_size"]

    def evaluate(args: Any, train: Any, test: Any, encoder: Any, noise: Tensor, *_: Tensor) -> tuple[float, ...]:
        made.append(noise.detach())
        return (1.0,) * 5

    of_files = types.SimpleNamespace(join=lambda *parts: "", exists=lambda folder: True)
    vars(peer).update(
        {
            "Generator": lambda noise, filters, *more: generator(noise, [count // 4 for count in filters[:-1]], *more),
            "normalzie": lambda args, images: images,
            "pd": types.SimpleNamespace(DataFrame=lambda **_: types.SimpleNamespace(to_csv=lambda *_, **__: None)),
            "os": types.SimpleNamespace(path=of_files),
            "torch": torch_but(save=lambda *_: None),
            "log_save_path": "",
            evaluation: evaluate,
        }
    )
    given = {"batch_size": size, "epochs": job.budget["epochs"], "eps": job.eps, "criterion": "nce", "alpha": 5, "radius": 8}
    args = types.SimpleNamespace(**given, dataset="cifar10", pre_dataset="cifar10", victim="", noise_percentage=0.03)
    encoder = _Encoder(model, tuple(others.shape[1:]))
    with without_cuda():
        peer.uap_dcgan_attack(args, _Minibatches(others, size), None, encoder, *more)
    return made[-1].reshape(others.shape[1:])


class _Minibatches:
    """Images in another order each time that it is gone through, without labels."""

    def __init__(self, images: Tensor, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Any:
        for rows in torch.randperm(len(self.images))[: len(self) * self.size].split(self.size):
            yield self.images[rows], None
