"""ACM: the perceptrons of a trained transformer become learners that are added one after the other, and gates that say how many.

    1.  min over the learners   mean_{block, k} || sg( sum_{j < k} learner_j(x) ) + learner_k(x) - mlp(x) ||^2      ``epochs``
    2.  min over the gates      CE( gate(x), k(x) ),   k(x) the smallest k with  e_k(x) / e_{k+1}(x) < ``gain``      ``gate_epochs``
    3.  min over everything     CE(f(x), y) + budget_weight |cost - ``budget``| - entropy_weight H - diversity_weight D   ``finish_epochs``

x are what the blocks of the trained network give their perceptrons, e_k the error of the first k learners, cost the mean share of
learners that is chosen. H is the entropy of a block's choices over the tokens of an image, D the mean difference of the costs of two
images: without them all gates may say the same. The gates draw by Gumbel noise in step 3, and say the most likely number when deployed.
``selection`` is of no use in step 3, since accuracy alone prefers the most expensive epoch: the last one is deployed.

Good to ask whether an attacker can make a network expensive that decides token by token: the analysis ``slowdown``. Controls: the base,
and ``sub-network`` with ``learners-k``, which gives every token the same.

Source: Wojcik et al.: Adaptive computation modules: granular conditional computation for efficient inference (AAAI 2025),
arXiv:2312.10193; of the authors' code were read methods/acm/gating_networks_train.py and end_to_end.py and architectures/acm.py, but not
the file of step 1, which follows notes about it. From the authors: the three steps and their losses. From us: their label of a gate is
one higher, and N where the first ratio is already small enough, which seems unintended; only perceptrons are replaced; the weights of
step 3 and the sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target, TargetRef
from robustkd.defenses.image.representations.masking import transformer
from robustkd.defenses.training import Minibatch, Recipe, fresh_network, frozen_teacher
from robustkd.defenses.training.stages import Stage, StagedParams, run_stages
from robustkd.lazy import F, torch
from robustkd.models.vit import TinyViTNetwork
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.contracts.json_value import JsonObject
    from robustkd.models.acm import ACMViTNetwork


class ACMParams(StagedParams):
    base: TargetRef = Field(description="another defense, whose network is a tiny-vit")
    learners: int = Field(4, ge=1, description="N, learners of each block, together as wide as its perceptron")
    gate_epochs: int = Field(3, ge=1, description="passes over the training data in which the gates learn their labels")
    gain: float = Field(1.1, gt=1, description="a learner is worth its cost where it divides the error by this at least")
    budget: float = Field(
        0.5, ge=0, le=1, description="the mean share of learners that the gates are to choose; 1 is all of them"
    )
    budget_weight: float = Field(1.0, ge=0, description="of the distance from the budget")
    entropy_weight: float = Field(0.05, ge=0, description="of the entropy H of a block's choices")
    diversity_weight: float = Field(0.05, ge=0, description="of the difference D between the costs of images")


def taught(network: TinyViTNetwork, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each block of (B, C, H, W) in [0, 1] gives its perceptron, and what that makes of it: (B, T, width) each."""
    tokens, found = network.tokens(network.normalise(images)), []
    for block in network.layers:
        tokens = tokens + block.attention(block.norm1(tokens))
        x = block.norm2(tokens)
        made = block.linear2(block.gelu(block.linear1(x)))
        found.append((x, made))
        tokens = tokens + made
    return found


def sums(parts: Tensor) -> Tensor:
    """(N + 1, ..) the sums of none, the first, the first two, .. of (N, ..)."""
    return torch.cat([torch.zeros_like(parts[:1]), parts.cumsum(0)])


def labels_of(errors: Tensor, gain: float) -> Tensor:
    """(..) int64 the smallest k after which one more learner divides the error by less than ``gain``, of (N + 1, ..) errors e_0 .. e_N."""
    enough = errors[:-1] < gain * errors[1:]
    last = torch.ones_like(enough[:1])
    return torch.cat([enough, last]).to(torch.uint8).argmax(0)


