"""SGM: gradients that prefer skip connections.

    z_l = z_{l-1} + f_l(z_{l-1}),    d z_l / d z_{l-1} = 1 + gamma * f_l',    gamma < 1

MI-FGSM on a residual network whose residual branches count less on the way back. Made for transfer: what a gradient says through
the shortcuts other networks share, what it says through the branches is the network's own.

A block whose shortcut is the identity tells where its branch ends by an attribute ``branch_end``, the name of the submodule whose output
is added to the shortcut. Blocks that change the shape of their input have another layer for a shortcut, or drop most of the input there:
their gradient is left as it is. The network's answers are untouched.

Good for transfer from residual networks; there is nothing to prefer in one without shortcuts. What gamma is best depends on the depth:
0.2 was chosen on networks of 152 layers; on those of 20 and 56 it harms.

Source: Wu et al.: Skip connections matter: on the transferability of adversarial examples generated with ResNets (ICLR 2020),
section 3; gamma 0.5 is the default of the authors' script. (Their code scales at the ReLUs inside the branches, by a root of gamma each
where there are two, and leaves the first block of the first stage out; TransferAttack's leaves out the first of each stage.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import AttackResult, Batch, Target, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class SGMParams(MomentumParams):
    """How much of the residual branches' gradient is kept, and which modules they are."""

    decay: float = Field(0.0, ge=0, description="how much of the accumulated gradient stays in each step; 1 is MI-FGSM's")
    gamma: float = Field(0.5, ge=0, le=1, description="what is left of a residual branch's gradient; 1 changes nothing")
    branches: tuple[str, ...] = Field(
        (), description="for networks of other packages: the submodules where the branches end, as in [layer*.*.bn2]"
    )


def branch_ends(module: nn.Module, patterns: Sequence[str] = ()) -> list[nn.Module]:
    """The submodules whose outputs are added to a shortcut: those that match ``patterns``, else those that blocks declare.

    Raises:
        TargetError: there are none.
    """
    if patterns:
        ends = [stage for name, stage in module.named_modules() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        blocks = [(block, getattr(block, "branch_end", None)) for block in module.modules()]
        ends = [block.get_submodule(str(end)) for block, end in blocks if end is not None]
    if not ends:
        reason = f"no submodule matches {', '.join(patterns)}" if patterns else "no block of it declares a branch_end"
        raise TargetError(
            f"sgm needs a residual network: {reason}",
            fix="use a ResNet, or name where its branches end: branches: [layer*.*.bn2]",
        )
    return ends


@contextmanager
def scaled_gradient(stages: Sequence[nn.Module], gamma: float) -> Iterator[None]:
    """Multiply the gradient through each stage by ``gamma`` until the end of the block; the outputs stay the same."""

    def hook(stage: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        return output.detach() + gamma * (output - output.detach())

    hooks = [stage.register_forward_hook(hook) for stage in stages]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class SGM(MIFGSM):
    """Skip gradient method, on networks with residual blocks; ``decay: 1`` gives it momentum."""

    Params = SGMParams
    version = "3"
    source = "Wu et al. 2020, arXiv:2002.05990"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes as many passes as MI-FGSM.

        Raises:
            TargetError: no residual branch of the network is declared or named.
        """
        with scaled_gradient(branch_ends(target.module, self.params.branches), self.params.gamma):
            return super().run(target, batch, threat, rng)
