"""How data of one modality are evaluated: everything in which images, text and text-to-image differ before a result is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from robustkd.contracts import (
    Arrays,
    Attack,
    BaseAttack,
    BaseTarget,
    Batch,
    GenerativeTarget,
    Judge,
    Modality,
    Precision,
    PromptAttack,
    PromptBatch,
    Prompts,
    Target,
    TargetError,
    ThreatModel,
)
from robustkd.contracts.random import SampleRng, seed_torch
from robustkd.data import Splits
from robustkd.evaluation.image_changes import CHANGE_KEYS, change_problem
from robustkd.evaluation.images import (
    BATCH_SIZE,
    SHARD,
    Evaluation,
    Shards,
    deferred_batch,
    evaluate_attack,
    usual_batch_size,
    with_clean_logits,
)
from robustkd.evaluation.judging import Outcome
from robustkd.evaluation.prompts import SHARD as REQUEST_SHARD
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.lazy import torch

Judges = Callable[[], Mapping[str, Judge]]
"""The judges, loaded when they are needed; the first one decides."""


@dataclass(frozen=True)
class Conditions:
    """What an evaluation is given beside target, attack, samples and threat model.

    Attributes:
        curve: further eps.
        train: what an attack that learns is fitted on.
        batch_size: the most samples that the target is called with at once; None for the default of the modality.
        rows_kept: how many perturbed inputs of so many bytes each are kept.
        shards: where finished parts are kept, by the number of perturbed inputs that are.
        certified: whether the first samples, one after the other, are proved to be robust; of images.
    """

    seed: int
    judges: Judges
    num_classes: int
    curve: Sequence[float]
    train: Arrays | Prompts | None
    precision: Precision
    batch_size: int | None
    rows_kept: Callable[[int], int]
    shards: Callable[[int], Shards]
    certified: Sequence[bool] = ()


class ModalityEvaluation(ABC):
    """One modality.

    Attributes:
        name: of the modality.
        needs_judges: whether a judge says what is a success.
        with_precision: whether gradients can be taken in another precision.
    """

    needs_judges: ClassVar[bool]
    with_precision: ClassVar[bool]

    def __init__(self, name: Modality) -> None:
        self.name = name

    @abstractmethod
    def threat_problem(self, given: Collection[str]) -> tuple[str, str] | None:
        """What is wrong with a threat block with these keys, and the fix."""

    @abstractmethod
    def harmless(self, data: Splits[Any]) -> int | None:
        """How many harmless requests there are; None for data without such."""

    @abstractmethod
    def size(self, data: Splits[Any]) -> str:
        """How many samples are attacked, and of what."""

    @abstractmethod
    def prepare(
        self,
        target: BaseTarget,
        data: Splits[Any],
        judges: Judges,
        *,
        name: str,
        seed: int,
        device: torch.device,
        batch_size: int | None,
    ) -> Batch | PromptBatch:
        """The test samples with what the target answers unattacked.

        Args:
            name: what an error calls the defense.
            batch_size: see ``Conditions``.

        Raises:
            TargetError: the target is of another modality, or it failed.
        """

    @abstractmethod
    def evaluate(
        self, target: BaseTarget, attack: BaseAttack, batch: Batch | PromptBatch, threat: ThreatModel, under: Conditions
    ) -> Evaluation[Outcome]:
        """Attack every sample of ``batch``, which ``prepare`` made."""

    def checked(self, batch: Batch | PromptBatch, threat: ThreatModel, *, seed: int, num_classes: int) -> Batch | PromptBatch:
        """What the checks are given of ``batch``, which ``prepare`` made."""
        return batch

    def usual_batch_size(self, target: BaseTarget, batch: Batch | PromptBatch) -> int:
        """How many samples the target is called with at once where nobody says it."""
        return BATCH_SIZE

    @abstractmethod
    def clean(self, clean_share: np.ndarray, benign: Sequence[bool] | None) -> np.ndarray:
        """What the clean accuracy is the mean of, (M,) bool or in [0, 1].

        Args:
            clean_share: (N,) of an attack's outcome.
            benign: which harmless requests were complied with; None where the data have none.
        """


class ImageEvaluation(ModalityEvaluation):
    """Images that a classifier gets."""

    needs_judges = False
    with_precision = True

    def threat_problem(self, given: Collection[str]) -> tuple[str, str] | None:
        """A norm and eps are needed, or a change of the image."""
        if CHANGE_KEYS & set(given):
            return change_problem(given)
        if "attempts" in given:
            return "attempts are for models that are asked", "of images, give 'norm' and 'eps'"
        return None if "eps" in given else ("this key is missing: eps", "give 'norm' and 'eps'")

    @override
    def harmless(self, data: Splits[Any]) -> int | None:
        return None

    @override
    def size(self, data: Splits[Any]) -> str:
        return f"{len(data.test)} test samples"

    @override
    def prepare(
        self,
        target: BaseTarget,
        data: Splits[Any],
        judges: Judges,
        *,
        name: str,
        seed: int,
        device: torch.device,
        batch_size: int | None,
    ) -> Batch:
        if not isinstance(target, Target):
            raise _other_modality(f"'{name}' draws or writes, and the data are images")
        batch = deferred_batch(data.test, index=data.test_index, device=device)
        return with_clean_logits(target, batch, batch_size or usual_batch_size(target, batch))

    def evaluate(
        self, target: BaseTarget, attack: BaseAttack, batch: Batch | PromptBatch, threat: ThreatModel, under: Conditions
    ) -> Evaluation[Outcome]:
        """Perturb the images; a large batch in shards."""
        assert isinstance(target, Target)
        assert isinstance(attack, Attack)
        assert isinstance(batch, Batch)
        batch = with_goals(batch, threat, under.seed, under.num_classes)
        kept = min(len(batch), under.rows_kept(batch.inputs[0].nbytes))
        return evaluate_attack(
            target,
            attack,
            batch,
            threat,
            seed=under.seed,
            curve=under.curve,
            batch_size=under.batch_size or usual_batch_size(target, batch),
            fit_data=under.train if attack.traits.learns and isinstance(under.train, Arrays) else None,
            kept=kept,
            shards=under.shards(kept) if len(batch) > SHARD else None,
            precision=under.precision,
            certified=under.certified,
        )

    def checked(self, batch: Batch | PromptBatch, threat: ThreatModel, *, seed: int, num_classes: int) -> Batch:
        """The images with the classes that a targeted attack leads to."""
        assert isinstance(batch, Batch)
        return with_goals(batch, threat, seed, num_classes)

    def usual_batch_size(self, target: BaseTarget, batch: Batch | PromptBatch) -> int:
        """Fewer of large images and networks on the CPU."""
        assert isinstance(target, Target)
        assert isinstance(batch, Batch)
        return usual_batch_size(target, batch)

    def clean(self, clean_share: np.ndarray, benign: Sequence[bool] | None) -> np.ndarray:
        """The images that were classified rightly before the attack, or on what share of the draws."""
        return clean_share


class PromptEvaluation(ModalityEvaluation):
    """Requests that are put to a generative model."""

    needs_judges = True
    with_precision = False

    def threat_problem(self, given: Collection[str]) -> tuple[str, str] | None:
        """A number of attempts is needed, and nothing else."""
        if "attempts" not in given:
            return "this key is missing: attempts", "say how many answers to each request may be judged, such as {attempts: 20}"
        others = sorted(set(given) - {"attempts"})
        return (f"{', '.join(others)}: prompts have no such budget", "give 'attempts' alone") if others else None

    def harmless(self, data: Splits[Any]) -> int | None:
        """Those whose answers tell how useful the model is."""
        return len(data.benign) if data.benign else 0

    def size(self, data: Splits[Any]) -> str:
        """The numbers of forbidden and harmless requests."""
        return f"{len(data.test)} forbidden requests, {len(data.benign) if data.benign else 0} harmless"

    def prepare(
        self,
        target: BaseTarget,
        data: Splits[Any],
        judges: Judges,
        *,
        name: str,
        seed: int,
        device: torch.device,
        batch_size: int | None,
    ) -> PromptBatch:
        """The requests with the answers to them, judged."""
        if not isinstance(target, GenerativeTarget):
            raise _other_modality(f"'{name}' answers no requests, and the data are prompts")
        seed_torch(seed)
        return prepare(target, data.test, data.test_index, judges(), benign=data.benign, device=device, batch_size=batch_size)

    def evaluate(
        self, target: BaseTarget, attack: BaseAttack, batch: Batch | PromptBatch, threat: ThreatModel, under: Conditions
    ) -> Evaluation[Outcome]:
        """Put the attempts of an attack to the model, and judge its answers."""
        assert isinstance(target, GenerativeTarget)
        assert isinstance(batch, PromptBatch)
        assert isinstance(attack, PromptAttack)
        found = evaluate_prompt_attack(
            target,
            attack,
            batch,
            threat,
            under.judges(),
            seed=under.seed,
            batch_size=under.batch_size,
            fit_data=under.train if attack.traits.learns and isinstance(under.train, Prompts) else None,
            shards=under.shards(len(batch)) if len(batch) > REQUEST_SHARD else None,
        )
        kept = min(len(found.adversarial), under.rows_kept(found.adversarial[:1].nbytes))
        clean = None if found.clean is None else found.clean[:kept]
        return replace(found, adversarial=found.adversarial[:kept], clean=clean)

    def clean(self, clean_share: np.ndarray, benign: Sequence[bool] | None) -> np.ndarray:
        """The harmless requests that were complied with, of which the data may have none."""
        return np.array(benign or (), dtype=bool)


_EVALUATIONS: Mapping[Modality, ModalityEvaluation] = {
    "images": ImageEvaluation("images"),
    "text": PromptEvaluation("text"),
    "text-to-image": PromptEvaluation("text-to-image"),
}


def evaluation_of(modality: Modality) -> ModalityEvaluation:
    """How data of this modality are evaluated."""
    return _EVALUATIONS[modality]


def _other_modality(what: str) -> TargetError:
    return TargetError(
        f"defense {what}", fix="keep it out of the attacks and analyses by the matrix: it is there for others to use"
    )


def with_goals(batch: Batch, threat: ThreatModel, seed: int, num_classes: int) -> Batch:
    """Under a targeted threat model each sample's goal: one of the wrong classes, drawn from the sample's own stream."""
    if threat.goal != "targeted":
        return batch
    offset = 1 + SampleRng(seed, batch.index, "goals").integers((), num_classes - 1)
    return replace(batch, goals=(batch.labels + offset) % num_classes)
