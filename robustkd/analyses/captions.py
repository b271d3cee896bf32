"""Captions: what a caption model says of an image, word by word, and what it says under attack.

    right name        the caption names the image's class
    right adjective   it says how bright the image is, in thirds of the analysed images
    wanted name       under a targeted threat model, it names the class that the attacker wants

What it says is decoded greedily, so it is the same whenever it is asked for. A name or an adjective that is not the image's is a
hallucination. As a classifier a caption model is broken where the likeliest class is another; its caption need not say that class, so this
is the judge of a dictated caption.

Source: this package; the shares are those of wrong objects and wrong attributes that work on hallucination counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.analyses.attacked import adversarial, attack_field
from robustkd.analyses.members import first_samples, parts
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetError, ThreatModel
from robustkd.data.captions import tones_of
from robustkd.evaluation.modality import with_goals
from robustkd.lazy import torch
from robustkd.scoring.intervals import wilson
from robustkd.targets.captioner import CaptionerTarget

if TYPE_CHECKING:
    from torch import Tensor


class CaptionsParams(Params):
    attack: AttackSpec = attack_field("the attack under which captions are read again")
    samples: int = Field(500, ge=1, description="images at most")


class Captions(Analysis):
    """How often a caption is right, and which part of it is not."""

    Params = CaptionsParams
    inputs = "images"
    source = "this package"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for the clean images and one for the attacked ones; ``metrics``: the hallucinated names and adjectives of both.

        Raises:
            TargetError: it is no caption model, or the attack cannot be used under the threat model.
        """
        if not isinstance(target, CaptionerTarget):
            raise TargetError(
                f"'captions' reads what a caption model says, this is a {target.kind}",
                fix="list caption models in its 'defenses'",
            )
        attack = self.params.attack.make()
        if reason := attack.refusal(threat):
            raise TargetError(f"the attack of 'captions' {reason}", fix="use another attack")
        samples = first_samples(batch, self.params.samples)
        samples = with_goals(replace(samples, logits=None), threat, seed, target.num_classes)
        tones = torch.from_numpy(tones_of(samples.inputs.cpu().numpy()))
        attacked = adversarial(target, attack, samples, threat, seed, "captions")
        clean, under = (_said(target, samples, inputs, tones) for inputs in (samples.inputs, attacked))
        n, low_high = len(samples), [wilson(int(each[:, 0].sum()), len(samples)) for each in (clean, under)]
        wanted = ["wanted name"] if samples.goals is not None else []
        return Table(
            caption=f"of {n} images, the share of which the whole caption, the name and the adjective are right, with the 95 % interval "
            f"of the first{', and the share whose caption has the wanted name' if wanted else ''}; {threat.plain}",
            rows=["clean", self.params.attack.kind],
            columns=["right caption", "at least", "at most", "right name", "right adjective", *wanted],
            values=[
                [shares[0], *ends, *shares[1 : 3 + len(wanted)]]
                for shares, ends in zip((each.mean(0).tolist() for each in (clean, under)), low_high, strict=True)
            ],
            metrics={
                "wrong_names": 1 - float(clean[:, 1].mean()),
                "wrong_adjectives": 1 - float(clean[:, 2].mean()),
                "wrong_names_under_attack": 1 - float(under[:, 1].mean()),
                "wrong_adjectives_under_attack": 1 - float(under[:, 2].mean()),
            },
        )


def _said(target: CaptionerTarget, samples: Batch, inputs: Tensor, tones: Tensor) -> np.ndarray:
    """(N, 4) whether the caption of each input is right, names the label, has the adjective of ``tones``, and names the goal."""
    told = [text for part in parts(replace(samples, inputs=inputs)) for text in target.describe(part.inputs)]
    goals = samples.labels if samples.goals is None else samples.goals
    # As the model decodes them: a name's signs are not among its words.
    captions = [target.module.decode(tokens) for tokens in target.module.tokens]
    adjectives = [[texts[tone] for texts in captions] for tone in range(len(captions[0]))]
    rows = [
        (text == captions[label][tone], text in captions[label], text in adjectives[tone], text in captions[goal])
        for text, label, tone, goal in zip(told, samples.labels.tolist(), tones.tolist(), goals.tolist(), strict=True)
    ]
    return np.array(rows, dtype=np.float64)
