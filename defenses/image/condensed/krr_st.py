"""KRR-ST: a small set of images with feature vectors, from which a network learns features before it is shown any label.

    1.  min over X, Y   mean || K_rs (K_ss + lambda I)^-1 Y  -  t(real) ||^2,      K_ss = f(X) f(X)^T,  K_rs = f(real) f(X)^T   ``epochs``
    2.  min over S      mean || g(s(X)) - Y ||^2                                                                       ``pretrain_epochs``
    3.  min over S      CE(S(x), y)                                                                                    as ``mae``

t is a network that has learnt of images alone (such as ``mae`` with ``finish: probe``), f the features of one of a pool of networks with
a 1 behind them, lambda = ``ridge`` * trace(K_ss), g a linear layer that is not deployed. The prediction in step 1 is kernel ridge
regression from the small set to real images. Each time a network of the pool was used it takes a step of SGD on the small set, and it
starts afresh after ``online_steps`` of them, so that the set is good for networks of every age.

Good to ask whether features from so few images are sturdier, or weaker, than those from all. Control: ``learnt: false``, the same number
of real images with the features that t gives them.

Source: Lee et al.: Self-supervised dataset distillation for transfer learning (ICLR 2024), arXiv:2310.06511; settings from notes
about the authors' code (model_pool.py, train.py), which was not read itself. From the authors: the losses, the pool, lambda. From us: the
networks of the pool are of staggered ages in place of random ones, a step of the set is taken on a minibatch of the training loop, and
the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Arrays, Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import Minibatch, Recipe, fresh_network, frozen_teacher
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork, with_auxiliary
from robustkd.defenses.training.batches import no_reduce
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.params import OptimiserParam
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.stages import Stage, StagedParams, finishing, run_stages
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.activations import last_linear, with_penultimate
from robustkd.targets.training import sgd

if TYPE_CHECKING:
    from torch import Tensor


class KRRSTParams(StagedParams):
    network: TargetRef = Field(description="t, another defense, whose features in front of its last linear layer are learnt")
    model: ModelName = Field(description="the architecture of the student and of the pool: a model plug-in")
    model_params: ModelParams = Field(default_factory=dict)
    images: int = Field(64, ge=2, description="images in the small set")
    learnt: bool = Field(True, description="whether the set is learnt; false takes real images as they are, the control")
    optimiser: OptimiserParam = "adamw"
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (decoupled for adamw), also on the small set")
    pool: int = Field(3, ge=1, description="networks in the pool; the authors' 10")
    online_steps: int = Field(
        100, ge=1, description="steps after which a network of the pool starts afresh; the authors' 1,000"
    )
    online_lr: float = Field(0.1, gt=0, description="learning rate of these steps (SGD)")
    ridge: float = Field(1e-6, gt=0, description="lambda, as a share of the trace of K_ss")
    pretrain_epochs: int = Field(
        10, ge=1, description="passes over as many images as there are in training, all of the small set"
    )


def features_of(target: Target, images: Tensor) -> Tensor:
    """(B, D) what the last linear layer is given of (B, C, H, W)."""
    return with_penultimate(target, images)[1]


def regression(known: Tensor, goals: Tensor, asked: Tensor, ridge: float) -> Tensor:
    """(B, D) predictions for the (B, P) rows ``asked`` by kernel ridge regression from (M, P) rows to their (M, D) goals; linear kernel.

    Args:
        ridge: lambda, as a share of the trace of the kernel matrix.
    """
    with torch.autocast(known.device.type, enabled=False):
        known, goals, asked = known.float(), goals.float(), asked.float()
        kernel = known @ known.T
        damped = kernel + ridge * kernel.detach().trace() * torch.eye(len(known), device=known.device)
        return asked @ known.T @ torch.linalg.solve(damped, goals)


def with_one(features: Tensor) -> Tensor:
    """(B, P + 1) features with a 1 behind them."""
    return F.pad(features, (0, 1), value=1.0)


class KRRSTRecipe(Recipe[ClassifierTarget]):
    """The error of the regression from the small set, and a step of the network that it was seen by. Pixels are kept in [0, 1].

    Args:
        small: ``images`` and their ``features``, which are learnt.
        teacher: t, frozen.
        fresh: makes the network of a place of the pool for the n-th time.
        params: the defense's.
        seed: chooses the networks.

    Attributes:
        steps: how many were taken.
        ages: steps of each network of the pool since it was fresh.
        made: how often each was made.
    """

    state = ("steps", "ages", "made")
    supports_data_parallel = False  # the pool takes its steps on the small set, which is not shared among processes

    def __init__(
        self,
        small: nn.ParameterDict,
        teacher: Target,
        fresh: Callable[[int, int], tuple[ClassifierTarget, nn.ModuleDict]],
        params: KRRSTParams,
        seed: int,
    ) -> None:
        self.small, self.teacher, self.fresh, self.params, self.seed = small, teacher, fresh, params, seed
        self.steps = 0
        self.made = [0] * params.pool
        self.ages = [number * params.online_steps // params.pool for number in range(params.pool)]
        made = [fresh(number, 0) for number in range(params.pool)]
        self.targets = [target for target, _ in made]
        module = nn.ModuleList(network for _, network in made)
        self.pool = self.auxiliary = AuxiliaryNetwork(module, params.online_lr, sgd(module.parameters(), params.online_lr, 0.0))

    @property
    def chosen(self) -> int:
        """The network of the pool that sees the small set in this step."""
        return derived_seed(self.seed, f"pool/{self.steps}") % self.params.pool

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """mean || prediction - t(x) ||^2."""
        small, network = self.small, self.targets[self.chosen]
        with frozen(self.pool.module):
            with torch.no_grad():
                goals, asked = features_of(self.teacher, batch.x), features_of(network, batch.x)
            known = with_one(features_of(network, small["images"]))
            predicted = regression(known, small["features"], with_one(asked), self.params.ridge)
        error = F.mse_loss(predicted, goals.float())
        return error, {"loss_regression": error}

    @override
    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Keep the pixels in [0, 1], and let the network of this step learn the small set, by one step or from the beginning."""
        with torch.no_grad():
            self.small["images"].clamp_(0, 1)
        images, goals = self.small["images"].detach(), self.small["features"].detach()
        chosen, pool = self.chosen, cast("nn.ModuleList", self.pool.module)
        network = cast("nn.ModuleDict", pool[chosen])
        found = network["head"](features_of(self.targets[chosen], images))
        self.pool.minimise(F.mse_loss(found, goals), no_reduce)
        self.steps, self.ages[chosen] = self.steps + 1, self.ages[chosen] + 1
        if self.ages[chosen] >= self.params.online_steps:
            self.ages[chosen], self.made[chosen] = 0, self.made[chosen] + 1
            network.load_state_dict(self.fresh(chosen, self.made[chosen])[1].state_dict())


