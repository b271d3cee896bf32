"""The contract of attacks on classifiers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from robustkd.contracts.capability import Capabilities, Capability
from robustkd.contracts.data import Inputs, Modality
from robustkd.contracts.errors import PluginError, TargetError
from robustkd.contracts.holder import TargetHolder
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Placing
from robustkd.contracts.target import Target
from robustkd.contracts.threat import Goal, Norm, Space, ThreatModel
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.contracts.data import Arrays
    from robustkd.contracts.target import BaseTarget

AttackKind = Literal["fixed-budget", "minimum-norm"]
"""Whether an attack looks for any adversarial input inside a budget, or for the closest one."""
Ranges = Literal["any", "one"]
"""Whether the valid ranges of the inputs' features may differ from one another."""
LossFamily = Literal["cross-entropy", "margin", "none", "unknown"]
"""The kind of loss that an attack climbs; `none` where it climbs no loss."""


@dataclass(frozen=True)
class Batch:
    """The samples an attack is given.

    Another batch is made from this one by ``select``, ``to`` or ``dataclasses.replace``, so that no field is lost.

    Attributes:
        inputs: (B, *shape) inside the target's bounds.
        labels: (B,) int64, the true classes.
        index: (B,) int64, each sample's position in its data set (it seeds the sample's random stream).
        logits: (B, K) the target's output on ``inputs``, when the caller has it already: it saves a forward pass.
        goals: (B,) int64, the classes to reach, for a targeted threat model.
        eps: (B,) a budget for each sample, none above the threat model's, which it takes the place of.
        draws: (B, R) int64, of a target that draws random numbers, the class that it predicts for ``inputs`` on each of R draws;
            ``logits`` are then the mean over the draws. None of a target that draws none.
        movable: (B, ..) bool, broadcasts over ``inputs``: the only values that may change, where the threat model says ``where``
            and does not leave it to the attacker (``placed``).
        rejection: of a target that ``rejects``, the number of the output that says so; None of others.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    logits: Tensor | None = field(default=None, kw_only=True)
    goals: Tensor | None = field(default=None, kw_only=True)
    eps: Tensor | None = field(default=None, kw_only=True)
    draws: Tensor | None = field(default=None, kw_only=True)
    movable: Tensor | None = field(default=None, kw_only=True)
    rejection: int | None = field(default=None, kw_only=True)

    def budget(self, threat: ThreatModel) -> Tensor:
        """(B,) each sample's eps, in the type of the inputs."""
        if self.eps is not None:
            return self.eps
        return self.inputs.new_full((len(self.inputs),), threat.eps)

    def placed(self, threat: ThreatModel, seed: int) -> Batch:
        """The batch with what may change of each sample, where the threat model limits it and the attacker does not choose it.

        A region that chance places is a function of ``seed`` and each sample's position alone: the same for all attacks.
        """
        if threat.where is None or threat.where.placing == "chosen" or self.movable is not None:
            return self
        rng = SampleRng(seed, self.index, "where")
        return replace(self, movable=threat.where.drawn(self.inputs.shape[1:], rng))

    def untouched(self, adversarial: Tensor, threat: ThreatModel) -> Tensor:
        """(B,) bool, whether (B, *shape) ``adversarial`` differs from the inputs nowhere but where the threat model allows it.

        Raises:
            UsageError: the threat model limits it, and the batch is not ``placed``.
        """
        if threat.where is None:
            return torch.ones(len(adversarial), dtype=torch.bool, device=adversarial.device)
        return threat.where.kept(adversarial - self.inputs, self.movable)

    def reached(self, predicted: Tensor) -> Tensor:
        """(B,) bool: whether these (B,) classes are what the attacker wants: the goals, or without goals any class but the label. To be
        rejected is neither.
        """
        if self.goals is not None:
            return predicted == self.goals
        wrong = predicted != self.labels
        return wrong if self.rejection is None else wrong & (predicted != self.rejection)

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, rows: Tensor | slice) -> Batch:
        """The given rows (indices, mask or slice), with everything that is known of them."""
        return self._each(lambda values: values[rows])

    def to(self, device: torch.device | str) -> Batch:
        """A copy of the batch whose tensors are on ``device``."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "rejection"}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if value is not None}
        return replace(self, **changed)


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, sample by sample.

    The platform does not take an attack's word for it: it measures the distance and runs the target on
    ``adversarial`` again before anything is counted as a success.

    Attributes:
        adversarial: (B, *shape), the best input found. Where the attack failed this is its best try inside the
            budget (fixed budget) or the clean input (minimum norm); never zeros.
        success: (B,) bool, whether the attack holds it for adversarial.
        forwards: (B,) int64, forward passes spent on each sample, exactly.
        backwards: (B,) int64, backward passes likewise.
        loss: (B,) the attack's own loss at ``adversarial`` (larger is more adversarial), or None.
        queries_to_success: (B,) int64, the forward passes after which a point within the budget was first adversarial, 0 where none
            was. None of an attack that stops there: they are its ``forwards``.
        skipped: (B,) int64, the forward and backward passes that were not made because each would have repeated an earlier one; None of
            an attack that makes them all.
        extras: further tensors with a row for each sample. Under a budget of transforms, ``parameters`` are those of each sample's own.
    """

    adversarial: Tensor
    success: Tensor
    forwards: Tensor
    backwards: Tensor
    loss: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    queries_to_success: Tensor | None = None
    skipped: Tensor | None = None


