"""The detector contract: what accepts or rejects an input of a classifier, or a prompt, before it is answered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from typing_extensions import TypeVar

from robustkd.contracts.data import Modality
from robustkd.contracts.defense import FitContext
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.target import BaseTarget, Target

if TYPE_CHECKING:
    from torch import nn

Watched = TypeVar("Watched", bound=BaseTarget, default=Target, contravariant=True)


class Detector(Plugin, ABC, Generic[Watched]):
    """A detector: parameters, ``build`` and ``fit``. One of prompts derives from ``Detector[GenerativeTarget]``.

    What it builds is a *scorer*, a module whose scores are larger where an input is less like clean ones. The scorer does not know where
    to draw the line: the defense around it calibrates the threshold on clean validation data, to the share of false alarms that is asked
    for. It works in evaluation mode, scores each input on its own and draws no random numbers.

    - Of images, ``scorer(inputs, logits)`` maps (B, *shape) and the classifier's (B, K) answers to them to (B,) scores. An attack
      differentiates it: a stage without a useful gradient declares a backward surrogate (see ``Target.module``).
    - Of text, ``scorer(texts)`` maps N prompts to (N,) scores on the CPU, NaN of one that it cannot read.

    Parameters may refer to other defenses (``TargetRef``), whose targets it may ask.

    Attributes:
        modalities: what it looks at.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)

    @abstractmethod
    def build(self, model: Watched, others: Mapping[str, BaseTarget]) -> nn.Module:
        """The scorer with the weights and buffers that it will have, before it has learnt; it may keep and ask both arguments.

        Initialisation draws from torch's global generator, which the caller has seeded.

        Args:
            model: what is watched, in evaluation mode; it is to be left as found.
            others: the targets of the defenses that the parameters refer to, by name.

        Raises:
            TargetError: it cannot watch this model.
        """

    def fit(self, scorer: nn.Module, model: Watched, context: FitContext[Any]) -> None:
        """Learn from ``context.train``, in place, what ``build`` left open; there may be nothing. The validation data are left for the
        threshold.
        """
