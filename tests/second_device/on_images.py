"""Run every plug-in for images on a device: ``python -m second_device.on_images DEVICE FILE [GROUP/NAME ..]``.

FILE gets, as JSON, what came of each: of an attack which images it broke and how far it moved them, of a defense, an architecture and
a transform what the network says of the test images; or the traceback that it ended with.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.ball import distance
from robustkd.contracts import RobustkdError, ThreatModel, target_references
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.suite import subject
from robustkd.targets import ClassifierTarget, load_target, save_target

torch.set_num_threads(1)
SAMPLES = 4
HERE = str(Path(__file__).resolve())
FEW = {"steps": 10, "queries": 100, "epochs": 2, "samples": 50}
"""Of every attack that has such a parameter."""
SETTINGS: dict[str, dict[str, Any]] = {
    "attacks/cw-l2": {"steps": 50},
    "attacks/cw-linf": {"steps": 30},
    "attacks/autoattack": {"steps": 5, "queries": 50},
    "attacks/code": {"code": f"{HERE}:one_step"},
    "defenses/external": {"code": f"{HERE}:network"},
    "defenses/m2mkd": {"lr": 1e-4},  # Adam amplifies rounding: four trainings of attention in a row differ by 2e-4 else
}
TEACHERS = {
    **dict.fromkeys(("acm", "dmae", "further-pretraining", "hybrid-distill", "m2mkd"), "tiny-vit"),
    "sub-network": "multi-exit-cnn",
}
"""The architecture of the networks that a defense is given, where it is not any."""
OF_PEERS = ("torchattacks:PGD", "foolbox:LinfPGD", "foolbox:L2CarliniWagnerAttack", "adv-lib:ddn")
GROUPS: tuple[plugins.Group, ...] = ("attacks", "defenses", "transforms", "models")
REASONS = {
    "attacks/art": "ART's networks are on the CPU or on CUDA",
    "defenses/chat-endpoint": "its model is a server's",
    "defenses/external-classifier": "its network is loaded as external's",
    "attacks/test-cases": "it reads prompts from files, and computes nothing",
    "attacks/diff-protect": "in redrawn.yaml, because it takes a diffusion model",
    "defenses/sdedit": "in redrawn.yaml, because it takes a diffusion model",
    "defenses/caption-competition": "it takes a caption model; what it trains is one as caption-pretrain's",
    "defenses/caption-distil": "it takes a caption model; what it trains is one as caption-pretrain's",
    "defenses/clip-folder": "its weights are in a folder; what it loads is a two-tower target as clip-pretrain's",
    "defenses/train-on-condensed": "in condensed.yaml, because it takes a condensed data set",
    "defenses/torchdistill": "its library need not be installed; what it trains is a network as kd's",
    "defenses/robustbench": "its weights are on a remote drive; what it loads is a network as external's",
}
"""Why a plug-in has no row here."""


def one_step(model: Any, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """An attack of the user's own."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), x)
    return (x + eps * gradient.sign()).clamp(0, 1).detach()