@dataclass(frozen=True)
class Traits:
    """What is true of one attack, with its parameters.

    Attributes:
        kind: a fixed-budget attack looks for any adversarial input inside ``threat.eps``; a minimum-norm attack looks
            for the closest one in its own norm and is judged against ``threat`` afterwards.
        norms: for a fixed-budget attack the norms it can respect, for a minimum-norm attack the one it minimises.
        goals: the goals that it can have.
        space: what it changes.
        inputs: the shapes of input that it can take.
        ranges: `one` where it knows one range of valid values for all features.
        gradients: whether it differentiates the target (a black-box attack does not).
        iterative: whether it takes more than one step (what the one-step attacks are compared against).
        learns: whether ``fit`` must come before ``run`` (a universal perturbation, a generator).
        averages: whether it attacks the target's mean over several passes, as a target that draws random numbers asks for.
        needs: what it asks of its target, gradients apart.
        loss_family: the kind of loss it climbs; lets checks compare attacks that differ in the loss alone.
        regions: the threat models with a ``where`` that it respects: of a region that is ``given`` (``Batch.movable``), of one that
            it chooses itself, or of both; by default of none.
    """

    kind: AttackKind
    norms: tuple[Norm, ...]
    goals: tuple[Goal, ...]
    space: Space
    inputs: Inputs
    gradients: bool
    iterative: bool
    learns: bool
    averages: bool
    needs: Capabilities
    loss_family: LossFamily
    regions: tuple[Placing, ...] = ()
    ranges: Ranges = "any"


