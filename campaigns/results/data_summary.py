"""What results and tracking say of the data and the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store.identity import digest
from robustkd.contracts.data import DeferredArrays
from robustkd.data import Splits
from robustkd.evaluation.modality import evaluation_of
from robustkd.scoring.summaries import DataSummary, Environment


def data_summary(plan: Plan) -> DataSummary:
    """What results and tracking say of the data."""
    data = plan.data
    benign = evaluation_of(data.modality).harmless(data)
    return DataSummary(
        plan.campaign.data.name,
        len(data.test),
        used_digest(plan),
        test_digest(data),
        data.modality,
        benign,
        data.notes,
        1.0 if data.unit is None else data.unit.scale,
    )


def used_digest(plan: Plan) -> str:
    """The hash of all samples; of those that are attacked alone, where the others would have to be decoded for nothing but this."""
    campaign, data = plan.campaign, plan.data
    learns = any(use.plugin.uses_data for use in campaign.defenses.values())
    learns = learns or any(use.plugin.traits.learns for use in campaign.attacks.values())
    return data.digest if learns or not isinstance(data.train, DeferredArrays) else test_digest(data)


def test_digest(data: Splits[Any]) -> str:
    """The hash of what the numbers are of: the test samples and, of prompts, the harmless requests."""
    return data.test_digests[0] if data.benign is None else digest(data.test_digests)


def environment(finished: str | None) -> Environment:
    """Versions and machine, with the time when the last cell was ``finished``."""
    versions = {name: version(name) for name in ("robustkd", "torch", "numpy", "mlflow")}
    machine = f"{platform.system()} {platform.machine()}"
    return Environment(**versions, python=platform.python_version(), machine=machine, finished=finished)
