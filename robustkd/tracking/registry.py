"""A trained target of a campaign as a version in MLflow's model registry: what ``robustkd promote`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.contracts import RobustkdError, UsageError, suggestion
from robustkd.redaction import redacted
from robustkd.scoring.results import DefenseResult, Results
from robustkd.tracking import descriptions
from robustkd.tracking.location import TrackingError, tracking_uri
from robustkd.tracking.origin import origin_of
from robustkd.tracking.relocation import relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MAX_DESCRIPTION = 5000
"""MLflow's longest description of a version."""


def promote(
    folder: Path,
    results: Results,
    defense: str,
    seed: int | None = None,
    *,
    objections: Sequence[str] = (),
    gates: Sequence[str] = (),
    name: str | None = None,
    alias: str = "champion",
    force: bool = False,
) -> str:
    """Register a defense's logged model, with its robustness card, and point an alias at it; doing it again adds no version.

    Args:
        folder: the results folder.
        seed: which training; by default the campaign's first. (To pick the best of several on the test samples would be to
            select on them.)
        objections: what speaks against it, beside a verdict that is not `credible`.
        gates: what the campaign's gates said, for the card.
        name: of the registered model; by default the campaign's and the defense's.
        force: also against objections, which the version's tags then name.

    Returns:
        What MLflow loads it by: ``models:/name@alias``.

    Raises:
        UsageError: there is no such model, or something speaks against it.
        TrackingError: MLflow refused.
    """
    from robustkd.tracking.run_store import connect

    trained = _trained(results, defense, seed)
    against = [*_doubts(trained), *objections]
    if against and not force:
        raise UsageError(
            f"'{defense}' (seed {trained.seed}) is not promoted: {'; '.join(against)}",
            fix="see its report; --force promotes it all the same, and says so in the version's tags",
        )
    registered = name or f"{results.campaign}-{defense}"
    tags = {"robustkd.overridden": descriptions.truncate("; ".join(against), 2000)} if against else {}
    try:
        relocate(folder)
        client = connect(tracking_uri(folder))
        model = _logged(client, origin_of(folder).experiment(results.campaign), trained)
        card = descriptions.truncate(descriptions.card(results, trained, gates, against), MAX_DESCRIPTION)
        client.set_registered_model_alias(registered, alias, _version(client, registered, model, card, tags))
    except RobustkdError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow did not register the model: {redacted(str(error))}") from error
    return f"models:/{registered}@{alias}"


def _trained(results: Results, defense: str, seed: int | None) -> DefenseResult:
    rows = [row for row in results.defenses if row.defense == defense and seed in (None, row.seed)]
    if rows:
        return rows[0]
    known = list(dict.fromkeys(row.defense for row in results.defenses))
    if defense in known:
        seeds = ", ".join(str(row.seed) for row in results.defenses if row.defense == defense)
        raise UsageError(f"'{defense}' has no seed {seed}", fix=f"its seeds: {seeds}")
    hint = suggestion(defense, known) or f"known there: {', '.join(known)}"
    raise UsageError(f"campaign '{results.campaign}' has no defense '{defense}'", fix=hint)


def _doubts(trained: DefenseResult) -> list[str]:
    if trained.robust_accuracy is None or trained.status != "done":
        return [f"its evaluation is not complete ({trained.status})"]
    if trained.verdict == "credible":
        return []
    fired = ", ".join(finding.name for finding in trained.checks if finding.fired)
    return [f"its robust accuracy is {trained.verdict or 'unchecked'}" + (f" ({fired})" if fired else "")]


def _logged(client: MlflowClient, name: str, trained: DefenseResult) -> LoggedModel:
    experiment = client.get_experiment_by_name(name)
    query = f"tags.`robustkd.target_hash` = '{trained.target_hash}'"
    found = [] if experiment is None else client.search_logged_models([experiment.experiment_id], query)
    ready = [model for model in found if str(model.status) == "READY"]
    if not ready:
        raise UsageError(
            f"MLflow does not have the model of '{trained.defense}' with seed {trained.seed}",
            fix="fill MLflow in with: robustkd track CAMPAIGN",
        )
    return max(ready, key=lambda model: model.creation_timestamp)


def _version(client: MlflowClient, registered: str, model: LoggedModel, card: str, tags: dict[str, str]) -> str:
    """The version that holds the model, made when there is none; its card and its tags are brought up to date."""
    if not client.search_registered_models(f"name = '{registered}'"):
        client.create_registered_model(registered)
    tags = tags | {key: text for key, text in model.tags.items() if key.startswith("robustkd.")}
    tags["robustkd.model_id"] = model.model_id
    for known in client.search_model_versions(f"name = '{registered}'"):
        if known.tags.get("robustkd.model_id") == model.model_id:
            break
    else:
        # Not models:/<id>, which MLflow would look for in its process-wide store instead of this client's.
        known = client.create_model_version(
            registered, model.artifact_location, model.source_run_id, tags, model_id=model.model_id
        )
    number = str(known.version)
    client.update_model_version(registered, number, card)
    for key, text in tags.items():
        client.set_model_version_tag(registered, number, key, text)
    if "robustkd.overridden" in known.tags and "robustkd.overridden" not in tags:
        client.delete_model_version_tag(registered, number, "robustkd.overridden")
    return number