class BaseAttack(TargetHolder, ABC):
    """What every attack has: parameters, and what it can be used for. An attack derives from ``Attack`` or ``PromptAttack``.

    A subclass sets the class attributes that are true of it. Where they depend on the parameters, it overrides ``traits``.
    It must leave the target as it found it, take randomness from ``rng`` alone, and treat every sample on its own: the result
    for a sample must not depend on the batch it came in.

    Attributes:
        modalities: what it attacks.
        kind, norms, goals, space, inputs, ranges, gradients, iterative, learns, averages, needs, regions: see ``Traits``.
        control: whether it searches for nothing, and is there for others to be compared with at the same number of attempts.
    """

    modalities: ClassVar[tuple[Modality, ...]]
    kind: ClassVar[AttackKind] = "fixed-budget"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    goals: ClassVar[tuple[Goal, ...]] = ("untargeted",)
    space: ClassVar[Space]
    inputs: ClassVar[Inputs] = "any"
    ranges: ClassVar[Ranges] = "any"
    gradients: ClassVar[bool] = True
    iterative: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    needs: ClassVar[Capabilities]
    regions: ClassVar[tuple[Placing, ...]] = ()
    control: bool = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if former := [name for name in ("own_threat", "judged_under") if name in vars(cls)]:
            raise PluginError(
                f"attack {cls.__name__} defines '{former[0]}', which nothing asks for any more",
                fix="define threat_for(self, threat): it returns the threat model that the result is judged under",
            )
        if "images_only" in vars(cls):
            raise PluginError(
                f"attack {cls.__name__} defines 'images_only', which nothing asks for any more", fix="define inputs = 'images'"
            )

    @property
    def loss_family(self) -> LossFamily:
        """The kind of loss it climbs; lets checks compare attacks that differ in the loss alone."""
        return "unknown"

    @property
    def traits(self) -> Traits:
        """What is true of this attack: what its class declares, unless it depends on the parameters."""
        return Traits(**{part.name: getattr(self, part.name) for part in fields(Traits)})

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """The threat model that its result is judged under where ``threat`` is asked for; for most attacks the same."""
        return threat

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why this attack cannot be used under ``threat``; None when it can."""
        space = self.traits.space
        return None if threat.space == space else f"attacks {space}, the threat model is about {threat.space}"

    def missing(self, capabilities: Capabilities) -> list[Capability]:
        """What it needs and a target with these capabilities does not have, sorted; empty where it can be used on it."""
        traits = self.traits
        passes: Capabilities = frozenset({"gradients"} if traits.gradients else ())
        return sorted((traits.needs | passes) - capabilities)

    def require(self, target: BaseTarget) -> None:
        """Raise TargetError unless ``target`` has what the attack needs."""
        if missing := self.missing(target.capabilities):
            raise TargetError(
                f"attack '{self.name}' needs {' and '.join(missing)}, which this target ({target.kind}) does not have",
                fix="use an attack that does without, or declare it in the target's `capabilities` if it has it",
            )


class Attack(BaseAttack):
    """An attack on a classifier: it is run on arrays, and what it returns is judged."""

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    space: ClassVar[Space] = "pixels"
    needs: ClassVar[Capabilities] = frozenset({"logits"})
    knows_rejection: bool = True
    """Whether it looks for an input that the target gets wrong and accepts, where the target ``rejects`` inputs: so does whatever asks the
    engine of robustkd's attacks, or ``Batch.reached``. One that knows the classifier alone, or goes by other models, does not."""
    uses_surrogates: bool = False
    """Whether it takes the declared surrogates of stages without a useful gradient."""

    def require(self, target: BaseTarget) -> None:
        """Raise TargetError unless ``target`` has what the attack needs, and takes inputs of a shape that it can attack."""
        super().require(target)
        assert isinstance(target, Target)  # nothing else has logits
        if reason := self.unfit(target.input_shape, one_range=isinstance(target.bounds[0], int | float)):
            raise TargetError(
                f"attack '{self.name}' {reason}",
                fix="use an attack on inputs of any shape and range, such as pgd, apgd-ce or fab, or change them in front of the model",
            )

    def unfit(self, shape: Sequence[int], *, one_range: bool = True) -> str | None:
        """Why this attack cannot take inputs of this shape; None when it can.

        Args:
            shape: of one input.
            one_range: whether all features have the same range of valid values.
        """
        if self.traits.inputs == "images" and len(shape) != 3:
            return f"is for images (C, H, W), and the inputs have the shape {tuple(shape)}"
        if self.traits.ranges == "one" and not one_range:
            return "knows one range for all features, and the bounds of these inputs differ from feature to feature"
        return None

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why this attack cannot be used under ``threat``: for its space, its goal, its norm or its region."""
        traits = self.traits
        if reason := super().refusal(threat):
            return reason
        if threat.goal not in traits.goals:
            return f"cannot be {threat.goal} (it can be {_listing(traits.goals)})"
        if traits.space == "pixels" and traits.kind == "fixed-budget" and threat.norm not in traits.norms:
            return f"cannot respect a budget in {threat.norm} (it can in {_listing(traits.norms)})"
        if threat.where is not None and threat.where.placing not in traits.regions:
            if traits.regions == ("given",):
                return f"cannot choose a place, and the threat model is about pixels {threat.where}"
            return f"cannot be kept to a part of the image, and the threat model is about pixels {threat.where}"
        return None

    def minimises(self, threat: ThreatModel) -> Norm:
        """The norm that a minimum-norm attack minimises when it is judged under ``threat``."""
        return self.traits.norms[0]

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Attack:
        """Learn from ``data``; returns the attack that can be run. Called for each target and each budget, if it ``learns``.

        Args:
            target: will be attacked later, on other samples.
            data: training data; the attacked samples are not among them.
            threat: the budget.
            rng: a stream for each sample of ``data``, on the device of the attack.
        """
        return self

    @abstractmethod
    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Attack the samples of ``batch``; B rows in, B rows out, in the same order."""


def _listing(words: Iterable[str]) -> str:
    return ", ".join(words)
