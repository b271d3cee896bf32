"""PeerAiD: a student and a peer that is trained along with it, on the student's adversarial examples and not on its own.

    x~ = argmax_{x' in ball(x)} KL(P(x) || S(x'))                                     from x + 0.001 * N(0, 1)
    min_P  gamma_1 * CE(P(x~), y) + gamma_2 * KL(S(x~) || P(x~))
    min_S  l_1 * CE(S(x~), y) + l_2 * tau^2 * KL(P(x~; tau) || S(x~; tau)) + l_3 * tau^2 * KL(S(x; tau) || S(x~; tau))

A teacher that was trained on its own adversarial examples errs on another network's. The peer need not be robust itself: it only
knows what this student's examples are. Only the student is deployed. ``peer_examples: own`` trains the peer on its own adversarial
examples, the control.

Good where no robust teacher exists: nothing is trained beforehand. It costs a second training beside the student's.

Source: Jung, Jang, Song, Lee: PeerAiD: improving adversarial distillation from a specialized peer tutor (CVPR 2024,
arXiv:2403.06668); main.py, attack_function.py and training_scripts/ of github.com/jaewonalive/PeerAiD were read. Weights, tau = 5,
300 epochs and the KL averaged over batch and classes are those of their CIFAR-10 run. Their code lets the peer's second term reach the
student's weights as well, since the student's answer is not detached in it; here it does not, as in the paper.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from robustkd.contracts import FitContext, ModelName, Target, ThreatModel
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import (
    AdversarialRecipe,
    Adversary,
    AWPParams,
    Minibatch,
    Teacher,
    TeacherInner,
    TrainedUnderAttack,
    TrainParams,
    fresh_network,
    kl,
    train,
)
from robustkd.defenses.training.adversarial import AWP, KLReduction
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork
from robustkd.defenses.training.inner import InnerLoss, StartParam
from robustkd.defenses.training.optim import base_lr, optimiser
from robustkd.defenses.training.params import EpochsParam, WeightDecayParam
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class PeerAiDInner(TeacherInner):
    """The inner maximisation with the paper's loss and start; the peer is the teacher."""

    start: StartParam = "noise"
    loss: InnerLoss = Field(
        "kl-teacher-clean", description="what is climbed: cross entropy, or a divergence of student and peer"
    )


class PeerAiDParams(TrainParams):
    """Parameters of ``peeraid``. The paper trains on CIFAR with ``augment: crop-flip``."""

    milestone_fractions: ClassVar[tuple[float, ...]] = (214 / 300, 259 / 300, 284 / 300)

    epochs: EpochsParam = 300
    weight_decay: WeightDecayParam = 2e-4
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    peer: ModelName | None = Field(None, description="the peer's architecture; default the student's")
    peer_params: ModelParams = Field(default_factory=dict)
    inner: PeerAiDInner = Field(default_factory=PeerAiDInner, description="the examples to train on")
    awp: AWPParams | None = Field(None, description=AWP)
    swa: float | None = Field(
        214 / 300, ge=0, lt=1, description="deploy the mean of the weights after each epoch, from this share of the epochs on"
    )
    peer_examples: Literal["student", "own"] = Field("student", description="whose adversarial examples the peer is trained on")
    temperature: float = Field(5.0, gt=0, description="tau of the student's divergences")
    label_weight: float = Field(0.0, ge=0, description="l_1, of the student's cross entropy")
    peer_weight: float = Field(1.0, ge=0, description="l_2, of the divergence from the peer")
    own_weight: float = Field(1.0, ge=0, description="l_3, of the divergence from the student's own answer on x")
    peer_label_weight: float = Field(1.0, ge=0, description="gamma_1, of the peer's cross entropy")
    peer_student_weight: float = Field(0.1, ge=0, description="gamma_2, of the peer's divergence from the student")
    kl_reduction: KLReduction = Field("batch-and-class", description="as the authors' code: KL / K; batch is the definition")

    @model_validator(mode="after")
    def _follows_the_student(self) -> PeerAiDParams:
        if self.peer is None and self.peer_params:
            raise ValueError("peer_params are of a peer of another architecture: name it by peer, or leave them out")
        return self


class PeerAiDRecipe(AdversarialRecipe):
    """The student's loss, and the peer's own training.

    Args:
        peer: P, whose weights are trained.
        adversary, threat, params: see ``AdversarialRecipe``.
    """

    supports_data_parallel = False  # the peer's BatchNorm would learn from one process's share alone
    auxiliary: AuxiliaryNetwork

    def __init__(self, peer: ClassifierTarget, adversary: Adversary, threat: ThreatModel, params: PeerAiDParams) -> None:
        super().__init__(adversary, threat, params)
        self.peer = peer
        self.auxiliary = AuxiliaryNetwork(peer.module, base_lr(params), optimiser(params, peer.module.parameters()))

    def start_epoch(self, epoch: int, decay: float) -> None:
        """The peer's rate falls as the student's."""
        self.auxiliary.lr = base_lr(self.params) * decay

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~ and P(x~), from before the peer's step on it."""
        self.peer.module.eval()
        x_adv = self.adversary(target, batch, Teacher(self.peer))
        p, seen = self.params, x_adv
        if p.peer_examples == "own":
            seen = self.adversary(self.peer, batch, Teacher(self.peer))
        self.peer.module.train()
        with torch.no_grad():
            followed = target(seen)
        answer = self.peer(seen)
        loss = p.peer_label_weight * F.cross_entropy(answer, batch.y)
        loss = loss + p.peer_student_weight * kl(followed, answer, reduction=p.kl_reduction)
        taught = answer.detach() if seen is x_adv else Teacher(self.peer)(x_adv)
        self.auxiliary.minimise(loss, batch.all_reduce)
        return x_adv, taught

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """l_1 * CE(S(x~), y) + tau^2 * (l_2 * KL(P(x~; tau) || S(x~; tau)) + l_3 * KL(S(x; tau) || S(x~; tau)))."""
        x_adv, soft = inner
        p, tau, logits = self.params, self.params.temperature, target(x_adv)
        divergence = partial(kl, teacher_temperature=tau, student_temperature=tau, reduction=p.kl_reduction)
        losses = {
            "loss_peer": p.peer_weight * tau**2 * divergence(soft, logits),
            "loss_own": p.own_weight * tau**2 * divergence(target(batch.x), logits),
            "loss_label": p.label_weight * F.cross_entropy(logits, batch.y),
        }
        return sum(losses.values(), logits.new_zeros(())), losses


class PeerAiD(TrainedUnderAttack):
    """A student of a peer that learns the student's adversarial examples along with it."""

    Params = PeerAiDParams
    source = "Jung et al. 2024 (CVPR), arXiv:2403.06668"

    def fit(self, context: FitContext) -> Target:
        """Train both; the student's epoch is chosen as ``selection`` says."""
        p = self.params
        student = fresh_network(context, p.student, p.student_params)
        model, params = (p.student, p.student_params) if p.peer is None else (p.peer, p.peer_params)
        peer = fresh_network(context, model, params, role="peer").to(context.device)
        recipe = PeerAiDRecipe(peer, Adversary.under(p.inner, context.threat), context.threat, p)
        return train(context, student, recipe, p)
