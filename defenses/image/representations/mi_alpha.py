"""MI-alpha: the student's features share information with the teacher's, by a bound between two known ones.

    min_S  KD(S, T)  -  weight * I_alpha(s(x); t(x))

    I_alpha = 1 + mean_j [ f_jj - log( a m_j + (1 - a) ) ] - mean_j [ m'_j / ( a m'_j + (1 - a) ) ]
    f_ij = cos( g(s_i), h(t_j) ) / tau,      m_j = mean_i exp(f_ij),      m'_j = mean over i != j of exp(f_ij)

s and t are what the last linear layers are given, g and h linear layers that are not deployed. a = 1 is InfoNCE, which is at most the
logarithm of the batch and varies little; a = 0 is the bound of Nguyen, Wainwright and Jordan, which is tight and varies a lot.

Good to ask whether features say more than logits. Control: ``weight: 0``, which is ``kd``.

Source: He et al.: Distiller: a systematic study of model distillation methods in natural language processing (2021), arXiv:2109.11105; its
abstract was read. The bound: Poole et al.: On variational bounds of mutual information (ICML 2019), arXiv:1905.06922, section 2.4, with the
baseline 1. The critic, one layer and the weight are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.defenses.image.distillation.kd import KDParams, KDRecipe
from robustkd.defenses.training import Distillation, Minibatch, Prepared, Teacher
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class MIAlphaParams(KDParams):
    weight: float = Field(1.0, ge=0, description="of the bound")
    interpolation: float = Field(0.9, ge=0, le=1, description="a: 1 is InfoNCE, 0 the bound of Nguyen, Wainwright and Jordan")
    critic_temperature: float = Field(0.2, gt=0, description="tau, that the critic's cosines are divided by")
    width: int = Field(64, ge=1, description="outputs of g and h")


def mutual_information(scores: Tensor, a: float) -> Tensor:
    """I_alpha, a scalar in nats, from the critic's (B, B) scores f of sample i's and sample j's features, with B of 2 or more."""
    count = len(scores)
    others = scores.masked_fill(torch.eye(count, dtype=torch.bool, device=scores.device), -torch.inf)
    log_m = scores.logsumexp(0) - torch.tensor(count, dtype=scores.dtype, device=scores.device).log()
    log_rest = others.logsumexp(0) - torch.tensor(count - 1, dtype=scores.dtype, device=scores.device).log()
    joint = (scores.diagonal() - _mixed(log_m, a)).mean()
    marginal = (log_rest - _mixed(log_rest, a)).exp().mean()
    return 1 + joint - marginal


def _mixed(log_m: Tensor, a: float) -> Tensor:
    """log(a m + 1 - a)."""
    if a == 1:
        return log_m
    plain = torch.full_like(log_m, 1 - a).log()
    return plain if a == 0 else torch.logaddexp(log_m + torch.full_like(log_m, a).log(), plain)


class MIAlphaRecipe(KDRecipe):
    """Plain distillation, less the bound.

    Args:
        teacher, params: see ``DistillationRecipe``.
        student: the network inside the trained module.
    """

    supports_data_parallel = False  # the bound is of a whole minibatch

    def __init__(self, teacher: Teacher, params: MIAlphaParams, student: ClassifierTarget) -> None:
        super().__init__(teacher, params)
        self.student = student

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """KD - weight * I_alpha."""
        p, parts = self.params, target.module.parts
        soft, measured = super().loss(self.student, batch)
        with torch.no_grad():
            theirs = with_penultimate(self.teacher.target, batch.x)[1]
        mine = with_penultimate(self.student, batch.x)[1]
        g, h = F.normalize(parts["own"](mine), dim=1), F.normalize(parts["theirs"](theirs), dim=1)
        bound = mutual_information(g @ h.T / p.critic_temperature, p.interpolation)
        return soft - p.weight * bound, {**measured, "mutual_information": bound}


class MIAlpha(Distillation):
    """A student whose features share information with the teacher's."""

    Params = MIAlphaParams
    recipe = MIAlphaRecipe
    source = "He et al. 2021, arXiv:2109.11105; Poole et al. 2019, arXiv:1905.06922"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Put the critic's layers beside the student."""
        own, theirs = (last_linear(one.module).in_features for one in (student, teacher.target))
        with seeded_init(context, "critic"):
            parts = {"own": nn.Linear(own, self.params.width), "theirs": nn.Linear(theirs, self.params.width)}
        return MIAlphaRecipe(teacher, self.params, student), with_auxiliary(student, **parts)
