"""Forgetting: what of accuracy and of robustness is left of each task when the last one has been learnt.

    A_ij, R_ij = share of the images of task j that the network after task i classifies rightly, clean and under its own attack,  j <= i
    kept accuracy   = sum_x a_Tx / sum_x a_jx,      kept robustness = the same of r,      over the images of all tasks but the last

a_ix says whether the network after task i is right on x, and j is the task of x. Each ratio has the interval of a ratio of two means over
the same images. Forgetting is the mean over tasks of the difference A_jj - A_Tj, and the average incremental accuracy the mean over i of
the accuracy on all tasks so far.

An image is attacked among more classes at the end than right after its task, so that less is kept also where nothing was forgotten. The
control is a network that learnt all classes at once, beside the last row (``joint`` in the preset ``continual-small``).

Source: forgetting: Chaudhry et al.: Riemannian walk for incremental learning (ECCV 2018), arXiv:1801.10112, section 3.2, with the accuracy
right after the task in place of the best so far; average incremental accuracy: Rebuffi et al. 2017, arXiv:1611.07725. The robust forms and
the ratios are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.analyses.attacked import adversarial, right
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetError, ThreatModel
from robustkd.lazy import torch
from robustkd.scoring.intervals import ratio_interval
from robustkd.targets.stream import StreamTarget
from robustkd.targets.sub_network import SubNetworkTarget

if TYPE_CHECKING:
    from torch import Tensor


class ForgettingParams(Params):
    attack: AttackSpec = Field(
        {"kind": "pgd", "steps": 20, "loss": "margin"},
        validate_default=True,
        description="the attack on the network after each task",
    )
    samples: int = Field(1000, ge=2, description="images at most")


class Forgetting(Analysis):
    """The matrix of accuracies task by task, clean and under attack, and what is kept of both."""

    Params = ForgettingParams
    inputs = "images"
    source = "Chaudhry et al. 2018, arXiv:1801.10112; Rebuffi et al. 2017, arXiv:1611.07725"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for the network after each task, clean accuracies first; ``metrics``: what is kept, forgotten, and the averages.

        Raises:
            TargetError: the network did not learn in tasks, there are no images of a task, or the attack cannot be used.
        """
        inner = target.unwrapped
        if not isinstance(inner, StreamTarget):
            raise TargetError(f"this {target.kind} was not trained in tasks", fix="name a defense that is, such as wa")
        attack = self.params.attack.make()
        if reason := attack.refusal(threat):
            raise TargetError(f"the attack of forgetting {reason}", fix="use a threat model in a norm, or another attack")
        samples = batch.select(torch.arange(min(self.params.samples, len(batch)), device=batch.inputs.device))
        count = len(inner.tasks)
        task = _task_of(samples.labels, inner.tasks)
        if missing := [place + 1 for place in range(count) if not bool((task == place).any())]:
            raise TargetError(f"there is no image of task {missing[0]}", fix="take more test images")
        names = [f"after-{number}" for number in range(1, count + 1)]
        clean, held = np.zeros((count, len(samples)), dtype=bool), np.zeros((count, len(samples)), dtype=bool)
        for place, name in enumerate(names):
            known = torch.nonzero(task <= place).squeeze(1)
            there, network = samples.select(known), SubNetworkTarget(inner, name)
            stands = right(network, there.inputs, there.labels)
            attacked = adversarial(network, attack, there, threat, seed, f"forgetting/{name}")
            rows = known.cpu().numpy()
            clean[place, rows] = stands.cpu().numpy()
            held[place, rows] = (stands & right(network, attacked, there.labels)).cpu().numpy()
        tasks = task.cpu().numpy()
        return Table(
            caption=f"accuracy of the network after each task on the {len(samples)} images of each task so far, clean and under "
            f"{self.params.attack.kind} on that network ({threat.norm}, eps {threat.eps:.4g}); 0 where the task had not come",
            rows=[f"after task {number}" for number in range(1, count + 1)],
            columns=[f"{kind} {number}" for kind in ("clean", "attacked") for number in range(1, count + 1)],
            values=[
                [float(found[place, tasks == j].mean()) for found in (clean, held) for j in range(count)]
                for place in range(count)
            ],
            metrics={**_kept("accuracy", clean, tasks), **_kept("robustness", held, tasks)},
        )


def _task_of(labels: Tensor, tasks: tuple[tuple[int, ...], ...]) -> Tensor:
    """(N,) int64, from 0."""
    place = {name: number for number, task in enumerate(tasks) for name in task}
    return torch.tensor([place[int(label)] for label in labels], device=labels.device)


def _kept(name: str, found: np.ndarray, tasks: np.ndarray) -> dict[str, float]:
    """The figures of (T, N) bool, right after each task, of images of (N,) tasks."""
    last = len(found) - 1
    earlier = np.flatnonzero(tasks < last)
    then, now = found[tasks[earlier], earlier].astype(float), found[last, earlier].astype(float)
    forgotten = [found[j, tasks == j].mean() - found[last, tasks == j].mean() for j in range(last)]
    average = [found[place, tasks <= place].mean() for place in range(last + 1)]
    figures = {f"forgotten_{name}": float(np.mean(forgotten)), f"average_{name}": float(np.mean(average))}
    if not then.any():
        return figures | {f"kept_{name}": 0.0, f"kept_{name}_low": 0.0, f"kept_{name}_high": 1.0}
    low, high = ratio_interval(now, then)
    return figures | {f"kept_{name}": float(now.mean() / then.mean()), f"kept_{name}_low": low, f"kept_{name}_high": high}