def network() -> torch.nn.Module:
    """A network of the user's own."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def names() -> list[str]:
    """``GROUP/NAME`` of what is registered for images and has a row."""
    found = [f"attacks/{name}" for name in OF_PEERS]
    for group in GROUPS:
        single = [name for name in plugins.names(group) if plugins.family(group, name) is None]
        found += [f"{group}/{name}" for name in single if plugins.modalities(plugins.load(group, name))[0] == "images"]
    return [name for name in found if name not in REASONS]


def attacked(name: str, device: str) -> tuple[list[bool], list[float]]:
    """Which images the attack breaks, and how far it moves each."""
    attack = subject("attacks", name, SETTINGS.get(f"attacks/{name}")).make(FEW)
    traits, data = attack.traits, fixtures.digits()
    assert data.train is not None
    others = {other: fixtures.classifier(place + 1).to(device) for place, other in enumerate(target_references(attack.params))}
    norm = traits.norms[0]
    threat = ThreatModel(norm, fixtures.EPS[norm], goal=traits.goals[0])
    in_a_patch = "chosen" in traits.regions and attack.refusal(threat) is not None
    labels = torch.from_numpy(data.test.labels)[:SAMPLES]
    refused: RobustkdError | None = None
    for target in (fixtures.classifier(), fixtures.ensemble(), fixtures.pipeline(), fixtures.residual()):
        target.to(device)
        try:
            found = robustkd.attack(
                attack,
                target,
                data.test.unit()[:SAMPLES],
                labels,
                **(
                    {"budget": changes}
                    if (changes := fixtures.CHANGES.get(traits.space))
                    else {"norm": norm, "eps": threat.eps}
                ),
                where={"patch": 3} if in_a_patch else None,
                goals=(labels + 1) % data.num_classes if threat.goal == "targeted" else None,
                models=others or None,
                fit_data=(data.train.unit(), data.train.labels) if traits.learns else None,
            )
        except RobustkdError as error:
            refused = refused or error
        else:
            clean = torch.as_tensor(data.test.unit()[:SAMPLES])
            moved = distance(torch.as_tensor(found.adversarial).cpu() - clean, norm)
            return found.success.tolist(), moved.tolist()
    assert refused is not None
    raise refused


def defended(name: str, device: str) -> list[list[float]]:
    """The logits of the trained target, after it was saved and loaded."""
    defense = subject("defenses", name, SETTINGS.get(f"defenses/{name}")).make(fixtures.QUICK_TRAINING)
    given = fixtures.classifiers(target_references(defense.params), TEACHERS.get(name, "tiny-cnn"))
    others = {other: target.to(device) for other, target in given.items()}
    with fixtures.context(targets=others) as context, tempfile.TemporaryDirectory() as folder:
        save_target(defense.fit(replace(context, device=torch.device(device))), Path(folder))
        target = load_target(Path(folder), defense.code()).to(device)
        target.module.eval()
        return logits(target, torch.from_numpy(fixtures.digits().test.unit()).to(device))


def transformed(name: str, device: str) -> list[list[float]]:
    """The logits of a network behind the transform; of one that learns, as its defense trains it."""
    if plugins.load("transforms", name).learns:
        return defended(name, device)
    stage = {"kind": name, **subject("transforms", name).values()}
    defense = subject("defenses", "input-transform", {"transforms": [stage]}).make()
    others = {other: target.to(device) for other, target in fixtures.classifiers(target_references(defense.params)).items()}
    with fixtures.context(targets=others) as context:
        target = defense.fit(replace(context, device=torch.device(device)))
    return logits(target, torch.from_numpy(fixtures.digits().test.unit()).to(device))


def built(name: str, device: str) -> list[list[float]]:
    """The logits of a network of the architecture, and its loss in training, on images that are large enough for all."""
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 32, 32).to(device), torch.tensor([1, 2]).to(device)
    params = subject("models", name).values()
    target = ClassifierTarget.from_model(name, params, input_shape=(3, 32, 32), num_classes=10).to(device)
    target.module.eval()
    said = logits(target, x)
    target.module.train()
    loss = torch.nn.functional.cross_entropy(target.module(x), y)
    loss.backward()
    return [*said, [loss.item()]]


def logits(target: Any, x: torch.Tensor) -> list[list[float]]:
    torch.manual_seed(0)
    with torch.no_grad():
        said: list[list[float]] = target(x).cpu().tolist()
    return said


ROWS = {"attacks": attacked, "defenses": defended, "transforms": transformed, "models": built}


def main() -> None:
    device, file, *wanted = sys.argv[1:]
    found: dict[str, Any] = {}
    for name in wanted or names():
        group, _, plugin = name.partition("/")
        try:
            found[name] = ROWS[group](plugin, device)
        except Exception:
            found[name] = traceback.format_exc()
        print(name, "failed" if isinstance(found[name], str) else "done", flush=True)
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
