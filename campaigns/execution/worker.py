"""Does cells, one after the other, and writes their outcomes to the store. Runs in a child process."""

from __future__ import annotations

from typing import Any

from robustkd.campaigns.execution.job import Job, Report
from robustkd.campaigns.execution.work.analysis import analyse
from robustkd.campaigns.execution.work.attack import attack
from robustkd.campaigns.execution.work.checks import check
from robustkd.campaigns.execution.work.train import train
from robustkd.campaigns.execution.workspace import Workspace
from robustkd.campaigns.plan.cells import AnalysisCell, AttackCell, Cell, ChecksCell, TrainCell
from robustkd.contracts.random import seed_torch
from robustkd.data import Splits
from robustkd.lazy import torch
from robustkd.targets import recording_gradients
from robustkd.targets.precision import full_precision


class Worker:
    """Does the cells of a campaign in this process.

    Args:
        writes: whether it writes cells to the store; of several processes that train one network together, one does.
    """

    def __init__(self, job: Job, report: Report = lambda cell, epoch, metrics: None, *, writes: bool = True) -> None:
        torch.set_num_threads(job.threads)
        self._workspace = Workspace(job, report, writes=writes)

    @property
    def data(self) -> Splits[Any]:
        """The campaign's data, loaded once."""
        return self._workspace.data

    @recording_gradients()
    def run(self, cell: Cell) -> None:
        """Do a cell whose needs are in the store, and write it there.

        Raises:
            IdentityError: plug-ins, files or data are not those that the cell was planned with.
        """
        self._workspace.verify(cell)
        seed_torch(cell.seed)
        if isinstance(cell, TrainCell):
            train(cell, self._workspace)
            return
        with full_precision():
            match cell:
                case AttackCell():
                    attack(cell, self._workspace)
                case ChecksCell():
                    check(cell, self._workspace)
                case AnalysisCell():
                    analyse(cell, self._workspace)
