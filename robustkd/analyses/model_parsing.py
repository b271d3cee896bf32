"""Model parsing: can one tell from a perturbation how its victim was made?

    delta = attack(victim, x) - x,     parser(delta / max |delta|) -> family,     trained on other victims of each family

The families are groups of a campaign's defenses: architectures, activations, ways of distilling, teachers, each with replicas. The analysed
model is a victim that the parser has not seen. Its perturbations, of images that the parser has not seen, are attributed to a family.
Analysed for a held-out replica of every family, the tables are the rows of a confusion matrix.

Controls: a parser that was trained on labels in a random order, whose shares are 1 / K but for chance; and images without a perturbation,
which go to one family whatever the victim, so that over the families they are right once in K.

The perturbations are made anew, with the campaign's threat model and seed: they are those that its own attack of these parameters finds.

From the authors: a convolutional network that names attributes of the victim from the perturbation alone. From us: families of the
campaign's defenses as the attribute; the split by replica and by image, where the authors' in-distribution split has the same victims on
both sides; a network of three convolutions.

Source: Yao et al.: Can adversarial examples be parsed to reveal victim model information? (2023), arXiv:2303.07474, section 4; the
authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.attacked import adversarial, attack_field
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetRef, ThreatModel, UsageError
from robustkd.contracts.random import preserved_rng, seed_torch
from robustkd.lazy import F, nn, torch
from robustkd.scoring.intervals import wilson
from robustkd.targets.training import adam, fit

if TYPE_CHECKING:
    from torch import Tensor

_STEP = 64


class ModelParsingParams(Params):
    """The families, and how their perturbations are made and read."""

    families: dict[str, tuple[TargetRef, ...]] = Field(
        min_length=2,
        description="what can be told apart: names, and the defenses of each that the parser learns from",
        examples=[{"one": ["one-0", "one-1"], "other": ["other-0", "other-1"]}],
    )
    attack: AttackSpec = attack_field("the attack that makes the perturbations")
    samples: int = Field(400, ge=4, description="images at most: the parser learns from one half, and reads the other")
    epochs: int = Field(20, ge=1, description="of the parser's training")
    width: int = Field(16, ge=1, description="channels of the parser's first layer")


class ModelParsing(Analysis):
    """To which family of victims a parser attributes the model's perturbations."""

    Params = ModelParsingParams
    inputs = "images"
    source = "Yao et al. 2023, arXiv:2303.07474"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """The shares of the model's perturbations, and of the controls; ``metrics``: those of the first row, and chance.

        Raises:
            UsageError: there are too few images to learn from one half and read the other.
        """
        p, names = self.params, list(self.params.families)
        count = min(len(batch), p.samples)
        if count < 4:
            raise UsageError("model-parsing learns from one half of the images and reads the other", fix="take four or more")
        rows = torch.arange(count, device=batch.inputs.device)
        seen, unseen = batch.select(rows[::2]), batch.select(rows[1::2])
        made, labels = [], []
        for number, members in enumerate(p.families.values()):
            for name in members:
                made.append(self._perturbations(self.target(name, Target), seen, threat, seed))
                labels += [number] * len(seen)
        known, truth = torch.cat(made), torch.tensor(labels, device=batch.inputs.device)
        mine = self._perturbations(target, unseen, threat, seed)
        order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed)).to(truth.device)
        parsers = [self._parser(known, told, len(names), seed) for told in (truth, truth[order])]
        found = [_shares(parsers[0], mine), _shares(parsers[1], mine), _shares(parsers[0], torch.zeros_like(mine))]
        best = max(found[0])
        low, high = wilson(best * len(mine), len(mine))
        return Table(
            caption=f"share of {len(mine)} perturbations by {p.attack.kind}, of images and a victim that the parser has not seen, that it "
            f"attributes to each family (chance {1 / len(names):.3f}; of the largest share the 95 % interval is {low:.3f} to {high:.3f})",
            rows=["this model", "control: labels in a random order", "control: no perturbation"],
            columns=names,
            values=found,
            shares=True,
            metrics={
                **{f"attributed_to_{name}": share for name, share in zip(names, found[0], strict=True)},
                "chance": 1 / len(names),
            },
        )

    def _perturbations(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """(N, C, H, W), each divided by its largest entry: the budget tells nothing."""
        found = adversarial(target, self.params.attack.make(), batch, threat, seed, "model-parsing") - batch.inputs
        return found / found.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)

    def _parser(self, known: Tensor, truth: Tensor, families: int, seed: int) -> nn.Module:
        """A network that was trained to name the family of a perturbation."""
        width, channels = self.params.width, known.shape[1]
        with preserved_rng(known.device):
            seed_torch(seed)
            parser = nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(8 * width, families),
            ).to(known.device)
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(known), generator=generator).split(_STEP) for _ in range(self.params.epochs)]
        with torch.enable_grad():
            losses = (F.cross_entropy(parser(known[rows]), truth[rows]) for order in orders for rows in order)
            fit(adam(parser.parameters(), lr=3e-3), losses, lambda step: 3e-3)
        return parser.eval()


def _shares(parser: nn.Module, perturbations: Tensor) -> list[float]:
    with torch.no_grad():
        scores = torch.cat([parser(part) for part in perturbations.split(256)])
    # Of equal scores none is preferred: what says nothing counts for all alike.
    best = (scores == scores.amax(1, keepdim=True)).cpu().double()
    shares: list[float] = (best / best.sum(1, keepdim=True)).mean(0).tolist()
    return shares
