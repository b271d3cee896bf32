"""Forgetting: what of accuracy and of robustness is left of each task when the last one has been learnt.

    A_ij, R_ij = share of the images of task j that the network after task i classifies rightly, clean and under its own attack,  j <= i
    kept accuracy   = sum_x a_Tx / sum_x a_jx,      kept robustness = the same of r,      over the images of all tasks but the last

a_ix says whether the network after task i is right on x, and j is the task of x. Each ratio has the interval of a ratio of two means over
the same images. Forgetting is the mean over tasks of the difference A_jj - A_Tj, and the average incremental accuracy the mean over i of
the accuracy on all tasks so far.

    S_j, Q_j = the same of the last network when it may answer only the classes that were there after task j, attacked so

An image is attacked among more classes at the end than right after its task, so that less is kept also where nothing was forgotten. S and Q
take that out: the same images, among the same classes, then and at the end. Whether robustness is forgotten faster than accuracy is their
difference of the kept shares (``robustness_forgotten_faster``), above 0 where less is kept of robustness.

The attacked values are worst cases: an image holds where it does under ``attack`` and under every one of ``further``.

Source: forgetting: Chaudhry et al.: Riemannian walk for incremental learning (ECCV 2018), arXiv:1801.10112, section 3.2, with the accuracy
right after the task in place of the best so far; average incremental accuracy: Rebuffi et al. 2017, arXiv:1611.07725. The robust forms,
the ratios and the same classes then and at the end are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from robustkd.analyses.attacked import adversarial, attack_field, right
from robustkd.analyses.members import first_samples
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import AddedLater, Analysis, Attack, Batch, Params, Table, Target, TargetError, ThreatModel
from robustkd.lazy import torch
from robustkd.scoring.intervals import ratio_interval
from robustkd.targets.stream import StreamTarget
from robustkd.targets.sub_network import SubNetworkTarget

if TYPE_CHECKING:
    from torch import Tensor


class ForgettingParams(Params):
    attack: AttackSpec = attack_field("the attack on the network after each task", loss="margin")
    further: Annotated[tuple[AttackSpec, ...], AddedLater()] = Field(
        (), description="more attacks; an image counts as robust where it withstands all"
    )
    samples: int = Field(1000, ge=2, description="images at most")


class Forgetting(Analysis):
    """The matrix of accuracies task by task, clean and under attack, and what is kept of both."""

    Params = ForgettingParams
    version = "2"  # the last network among the classes of each task
    inputs = "images"
    source = "Chaudhry et al. 2018, arXiv:1801.10112; Rebuffi et al. 2017, arXiv:1611.07725"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for the network after each task and one for the last among the classes of then, clean accuracies first; ``metrics``:
        what is kept, forgotten, and the averages.

        Raises:
            TargetError: the network did not learn in tasks, there are no images of a task, or an attack cannot be used.
        """
        inner = target.unwrapped
        if not isinstance(inner, StreamTarget) or len(inner.tasks) < 2:
            raise TargetError(f"this {target.kind} was not trained in tasks", fix="name a defense that is, such as wa")
        specs = (self.params.attack, *self.params.further)
        attacks = [spec.make() for spec in specs]
        for attack in attacks:
            if reason := attack.refusal(threat):
                raise TargetError(f"an attack of forgetting {reason}", fix="use a threat model in a norm, or another attack")
        samples = first_samples(batch, self.params.samples)
        count = len(inner.tasks)
        task = _task_of(samples.labels, inner.tasks)
        if missing := [place + 1 for place in range(count) if not bool((task == place).any())]:
            raise TargetError(f"there is no image of task {missing[0]}", fix="take more test images")
        look = _Look(samples, task, attacks, threat, seed)
        after = [look.at(SubNetworkTarget(inner, name), task <= place, name) for place, name in enumerate(_names(count))]
        then = [look.at(inner.among(place), task == place, f"among-{place + 1}") for place in range(count - 1)]
        clean, held = (np.stack([one[kind] for one in after]) for kind in range(2))
        same = [
            np.any([*(one[kind] for one in then), after[-1][kind] & (task == count - 1).cpu().numpy()], 0) for kind in range(2)
        ]
        tasks = task.cpu().numpy()
        figures = {
            **_kept("accuracy", clean, clean[-1], tasks),
            **_kept("robustness", held, held[-1], tasks),
            **_kept("accuracy_same_classes", clean, same[0], tasks),
            **_kept("robustness_same_classes", held, same[1], tasks),
            "average_accuracy": _average(clean, tasks),
            "average_robustness": _average(held, tasks),
        }
        said = specs[0].kind if len(specs) == 1 else f"{len(specs)} attacks ({', '.join(spec.kind for spec in specs)})"
        faster = figures["kept_accuracy_same_classes"] - figures["kept_robustness_same_classes"]
        return Table(
            caption=f"accuracy of the network after each task on the {len(samples)} images of each task so far, clean and under "
            f"{said} on that network ({threat.norm}, eps {threat.eps:.4g}); 0 where the task "
            "had not come; last row: the last network, when it may answer only the classes that were there after each task",
            rows=[*(f"after task {number}" for number in range(1, count + 1)), "at the end, same classes"],
            columns=[f"{kind} {number}" for kind in ("clean", "attacked") for number in range(1, count + 1)],
            values=[
                [float(found[tasks == j].mean()) for found in line for j in range(count)]
                for line in (*zip(clean, held, strict=True), same)
            ],
            metrics=figures | {"robustness_forgotten_faster": faster},
            standing=True,
        )