class LearnersRecipe(Recipe[ClassifierTarget]):
    """Each learner fits what the ones before it have left.

    Args:
        base: the trained network, frozen.
    """

    def __init__(self, base: ClassifierTarget) -> None:
        self.base = base

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over blocks and k of || sum_{j <= k} learner_j(x) - mlp(x) ||^2."""
        network: ACMViTNetwork = target.module
        with torch.no_grad():
            known = taught(transformer(self.base, "acm"), batch.x)
        terms = []
        for module, (x, wanted) in zip(network.adaptive, known, strict=True):
            each = module.each(x)
            before = sums(each)[:-1].detach()
            terms.append((before + each - wanted).square().mean())
        return torch.stack(terms).mean(), {}


class GatesRecipe(Recipe[ClassifierTarget]):
    """Each gate learns how many learners are worth their cost.

    Args:
        base: the trained network, frozen.
        gain: see ``ACMParams``.
    """

    def __init__(self, base: ClassifierTarget, gain: float) -> None:
        self.base, self.gain = base, gain

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(gate(x), k(x)), the mean over blocks and tokens."""
        network: ACMViTNetwork = target.module
        terms, chosen = [], []
        with torch.no_grad():
            known = taught(transformer(self.base, "acm"), batch.x)
        for module, (x, wanted) in zip(network.adaptive, known, strict=True):
            with torch.no_grad():
                errors = (sums(module.each(x)) - wanted).float().norm(dim=3)
                labels = labels_of(errors, self.gain)
            terms.append(F.cross_entropy(module.gate(x).flatten(0, 1).float(), labels.flatten()))
            chosen.append(labels.float().mean())
        return torch.stack(terms).mean(), {"labels": torch.stack(chosen).mean()}


class ACMRecipe(Recipe[ClassifierTarget]):
    """The labels, within a budget, by choices that differ."""

    supports_data_parallel = False  # the distance from the budget is of a whole minibatch

    def __init__(self, params: ACMParams) -> None:
        self.params = params

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE + budget_weight |cost - budget| - entropy_weight H - diversity_weight D."""
        p = self.params
        logits, choice, _ = target.module.gated(batch.x)
        costs, entropy = cost_shares(choice), choice_entropy(choice)
        cost, differences = costs.mean(), (costs.unsqueeze(0) - costs.unsqueeze(1)).abs().mean()
        loss = F.cross_entropy(logits, batch.y) + p.budget_weight * (cost - p.budget).abs()
        return loss - p.entropy_weight * entropy - p.diversity_weight * differences, {"cost": cost}


def cost_shares(choice: Tensor) -> Tensor:
    """(B,) the share of learners that is chosen for each image, of (L, B, T, N + 1) choices."""
    count = choice.shape[3] - 1
    return (choice.float() * torch.arange(count + 1, device=choice.device)).sum(3).mean((0, 2)) / count


def choice_entropy(choice: Tensor) -> Tensor:
    """The mean over blocks and images of the entropy of the choices of (L, B, T, N + 1) over the tokens, at most 1."""
    shares = choice.float().mean(2)
    plogp = shares * shares.clamp_min(1e-12).log()
    return -plogp.sum(2).mean() / torch.tensor(float(choice.shape[3])).log().item()


class ACM(Defense):
    """A transformer that gives each token as much computation as its gate says."""

    Params = ACMParams
    source = "Wojcik et al. 2025, arXiv:2312.10193"

    def fit(self, context: FitContext) -> Target:
        """Copy what stays as it is, and train the three stages.

        Raises:
            UsageError: the base's network is no tiny-vit.
        """
        p = self.params
        with frozen_teacher(context, p.base, p) as teacher:
            base = teacher.target
            assert isinstance(base, ClassifierTarget)
            student = self._made(context, base)
            run_stages(context, self._stages(student, base))
        return student

    def _made(self, context: FitContext, base: ClassifierTarget) -> ClassifierTarget:
        """The base with fresh learners and gates in the place of its perceptrons."""
        network = transformer(base, "acm")
        kept = network.state_dict()
        block = network.layers[0]
        params = {
            **cast("JsonObject", (base.origin or {}).get("params", {})),
            "patch": network.embed.kernel_size[0],
            "width": network.positions.shape[2],
            "depth": len(network.layers),
            "heads": block.attention.heads,
            "learners": self.params.learners,
        }
        student = fresh_network(context, "acm-vit", params)
        student.module.load_state_dict(kept, strict=False)
        return student.to(context.device)

    def _stages(self, student: ClassifierTarget, base: ClassifierTarget) -> Iterator[Stage]:
        p = self.params
        network = cast("ACMViTNetwork", student.module)
        yield Stage(
            "learners",
            student,
            LearnersRecipe(base),
            p.with_last_epoch(),
            lambda: [module.learners for module in network.adaptive],
        )
        brief = p.model_copy(update={"epochs": p.gate_epochs, "milestones": None}).with_last_epoch()
        yield Stage("gates", student, GatesRecipe(base, p.gain), brief, lambda: [module.gate for module in network.adaptive])
        yield Stage("together", student, ACMRecipe(p), p.finishing().with_last_epoch())
