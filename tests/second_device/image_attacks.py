"""Run every attack on images by ``robustkd.attack`` on a device: ``python -m second_device.image_attacks DEVICE FILE [NAME ..]``.

FILE gets, as JSON, what each attack did: ``[broken, distances]`` of its images, or the error that it ended with.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine.ball import distance
from robustkd.contracts import RobustkdError, target_references
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.example import example_params

torch.set_num_threads(1)
SAMPLES = 4
STEPS = {"steps": 10, "queries": 100}
QUICK = {"cw-l2": {"steps": 50}, "cw-linf": {"steps": 30}, "autoattack": {"steps": 5, "queries": 50}}
OF_PEERS = ("torchattacks:PGD", "foolbox:LinfPGD", "foolbox:L2CarliniWagnerAttack")
ELSEWHERE = ("diff-protect",)
"""What needs more than classifiers, and is run in a campaign."""


def names() -> list[str]:
    """The attacks on images."""
    of_images = (name for name in plugins.names("attacks") if plugins.family("attacks", name) is None)
    native = (name for name in of_images if "images" in plugins.load("attacks", name).modalities)
    return [name for name in native if name not in ELSEWHERE] + list(OF_PEERS)


def run(name: str, device: str) -> tuple[list[bool], list[float]]:
    """Which images the attack breaks, and how far it moved each."""
    attack = plugins.load("attacks", name)
    few = {key: value for key, value in (STEPS | QUICK.get(name, {})).items() if key in attack.Params.model_fields}
    spec = {"kind": name, **example_params("attacks", name, few)}
    made = plugins.make("attacks", spec)
    data = fixtures.digits()
    assert data.train is not None
    others = {other: fixtures.classifier(place + 1).to(device) for place, other in enumerate(target_references(made.params))}
    norm, goal = made.traits.norms[0], made.traits.goals[0]
    labels = torch.from_numpy(data.test.labels)[:SAMPLES]
    refused: RobustkdError | None = None
    for target in (fixtures.classifier(), fixtures.ensemble(), fixtures.pipeline(), fixtures.residual()):
        target.to(device)
        try:
            found = robustkd.attack(
                spec,
                target,
                data.test.unit()[:SAMPLES],
                labels,
                norm=norm,
                eps=fixtures.EPS[norm],
                goals=(labels + 1) % data.num_classes if goal == "targeted" else None,
                models=others or None,
                fit_data=(data.train.unit(), data.train.labels) if made.traits.learns else None,
            )
        except RobustkdError as error:
            refused = refused or error
        else:
            clean = torch.as_tensor(data.test.unit()[:SAMPLES])
            moved = distance(torch.as_tensor(found.adversarial).cpu() - clean, norm)
            return found.success.tolist(), [round(float(far), 6) for far in moved]
    assert refused is not None
    raise refused


def main() -> None:
    device, file, *wanted = sys.argv[1:]
    found: dict[str, Any] = {}
    for name in wanted or names():
        try:
            found[name] = run(name, device)
        except Exception:
            found[name] = traceback.format_exc()
        print(name, "failed" if isinstance(found[name], str) else found[name], flush=True)
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
