"""Tampered answers: does a verifier notice that the class of an answer was changed, and can it be told which class it was?

    nearest     p' = p with its two largest swapped                         p the probabilities of the watched model
    any class   p' = p with its largest and another one, drawn at random, swapped
    given back  the class, but for the one that p' names, with the largest log p' + log q        q the verifier's probabilities

This is what verifiers were made against: a server answers wrongly on purpose, of images that stay as they are. An answer is rejected where
the detector's score of it is above the threshold that the defense has.

Good beside the attacks on images, which ask something else of such a detector. Controls: the honest answers, whose rejections are false
alarms; ``by the verifier``, the class, but for the one that p' names, with the largest q; 1 / (K - 1), the chance of a guess; a detector
whose verifier is no student.

From the authors: tampered answers, and a re-classifier that gives their class back. From us: both ways to tamper, in the place of a
trained generator, and the rule of the re-classifier, in the place of a trained one.

Source: Kumar et al.: Fides: a generative framework for result validation of outsourced machine learning workloads via TEE (2023),
arXiv:2304.00083; read in the abstract only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from robustkd.analyses.members import parts
from robustkd.contracts import Analysis, Batch, Table, Target, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.detection import auroc
from robustkd.targets.detecting import DetectingTarget
from robustkd.targets.verified_answers import ScoresAnswers, tampered

if TYPE_CHECKING:
    from torch import Tensor


class TamperedAnswers(Analysis):
    """How many tampered answers a verifier notices, and how many of their classes are given back."""

    source = "Kumar et al. 2023, arXiv:2304.00083"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for each way to tamper; ``metrics``: the same, and the false alarms.

        Raises:
            TargetError: the defense has no detector, or one that is no verifier.
        """
        watched, scorer = _verifier(target)
        with torch.no_grad():
            both = [(watched.base(part.inputs), scorer.verifier(part.inputs)) for part in parts(batch)]
        p, q = (torch.cat(each).cpu().double().softmax(1) for each in zip(*both, strict=True))
        threshold = float(watched.module.get_buffer("threshold"))
        score = partial(_scores, scorer, batch.inputs.device)
        honest, own = score(p, q), p.argmax(1)
        ways = {"nearest": tampered(p), "any class": moved(p, SampleRng(seed, batch.index.cpu(), "tampered-answers"))}
        values = []
        for answer in ways.values():
            scores = score(answer, q)
            guesses = reclassified(answer, q), without(q, answer.argmax(1)).argmax(1)
            shares = [found.double().mean() for found in (scores > threshold, *(guess == own for guess in guesses))]
            values.append([*map(float, shares), auroc(scores.numpy(), honest.numpy()) or 0.0])
        false_alarms = float((honest > threshold).double().mean())
        names = ("rejected", "given_back", "by_the_verifier", "auroc")
        metrics = {
            f"{name}_{way.replace(' ', '_')}": value
            for way, row in zip(ways, values, strict=True)
            for name, value in zip(names, row, strict=True)
        }
        return Table(
            caption=f"of {len(p)} answers to clean images, given another class in two ways: those that are rejected (of the honest "
            f"answers {false_alarms:.3g}), and those whose class is given back, by answer and verifier together and by the verifier "
            f"alone (a guess: {1 / (p.shape[1] - 1):.3g})",
            rows=list(ways),
            columns=["rejected", "class given back", "by the verifier", "AUROC"],
            values=values,
            metrics={"false_alarms": false_alarms, **metrics},
        )


def moved(p: Tensor, rng: SampleRng) -> Tensor:
    """(B, K) probabilities, the largest swapped with that of another class, drawn at random for each sample."""
    first, rows = p.argmax(1), torch.arange(len(p))
    other = (first + 1 + rng.integers((), p.shape[1] - 1)) % p.shape[1]
    swapped = p.clone()
    swapped[rows, first], swapped[rows, other] = p[rows, other], p[rows, first]
    return swapped


def reclassified(p: Tensor, q: Tensor) -> Tensor:
    """(B,) the class of answers that were tampered with, which is not the one that ``p`` names: of the others, that which both
    answers together name, by the largest sum of log-probabilities.
    """
    both = p.clamp_min(1e-6).log() + q.clamp_min(1e-6).log()
    return both.scatter(1, p.argmax(1, keepdim=True), -torch.inf).argmax(1)


def without(p: Tensor, classes: Tensor) -> Tensor:
    """(B, K) probabilities, with 0 at (B,) classes."""
    return p.scatter(1, classes[:, None], 0.0)


def _verifier(target: Target) -> tuple[DetectingTarget, ScoresAnswers]:
    """The watched model, and the scorer of its answers."""
    if not isinstance(target, DetectingTarget) or not isinstance(target.scorer, ScoresAnswers):
        raise TargetError(
            "tampered-answers asks a detector that compares answers with a verifier's",
            fix="list defenses {kind: with-detector, detector: {kind: fides, ..}} in its 'defenses'",
        )
    return target, target.scorer


def _scores(scorer: ScoresAnswers, device: torch.device, answer: Tensor, q: Tensor) -> Tensor:
    """(B,) on the CPU: the scores of (B, K) answers, beside the verifier's (B, K) own."""
    with torch.no_grad():
        return scorer.of_answers(answer.to(device, torch.float32), q.to(device, torch.float32)).cpu()
