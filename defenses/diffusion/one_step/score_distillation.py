"""Score distillation: a generator of one step, against the score of what it draws.

    G    x_g = G(noise, c),  x_t = sqrt(a_t) x_g + sqrt(1 - a_t) noise';   theta_G follows the method's ``generator_loss``
    psi  learns to denoise what G draws now, by the method's ``score_loss``
    phi  the teacher, frozen

Each round is ``critic_steps`` updates of psi, then one of G, each on fresh draws, by an AdamW of its own (``defenses.training.turns``).
No pictures of the data are seen. A method is a subclass with the two losses; most of them move each picture by a direction that is held
constant (``moved``), so that a method is in the end one function: which direction.

The papers tune a LoRA of Stable Diffusion as psi, or all of it; here it is all of the UNet. Rates and numbers of steps are ours: the models
are a thousand times smaller.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field

from robustkd.contracts import FitContext, Prompts, TargetRef
from robustkd.defenses.diffusion.one_step.drawing import caption_draws, in_one_step, levels, normal, one_step_pictures
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.steps import Schedule, StepParams, train_steps
from robustkd.defenses.training.turns import Player, train_by_turns
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class DistillationParams(StepParams):
    """Parameters of every distillation of a diffusion model."""

    base: TargetRef = Field(description="the defense whose model is distilled")
    steps: int = Field(300, ge=1, description="updates of the generator")
    batch_size: int = Field(32, ge=1, description="captions in each update")
    lr: float = Field(3e-4, gt=0, description="the generator's learning rate")
    schedule: Schedule = Field("constant", description="how the learning rate falls over the steps")


class ScoreDistillationParams(DistillationParams):
    """Parameters of every distillation by the score of the generator's own pictures."""

    score_lr: float = Field(1e-3, gt=0, description="the score's learning rate")
    critic_steps: int = Field(1, ge=1, description="updates of the score before each of the generator")
    beta1: float = Field(0.0, ge=0, lt=1, description="AdamW's, of both")
    drop: float = Field(0.1, ge=0, lt=1, description="how often the score learns without the caption")
    lowest: float = Field(
        0.02, ge=0, lt=1, description="the least noise at which pictures are compared, as a share of all levels"
    )
    highest: float = Field(0.98, gt=0, le=1, description="the most")


@dataclass(frozen=True, eq=False)
class Models:
    """The teacher phi, the generator G and the score psi of its pictures: three UNets, and one text encoder three times."""

    teacher: TextToImageTarget
    generator: TextToImageTarget
    score: TextToImageTarget

    @classmethod
    def begin(cls, teacher: TextToImageTarget) -> Models:
        """Generator and score begin as the teacher."""
        return cls(teacher, in_one_step(copy.deepcopy(teacher)), copy.deepcopy(teacher))


@dataclass(frozen=True, eq=False)
class Captions:
    """What one update is about.

    Attributes:
        asked: B captions, as generator and score are told them.
        meant: what the teacher is told in their place; for most methods the same.
        weights: (B,) of each in the mean over the batch.
    """

    asked: Conditioning
    meant: Conditioning
    weights: Tensor

    @classmethod
    def alike(cls, asked: Conditioning) -> Captions:
        """All are told the same, and no caption counts more than another."""
        return cls(asked, asked, torch.ones(len(asked), device=asked.tokens.device))

    def mean(self, losses: Tensor) -> Tensor:
        """The weighted mean of (B,) losses."""
        return (self.weights * losses).sum() / self.weights.sum()


@dataclass(frozen=True, eq=False)
class Noised:
    """The generator's pictures in one update.

    Attributes:
        captions: B of them.
        drawn: (B, C', H', W'), what the generator draws; it carries a gradient at the generator's turn.
        noise, t: normal noise like ``drawn``, and (B,) levels.
        z: (B, C', H', W'), the noised pictures.
    """

    captions: Captions
    drawn: Tensor
    noise: Tensor
    t: Tensor
    z: Tensor


