"""A check that every perturbation keeps to the threat model."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustkd.contracts import Check, CheckContext, Finding
from robustkd.lazy import torch
from robustkd.scoring.distances import TOLERANCE, inside


class ThreatModelAudit(Check):
    """Every counted success lies inside its budget and in the pixel range, on a target in evaluation mode.

    A result outside its budget never counts as a success. Where more than a tenth of an attack's results are outside, or one by more
    than twice, its cell is `invalid`. So this check repeats the measurement on what was kept, and records how much of the budget was
    used, and of how many samples the perturbed inputs were there. Samples whose results were left out are named, as a warning.
    """

    regions = ("given", "chosen")
    severity = "severe"
    rule = (
        "a broken sample is farther than eps (but for float32 rounding), changed where nothing may change, outside the pixel range or not "
        "finite; or the model is in training mode. A warning: an attack of fixed budget returned something outside it for a sample"
    )
    source = "Carlini et al. 2019, On evaluating adversarial robustness, section 5"

    def run(self, context: CheckContext) -> Finding:
        """Measure every attack's kept samples once more."""
        low, high = (torch.as_tensor(bound).cpu().numpy() for bound in context.target.bounds)
        training = any(module.training for module in context.target.module.modules())
        outside, strays, spent, measured = [], {}, {}, {}
        batch = context.batch.placed(context.threat, context.seed)
        for name, attack in context.attacks.items():
            broken = attack.correct_before & ~attack.standing
            used = float(attack.distance[broken].max()) if broken.any() else 0.0
            spent[name] = used
            kept = attack.adversarial
            measured[name] = 0 if kept is None else len(kept)
            valid = kept is None or bool(
                np.isfinite(kept).all() and (kept >= low - TOLERANCE).all() and (kept <= high + TOLERANCE).all()
            )
            within = inside(attack.threat.budget, attack.distance, attack.threat.eps, context.batch.inputs.shape[1:])
            if kept is not None and valid and attack.threat == context.threat:
                part = batch.select(slice(len(kept)))
                found = torch.from_numpy(kept).to(part.inputs)
                within[: len(kept)] &= part.untouched(found, attack.threat).cpu().numpy()
            if (broken & ~within).any() or not valid:
                outside.append(name)
            elif attack.kind == "fixed-budget" and not within.all():
                strays[name] = np.flatnonzero(~within).tolist()
        severe = bool(outside) or training
        said = "; ".join(f"{name} left its budget on {len(rows)} samples" for name, rows in strays.items())
        told: dict[str, Any] = {"explanation": f"{said}, which do not count as broken"} if strays and not severe else {}
        return self.finding(
            severe or bool(strays),
            fix="correct the attack: project onto the budget and clip to the pixel range",
            severity=None if severe or not strays else "warning",
            **told,
            outside=outside,
            left_budget=strays,
            training_mode=training,
            largest_distance=spent,
            perturbations_measured_again=measured,
        )