@dataclass(frozen=True)
class _Look:
    """The images that every network is looked at with, their tasks, and the attacks."""

    samples: Batch
    task: Tensor
    attacks: Sequence[Attack]
    threat: ThreatModel
    seed: int

    def at(self, network: Target, known: Tensor, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        """(N,) bool twice: which images are right, and which are under all attacks; False for those that are not among ``known``."""
        rows = torch.nonzero(known).squeeze(1)
        there = self.samples.select(rows)
        stands = right(network, there.inputs, there.labels)
        held = stands
        for number, attack in enumerate(self.attacks):
            stream = f"forgetting/{purpose}" + (f"/{number}" if number else "")
            attacked = adversarial(network, attack, there, self.threat, self.seed, stream)
            held = held & right(network, attacked, there.labels)
        found = np.zeros((2, len(self.samples)), dtype=bool)
        found[0, rows.cpu().numpy()], found[1, rows.cpu().numpy()] = stands.cpu().numpy(), held.cpu().numpy()
        return found[0], found[1]


def _names(count: int) -> list[str]:
    return [f"after-{number}" for number in range(1, count + 1)]


def _task_of(labels: Tensor, tasks: tuple[tuple[int, ...], ...]) -> Tensor:
    """(N,) int64, from 0."""
    place = {name: number for number, task in enumerate(tasks) for name in task}
    return torch.tensor([place[int(label)] for label in labels], device=labels.device)


def _kept(name: str, found: np.ndarray, end: np.ndarray, tasks: np.ndarray) -> dict[str, float]:
    """What of (T, N) bool, right after each task, is left in (N,) bool at the end, of images of (N,) tasks."""
    last = len(found) - 1
    earlier = np.flatnonzero(tasks < last)
    then, now = found[tasks[earlier], earlier].astype(float), end[earlier].astype(float)
    forgotten = [found[j, tasks == j].mean() - end[tasks == j].mean() for j in range(last)]
    figures = {f"forgotten_{name}": float(np.mean(forgotten))}
    if not then.any():
        return figures | {f"kept_{name}": 0.0, f"kept_{name}_low": 0.0, f"kept_{name}_high": 1.0}
    low, high = ratio_interval(now, then)
    return figures | {f"kept_{name}": float(now.mean() / then.mean()), f"kept_{name}_low": low, f"kept_{name}_high": high}


def _average(found: np.ndarray, tasks: np.ndarray) -> float:
    """The mean over tasks of the accuracy on all so far, of (T, N) bool and (N,) tasks."""
    return float(np.mean([found[place, tasks <= place].mean() for place in range(len(found))]))
