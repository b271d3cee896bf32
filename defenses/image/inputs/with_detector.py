"""A classifier with a detector: what looks unlike clean images is rejected, and not answered.

    answer(x) = argmax_k z_k(x)     if score(x) <= t,     else: rejected
    t: the smallest number that lets pass all but the share alpha of the clean validation images

The classifier is another defense's, as it is. An attack has succeeded where the classifier is wrong *and* the detector lets the image
pass; a clean image that is rejected counts as an error of the defense. So the worst case of such a defense and that of its base can be
compared, and the detector is worth its false alarms where the first is higher. The attacks know the detector
(``robustkd.targets.detecting``); ``unaware`` around one shows what it does without.

Good where the attacker does not know of it, or cannot lower the score without losing the wrong class. Most detectors fall to an attack on
both: a number of ``unaware`` alone is not credible.

Control: the base without a detector, and ``false_positive_rate: 0``.

Source: Carlini & Wagner: Adversarial examples are not easily detected (AISec 2017), arXiv:1705.07263; that errors and rejections of clean
inputs count against the defense: Tramer: Detecting adversarial examples is (nearly) as hard as classifying them (ICML 2022),
arXiv:2107.11630, definition of a robust classifier with a detector.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import (
    Arrays,
    BaseTarget,
    Capabilities,
    Defense,
    FitContext,
    Params,
    Target,
    TargetRef,
    target_references,
)
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import torch
from robustkd.targets import ImageTarget, frozen
from robustkd.targets.detecting import DetectingTarget, DetectorSpec

_BATCH = 256


class WithDetectorParams(Params):
    """Which classifier is watched, by what, and how many clean images it may reject."""

    base: TargetRef = Field(description="the defense whose classifier is watched")
    detector: DetectorSpec = Field(
        description="a kind (robustkd list detectors) and its parameters", examples=["feature-squeezing"]
    )
    false_positive_rate: float = Field(
        0.05, ge=0, lt=1, description="alpha: the share of the clean validation images that may be rejected"
    )


class WithDetector(Defense):
    """A model of the campaign, and a detector that rejects inputs."""

    Params = WithDetectorParams
    source = "Carlini & Wagner 2017, arXiv:1705.07263; Tramer 2022, arXiv:2107.11630"

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        return others[self.params.base] - {"members"}

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Let the detector learn from the training images, and set its threshold by the validation images.

        Raises:
            UsageError: the base is no classifier of images.
            DataError: there are no validation images.
        """
        p = self.params
        base = context.target(p.base, ImageTarget)
        others: dict[str, BaseTarget] = {name: context.target(name) for name in target_references(p.detector.params)}
        with seeded_init(context, "detector"):
            target = DetectingTarget(base, p.detector, others).to(context.device)
        target.module.eval()
        with frozen(base.module):
            p.detector.make().fit(target.scorer, base, context)
        target.module.eval()
        images = torch.from_numpy(context.validation.unit())
        scores = [target.scores(part.to(context.device)) for part in images.split(_BATCH)]
        target.calibrate(torch.cat(scores) if scores else torch.zeros(0), p.false_positive_rate)
        return target
