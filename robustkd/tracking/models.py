"""Trained targets as MLflow's logged models: the target's own two files and an MLmodel beside them, never pickle.

MLflow's flavours for PyTorch either pickle or trace the network from an example input; neither gives back a target. The
folder of a logged model made here is a target's folder: ``load_target`` reads it, and so does ``mlflow.pyfunc``.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from pydantic import BaseModel

from robustkd.contracts import StoreError
from robustkd.contracts.json_value import JsonObject
from robustkd.scoring.results import DefenseResult
from robustkd.targets.files import CARD, WEIGHTS
from robustkd.tracking import descriptions
from robustkd.tracking.records import defense_name, flattened
from robustkd.tracking.run_store import RunStore

HASH = "robustkd.target_hash"


class _Shapes(BaseModel):
    """What a classifier's card says of its inputs and outputs."""

    input_shape: tuple[int, ...]
    num_classes: int


def log_model(book: RunStore, run_id: str, result: DefenseResult, folder: Path) -> str:
    """The logged model of a trained target: found by the target's hash, or else made from the files in ``folder``.

    Raises:
        StoreError: ``folder`` holds no saved target.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = book.client
    query = f"tags.`{HASH}` = '{result.target_hash}'"
    found = list(client.search_logged_models([book.experiment_id], query))
    model = next((model for model in found if model.status == LoggedModelStatus.READY), next(iter(found), None))
    if model is None:
        model = client.create_logged_model(
            book.experiment_id,
            re.sub(r"[^\w\- ]", "_", f"{result.defense}-seed{result.seed}"),
            run_id,
            tags={HASH: str(result.target_hash), "robustkd.defense": result.defense, "robustkd.seed": str(result.seed)},
            params={
                key: text[:250] for key, text in flattened(book.campaign.defenses.get(result.defense, {}), "defense").items()
            },
            model_type="robustkd-target",
        )
    if model.status != LoggedModelStatus.READY:
        _upload(book, model.model_id, run_id, folder, defense_name(result.defense, result.seed))
    client.set_logged_model_tags(
        model.model_id, {"robustkd.verdict": result.verdict or "none yet", "mlflow.note.content": descriptions.defense(result)}
    )
    outputs = client.get_run(run_id).outputs
    if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return str(model.model_id)


def _upload(book: RunStore, model_id: str, run_id: str, folder: Path, title: str) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    try:
        card: JsonObject = json.loads((folder / CARD).read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} holds no saved target: {error}", fix="train it again") from error
    import numpy as np

    described = Model(run_id=run_id, model_id=model_id, metadata={"title": title, "robustkd": card["target"]})
    described.add_flavor("python_function", loader_module="robustkd.tracking.pyfunc")
    if "num_classes" in card:
        shapes = _Shapes.model_validate(card)
        described.signature = ModelSignature(
            Schema([TensorSpec(np.dtype("float32"), (-1, *shapes.input_shape))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, shapes.num_classes))]),
        )
    with tempfile.TemporaryDirectory() as scratch:
        described.save(str(Path(scratch, "MLmodel")))
        for path in (folder / WEIGHTS, folder / CARD, Path(scratch, "MLmodel")):
            book.client.log_model_artifact(model_id, str(path))
    book.client.finalize_logged_model(model_id, "READY")