class ScoreDistillation(TextToImageDefense):
    """A distillation by the score of the generator's own pictures. A subclass says what the two players minimise."""

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train generator and score by turns.

        Raises:
            UsageError: the base draws nothing.
        """
        models = Models.begin(context.target(self.params.base, TextToImageTarget).to(context.device))
        distil(context, "distil", models, captions_of(context, models.teacher, self.params.batch_size), self, self.params)
        return models.generator

    def score_loss(self, models: Models, seen: Noised) -> Tensor:
        """(B,) what the score minimises: by default the loss that diffusion models are trained by."""
        aim = models.score.training_target(seen.drawn, seen.noise, seen.t)
        return (models.score.unet_output(seen.z, seen.t, seen.captions.asked) - aim).square().mean((1, 2, 3))

    @abstractmethod
    def generator_loss(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """(B,) what the generator minimises; teacher and score are frozen."""


class DirectedDistillation(ScoreDistillation):
    """A method whose generator's pictures are moved against a direction that is held constant."""

    def generator_loss(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """See ``moved``."""
        with torch.no_grad():
            direction = self.direction(models, seen, draws)
        return moved(seen.drawn, direction)

    @abstractmethod
    def direction(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """(B, C', H', W') the gradient of each picture. No gradient is recorded."""


Draw: TypeAlias = "Callable[[torch.Generator], Captions]"


def captions_of(context: FitContext[Prompts], teacher: TextToImageTarget, count: int) -> Draw:
    """A function that draws ``count`` training captions."""
    texts = caption_draws(context.train)

    def draw(draws: torch.Generator) -> Captions:
        with torch.no_grad():
            return Captions.alike(teacher.encode(teacher.tokenize(texts(count, draws))))

    return draw


def distil(
    context: FitContext[Prompts],
    name: str,
    models: Models,
    captions: Draw,
    method: ScoreDistillation,
    params: Any,
) -> None:
    """Train ``models.score`` and ``models.generator`` by turns, in place.

    Args:
        context: seed, device, checkpoints and log.
        name: of this training among those of one defense.
        models: generator and score are moved.
        captions: what each update is about.
        method: its two losses.
        params: ``ScoreDistillationParams``, or others with the same fields.

    Raises:
        TargetError: a loss is not finite any more.
    """
    score = models.score

    def score_loss(draws: torch.Generator) -> Tensor:
        with torch.no_grad():
            found = pictures(models, captions(draws), (0.0, 1.0), draws)
            told = without_captions(score, found.captions, params.drop, draws)
        return told.mean(method.score_loss(models, replace(found, captions=told)))

    def generator_loss(draws: torch.Generator) -> Tensor:
        found = pictures(models, captions(draws), (params.lowest, params.highest), draws)
        with frozen(score.module), frozen(models.teacher.module):
            losses = method.generator_loss(models, found, draws)
        return found.captions.mean(losses)

    players = [
        Player("score", dict(score.unet.named_parameters()), score_loss, params.score_lr, params.critic_steps),
        Player("generator", dict(models.generator.unet.named_parameters()), generator_loss, params.lr),
    ]
    train_by_turns(context, name, players, params, betas=(params.beta1, 0.999))


def distil_together(
    context: FitContext[Prompts],
    name: str,
    models: Models,
    captions: Draw,
    method: ScoreDistillation,
    params: Any,
) -> None:
    """The same, but both players take each step at once, on the same pictures and at the same rate; see ``distil``."""

    def loss(draws: torch.Generator) -> Tensor:
        found = pictures(models, captions(draws), (params.lowest, params.highest), draws)
        fitted = method.score_loss(models, replace(found, drawn=found.drawn.detach(), z=found.z.detach()))
        with frozen(models.score.module), frozen(models.teacher.module):
            losses = method.generator_loss(models, found, draws)
        return found.captions.mean(fitted + losses)

    weights = {f"generator/{key}": weight for key, weight in models.generator.unet.named_parameters()}
    weights |= {f"score/{key}": weight for key, weight in models.score.unet.named_parameters()}
    train_steps(context, name, weights, loss, params)


def pictures(models: Models, captions: Captions, share: tuple[float, float], draws: torch.Generator) -> Noised:
    """What the generator draws of the captions, noised to levels drawn evenly from ``share`` of all."""
    teacher, count = models.teacher, len(captions.asked)
    start, noise = normal(teacher, count, draws), normal(teacher, count, draws)
    drawn = one_step_pictures(models.generator, start, captions.asked)
    t = levels(teacher, count, share, draws)
    return Noised(captions, drawn, noise, t, teacher.add_noise(drawn, noise, t))


def without_captions(score: TextToImageTarget, told: Captions, share: float, draws: torch.Generator) -> Captions:
    """The same, but a ``share`` of the captions is left out for generator and score."""
    left_out = (torch.rand(len(told.asked), generator=draws) < share).to(score.device)
    empty = score.unconditional().expand(len(told.asked))
    tokens = torch.where(left_out[:, None, None], empty.tokens, told.asked.tokens)
    pooled = told.asked.pooled
    if pooled is not None and empty.pooled is not None:
        pooled = torch.where(left_out[:, None], empty.pooled, pooled)
    return Captions(Conditioning(tokens, pooled), told.meant, told.weights)


def moved(drawn: Tensor, direction: Tensor) -> Tensor:
    """1/2 ||x - sg(x - d)||^2 as a mean over each picture's numbers, (B,): its gradient in x is d over their number."""
    return 0.5 * (drawn - (drawn - direction).detach()).square().mean((1, 2, 3))