class FeatureRecipe(Recipe[ClassifierTarget]):
    """The squared distance from the features of the small set.

    Args:
        student: the network inside the trained module.
        goals: (M, D) of the M images, of which the training data are copies in turn.
    """

    def __init__(self, student: ClassifierTarget, goals: Tensor) -> None:
        self.student, self.goals = student, goals

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """mean || g(s(x)) - y ||^2."""
        found = target.module.parts["head"](features_of(self.student, batch.x))
        return F.mse_loss(found, self.goals[batch.index % len(self.goals)]), {}


class KRRST(Defense):
    """A network that has learnt features from a small set without labels."""

    Params = KRRSTParams
    source = "Lee et al. 2024, arXiv:2310.06511"

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Learn the set, pre-train on it, and learn labels; the epoch of the last stage is chosen by validation accuracy."""
        p = self.params
        student = fresh_network(context, p.model, p.model_params)
        with frozen_teacher(context, p.network, p) as teacher:
            run_stages(context, self._stages(context, student, teacher.target))
        return student

    def _stages(self, context: FitContext[Arrays], student: ClassifierTarget, teacher: Target) -> Iterator[Stage]:
        p = self.params
        small = self._start(context, teacher)
        if p.learnt:
            outputs = small["features"].shape[1]

            def fresh(number: int, made: int) -> tuple[ClassifierTarget, nn.ModuleDict]:
                target = fresh_network(context, p.model, p.model_params, role=f"pool/{number}/{made}")
                with seeded_init(context, f"pool-head/{number}/{made}"):
                    head = nn.Linear(last_linear(target.module).in_features, outputs)
                return target, nn.ModuleDict({"network": target.module, "head": head}).to(context.device)

            recipe = KRRSTRecipe(small, teacher, fresh, p, context.seed)
            yield Stage("set", with_auxiliary(student, set=small), recipe, p.with_last_epoch(), lambda: [small])
        images, goals = small["images"].detach().cpu().numpy(), small["features"].detach()
        rows = np.arange(max(len(context.train), len(images))) % len(images)
        shown = Arrays(images, np.zeros(len(images), np.int64)).select(rows)
        with seeded_init(context, "head"):
            head = nn.Linear(last_linear(student.module).in_features, goals.shape[1])
        brief = p.model_copy(update={"epochs": p.pretrain_epochs, "milestones": None}).with_last_epoch()
        yield Stage("features", with_auxiliary(student, head=head), FeatureRecipe(student, goals), brief, data={"train": shown})
        yield finishing(student, p)

    def _start(self, context: FitContext[Arrays], teacher: Target) -> nn.ParameterDict:
        """Real images, drawn at random, with t's features of them."""
        count = min(self.params.images, len(context.train))
        order = np.random.default_rng(derived_seed(context.seed, "small-set")).permutation(len(context.train))
        images = torch.from_numpy(context.train.select(np.sort(order[:count])).unit()).to(context.device)
        with torch.no_grad():
            features = features_of(teacher, images)
        return nn.ParameterDict({"images": nn.Parameter(images.clone()), "features": nn.Parameter(features.clone())})
