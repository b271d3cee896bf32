"""Which epoch is deployed: measured on the validation data, the only held-out data that a training ever sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.contracts import Batch, FitContext, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.data_parallel import World
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import torch
from robustkd.targets import ImageTarget

Selection = Literal["best", "weighted", "last"]
ACCURACY, ROBUST_ACCURACY = "validation_accuracy", "validation_robust_accuracy"
_BATCH = 500


class Validation:
    """Accuracy on validation data, and under PGD-10 with a margin loss where a threat model is given.

    The margin, not the cross entropy that trainings climb: an epoch that masks its gradients by large logits must not win.

    Args:
        context: the validation data, seed and device.
        cap: at most so many samples, the same random ones after each epoch.
        threat: what robust accuracy is measured against, or None.
    """

    def __init__(self, context: FitContext, cap: int, threat: ThreatModel | None) -> None:
        self._samples = Samples(context.validation, context.device)
        generator = torch.Generator().manual_seed(derived_seed(context.seed, "validation"))
        self._rows = torch.randperm(len(self._samples), generator=generator)[:cap]
        self._seed = context.seed
        self._threat = None if threat is None else replace(threat, goal="untargeted")
        self._attack = PGD(PGDParams(steps=10, loss="margin"))

    def measure(self, target: ImageTarget) -> dict[str, float]:
        """The metrics of a target, in evaluation mode; it is left as found."""
        right = standing = 0
        world = World.here()
        with frozen(target.module):
            for rows in world.share(self._rows).split(_BATCH):
                x, y = self._samples.take(rows)
                with torch.no_grad():
                    logits = target(x)
                right += int((logits.argmax(1) == y).sum())
                if self._threat is not None:
                    index = rows.to(x.device)
                    rng = SampleRng(self._seed, index, "validation")
                    batch = Batch(x, y, index, logits=logits)
                    standing += int((~self._attack.run(target, batch, self._threat, rng).success).sum())
        right, standing = world.total(torch.tensor([right, standing], device=self._samples.device)).tolist()
        metrics = {ACCURACY: right / len(self._rows)}
        if self._threat is not None:
            metrics[ROBUST_ACCURACY] = standing / len(self._rows)
        return metrics


def rank(metrics: Mapping[str, float], selection: Selection = "best") -> list[float]:
    """What makes an epoch better, in order: robust accuracy where it was measured, then accuracy; or the mean of both (W-Robust)."""
    known = [metrics[name] for name in (ROBUST_ACCURACY, ACCURACY) if name in metrics]
    return [sum(known) / len(known)] if selection == "weighted" else known
