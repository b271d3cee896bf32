"""What is refused before anything runs, since it can be seen from the campaign and its data."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd.campaigns.file.campaign import Campaign
from robustkd.contracts import Capabilities, DataError, UsageError, inner_params
from robustkd.contracts.threat import Norm, PixelBudget, ThreatModel, require_plausible
from robustkd.data import Splits


def require_inputs_taken(campaign: Campaign, data: Splits) -> None:
    """Refuse a campaign with a defense or an analysis that takes images alone, on other inputs.

    Raises:
        UsageError: there is one.
    """
    if data.modality != "images":
        return
    shape, unequal = tuple(data.input_shape), data.unit is not None and not data.unit.uniform
    if len(shape) != 3:
        for name, analysis in campaign.analyses.items():
            if analysis.plugin.inputs == "images":
                raise UsageError(
                    f"analysis '{name}' ({analysis.kind}) is for images (C, H, W), and the inputs have the shape {shape}",
                    fix="leave it out",
                )
    elif not unequal:
        return
    for name, defense in campaign.defenses.items():
        if defense.plugin.inputs == "images":
            what = f"the shape {shape}" if len(shape) != 3 else "a range for each feature"
            raise UsageError(
                f"defense '{name}' ({defense.kind}) is for images (C, H, W) in one range, and the inputs have {what}",
                fix="train such a network yourself, and give it as a defense of kind 'external'",
            )


def require_training_data(campaign: Campaign, data: Splits) -> None:
    """Refuse a campaign with a defense or an attack that learns, on data without what it learns from.

    Raises:
        DataError: there is no training part, or no validation part.
    """
    learning = next((name for name, use in campaign.attacks.items() if use.plugin.traits.learns), None)
    if learning is not None and data.train is None:
        raise DataError(
            f"attack '{learning}' learns, but the data '{campaign.data.name}' have no training part",
            fix="use data with one (of behaviors: 'training'), or leave the attack out",
        )
    trained = next((name for name, use in campaign.defenses.items() if use.plugin.uses_data), None)
    if trained is None or (data.train is not None and data.validation is not None):
        return
    if data.train is None:
        raise DataError(
            f"defense '{trained}' trains, but the data '{campaign.data.name}' have no training part",
            fix="use a data set with one, or a defense of kind 'external'",
        )
    raise DataError(
        f"defense '{trained}' trains, and 'validation: 0' of the data leaves no samples to measure its epochs on",
        fix="leave 'validation' out, or give a few samples: validation: 0.02; 'selection: last' then deploys the last epoch as papers do",
    )


def require_one_class_trained(campaign: Campaign, data: Splits) -> None:
    """Refuse a campaign with a defense that trains, where an attack succeeds by flipping any of several labels.

    Raises:
        UsageError: there is one.
    """
    trained = next((name for name, use in campaign.defenses.items() if use.plugin.uses_data), None)
    if data.label == "any" and trained is not None:
        raise UsageError(
            f"defense '{trained}' trains a network for one class of each sample, and here several labels may hold together",
            fix="say which label counts, success: {label: 3}, or train such a network yourself and give it as a defense of kind 'external'",
        )


def require_plausible_budgets(campaign: Campaign, data: Splits) -> None:
    """Refuse a campaign with an eps, of an attack or of what a defense trains on, that cannot be meant for such images.

    Raises:
        UsageError: it is larger than the distance between any two of them.
    """
    named: list[tuple[str, ThreatModel, tuple[float, ...]]] = [("threat: eps", campaign.threat, ())]
    named += [(f"attack '{use.name}': eps", use.threat, use.curve) for use in campaign.attacks.values()]
    for what, threat, curve in named:
        if isinstance(threat.budget, PixelBudget) and data.input_shape:
            _require_plausible(threat.norm, max(threat.eps, *curve, 0.0), data, what)
    if not isinstance(campaign.threat.budget, PixelBudget) or not data.input_shape:
        return
    for name, defense in campaign.defenses.items():
        params = defense.plugin.params
        for part in (params, *(part for field in type(params).model_fields for part in inner_params(getattr(params, field)))):
            if isinstance(eps := getattr(part, "eps", None), float):
                _require_plausible(campaign.threat.norm, eps, data, f"defense '{name}': eps")


def _require_plausible(norm: Norm, eps: float, data: Splits, what: str) -> None:
    if data.unit is None:
        require_plausible(norm, eps, data.input_shape, what)
    else:
        data.unit.require_plausible(norm, eps * data.unit.length(norm), data.input_shape)


def require_regions_fit(campaign: Campaign, data: Splits) -> None:
    """Refuse a campaign whose ``where`` is no part of its images, or with a defense that would train on whole images instead.

    Raises:
        UsageError: there is one.
    """
    for threat in dict.fromkeys([campaign.threat, *(use.threat for use in campaign.attacks.values())]):
        if threat.where is not None:
            threat.where.require_fits(data.input_shape)
    if campaign.threat.where is None:
        return
    for name, defense in campaign.defenses.items():
        params = defense.plugin.params
        parts = (params, *(part for field in type(params).model_fields for part in inner_params(getattr(params, field))))
        if defense.plugin.uses_threat and not any(isinstance(getattr(part, "eps", None), float) for part in parts):
            raise UsageError(
                f"defense '{name}' ({defense.kind}) trains on perturbations of the whole image, and the threat model is about pixels "
                f"{campaign.threat.where}",
                fix="say which whole-image budget it trains on, as its own eps (of its inner maximisation), or leave it out",
            )


def require_trainable(campaign: Campaign) -> None:
    """Refuse a campaign with a defense that cannot be trained under its threat model.

    Raises:
        UsageError: there is one.
    """
    for name, defense in campaign.defenses.items():
        if reason := defense.plugin.refusal(campaign.threat):
            raise UsageError(
                f"defense '{name}' ({defense.kind}) {reason}",
                fix="leave it out, or evaluate it in a campaign under another threat model",
            )


def require_usable_references(campaign: Campaign, capabilities: Mapping[str, Capabilities]) -> None:
    """Refuse a campaign in which an attack, a judge or an analysis uses another defense's model for what that cannot do.

    Args:
        capabilities: those of each defense's targets.

    Raises:
        UsageError: one does.
    """
    uses = [
        *(("attack", use.name, use.plugin.others()) for use in campaign.attacks.values()),
        *(("judge", use.name, use.plugin.others()) for use in campaign.judges.values()),
        *(("analysis", use.name, use.plugin.others()) for use in campaign.analyses.values()),
    ]
    for what, user, others in uses:
        for name, needs in others.items():
            if missing := sorted(needs - capabilities[name]):
                raise UsageError(
                    f"{what} '{user}' needs {' and '.join(missing)} of the targets of '{name}', which they do not have",
                    fix="name another defense there, one whose model has it",
                )
