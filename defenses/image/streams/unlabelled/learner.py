"""What defenses share that learn the known classes from labelled and unlabelled images, some of which are of other classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from robustkd.contracts import Arrays, FitContext, Target
from robustkd.defenses.image.streams.unlabelled.split import Divided, divided_by_labels
from robustkd.defenses.training import OptionallyAdversarial, fresh_network
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.targets import ClassifierTarget
from robustkd.targets.stream import StreamTarget


class UnlabelledLearner(OptionallyAdversarial):
    """A network that learns from labelled and unlabelled images, and answers the known classes alone. A method says in which stages.

    Attributes:
        TEACHER: whose first weights a network has that learns without labels.
    """

    TEACHER: ClassVar[str] = "teacher"

    @property
    def role(self) -> str:
        """Whose first weights the student has."""
        return "student"

    @abstractmethod
    def stages(self, context: FitContext[Arrays], student: ClassifierTarget, divided: Divided) -> Iterator[Stage]:
        """The trainings in order; the last ones are the student's."""

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Train all stages; the student's epoch is chosen by validation images of the known classes.

        Raises:
            UsageError: there are not as many classes or images as the parameters ask for.
        """
        p, divided = self.params, divided_by_labels(context, self.params)
        student = fresh_network(context, p.model, p.model_params, role=self.role)
        run_stages(context, self.stages(context, student, divided))
        target = StreamTarget([student], [divided.known])
        target.module.eval()
        return target
