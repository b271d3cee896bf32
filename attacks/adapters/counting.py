"""What the adapters of other packages' attacks share: a target that counts, and a model left as it was found.

A peer's attack is driven as it is, whole batches at a time, and is not trusted afterwards: what it returns is put back
into the budget, shown to the target once more (that forward pass is counted too), and replaced by the clean image
where the peer found nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.oracle import Oracle
from robustkd.contracts import Attack, AttackError, AttackResult, Batch, RobustkdError, Target, ThreatModel, UsageError
from robustkd.contracts.errors import out_of_memory, place_of
from robustkd.contracts.random import SampleRng, seeded
from robustkd.lazy import nn, torch
from robustkd.scoring.distances import distance, per_sample, within
from robustkd.targets import untouched
from robustkd.targets.passes import PassCounter
from robustkd.targets.rejection import classifier_alone

if TYPE_CHECKING:
    from torch import Tensor


class CountedModel(nn.Module):
    """A target as a peer sees it: a network whose passes are counted and whose weights are out of reach.

    The target's network is no submodule of it, so a peer's ``model.train()``, ``zero_grad()`` or ``to()`` does not
    arrive there.

    A call with as many rows as there are samples (or a multiple: restarts, copies for gradient averaging) counts for
    each of them. The rows of any other call are spread evenly over the samples: then totals are exact, single samples'
    counts are not.
    """

    def __init__(self, target: Target, batch: Batch) -> None:
        super().__init__()
        device = batch.inputs.device
        # Peers read the device off the parameters; an empty one says it and gives nothing else away.
        self.anchor = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.target = target
        self.rows = torch.arange(len(batch))
        # Counted on the CPU: an accelerator has nothing to wait for, and not every one has float64.
        self.passes = PassCounter(len(batch), fractions=True)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, K) logits, counted; a backward pass through them is counted when it happens."""
        return self.passes.follow(self.target(inputs), self.rows, len(inputs) / len(self.rows))

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[CountedModel]:
        """Until the end of the block, calls are about these rows of the batch."""
        before, self.rows = self.rows, rows
        try:
            yield self
        finally:
            self.rows = before

    @property
    def forwards(self) -> Tensor:
        """(B,) int64."""
        return _whole(self.passes.forwards).to(self.anchor.device)

    @property
    def backwards(self) -> Tensor:
        """(B,) int64."""
        return _whole(self.passes.backwards).to(self.anchor.device)


def _whole(shares: Tensor) -> Tensor:
    # Rounding the running total keeps the sum of all samples exact; whole shares stay as they are.
    total = shares.cumsum(0).round()
    return torch.diff(total, prepend=total.new_zeros(1)).to(torch.int64)


def batch_seed(rng: SampleRng) -> int:
    """A seed for global generators, from the streams of the batch's samples."""
    return int(rng.bits((1,)).sum()) % 2**32


class PeerAttack(Attack):
    """An attack of another package.

    Its randomness comes from the global generators, seeded for each batch: the same batch gives the same result, but a
    sample's result may depend on the batch it came in, which attacks of our own rule out. Those that go through a batch
    sample by sample anyway (``one_by_one``) are given each sample alone, which makes them independent of it.

    Of a target that rejects inputs a peer sees the classifier alone: it would take the rejection for one more class.
    """

    ranges = "one"
    knows_rejection = False
    one_by_one: bool = False

    @abstractmethod
    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """The peer's answer for ``batch``; the model counts its passes."""

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Drive the peer and verify what it returns.

        Raises:
            AttackError: the peer raised.
            UsageError: the samples have budgets of their own, which no peer knows of.
        """
        if batch.eps is not None:
            raise UsageError(
                f"{self.name} takes one budget for all samples", fix="give a single eps, or use an attack of robustkd's own"
            )
        batch = replace(batch, inputs=batch.inputs.contiguous())  # some peers take views of what they are given
        model = CountedModel(target if self.knows_rejection else classifier_alone(target), batch)
        oracle = Oracle(target, batch)
        found = torch.empty_like(batch.inputs)
        with untouched(target.module):
            for rows in torch.split(model.rows, 1 if self.one_by_one else len(batch)):
                seed = batch_seed(rng.select(rows))
                with model.only(rows), seeded(seed), torch.enable_grad():
                    found[rows] = self._driven(model, batch.select(rows), threat, seed)
            adversarial = self._inside(found, target, batch, threat)
            success = oracle.is_adversarial(oracle.logits(adversarial, model.rows), model.rows)
        if self.kind == "minimum-norm":
            adversarial = torch.where(per_sample(success, adversarial), adversarial, batch.inputs)
        return AttackResult(adversarial, success, model.forwards + oracle.forwards, model.backwards)

    def _driven(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        try:
            return self.drive(model, batch, threat, seed).detach()
        except RobustkdError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            said = (str(error).splitlines() or [""])[0]
            raise AttackError(
                f"{self.name} cannot attack this target: {type(error).__name__}{place_of(error)}: {said}",
                fix="the error is the peer's own; exclude this pair, or use one of robustkd's own attacks",
            ) from error

    def _inside(self, found: Tensor, target: Target, batch: Batch, threat: ThreatModel) -> Tensor:
        clean, bounds = batch.inputs, target.bounds
        failed = ~torch.isfinite(found).flatten(1).all(1)
        if self.kind == "minimum-norm":
            # An image of zeros is how foolbox says that it found nothing.
            failed |= (found == 0).flatten(1).all(1) & (clean != 0).flatten(1).any(1)
        found = torch.where(per_sample(failed, found), clean, found).clamp(*bounds)
        if self.kind == "fixed-budget":
            outside = ~within(distance(found - clean, threat.norm), threat.eps, threat.norm, clean.shape[1:])
            # In l0 there is no nearest point that is still the peer's idea.
            near = clean if threat.norm == "l0" else Ball.around(clean, threat.eps, threat.norm, bounds).project(found)
            found = torch.where(per_sample(outside, found), near, found)
        return found
