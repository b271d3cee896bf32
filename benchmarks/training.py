"""What robustkd's training costs beside the network: an epoch of MTARD against the bare passes that it is made of.

Of each minibatch these are 10 forward and backward passes of the inner maximisation, one forward pass of each teacher, and the training
pass: the loss on x~ and on x, forward and backward. All the rest of an epoch is overhead: the examples' projections, the optimiser, the
balances, the sums for the log, one validation sample and the checkpoint. A second row leaves x out of the training pass, which MTARD
cannot do.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from _harness import COST, Verdicts, conclude, repeated
from torch import Tensor, nn

from robustkd.contracts import Arrays, FitContext, ThreatModel
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.image.robust_distillation.mtard import MTARDParams, MTARDRecipe, MTARDTeachers
from robustkd.defenses.training import Adversary, Teacher, fresh_network, kl, train
from robustkd.targets import ClassifierTarget, frozen

EPS = 8 / 255
STEPS = 10
SHAPES = {"tiny-cnn": (1, 28, 28), "small-cnn": (1, 28, 28)}


@dataclass
class Setting:
    """A student, its two teachers, and the data, which are noise: only the passes matter."""

    context: FitContext
    params: MTARDParams
    student: ClassifierTarget
    clean: ClassifierTarget
    robust: ClassifierTarget
    scratch: tempfile.TemporaryDirectory[str]

    @classmethod
    def of(cls, student: str, teacher: str, images: int, batch: int, device: torch.device) -> Setting:
        """Fresh networks."""
        shape = SHAPES.get(student, (3, 32, 32))
        generator = torch.Generator().manual_seed(0)

        def noise(count: int) -> Arrays:
            return Arrays(
                torch.rand(count, *shape, generator=generator).numpy(), torch.randint(10, (count,), generator=generator).numpy()
            )

        scratch = tempfile.TemporaryDirectory(prefix="robustkd-training-")
        context = FitContext(
            train=noise(images),
            validation=noise(1),
            input_shape=shape,
            num_classes=10,
            threat=ThreatModel(eps=EPS),
            seed=0,
            device=device,
            checkpoints=Path(scratch.name),
        )
        names = MTARDTeachers(clean="clean", robust="robust")
        params = MTARDParams(teachers=names, student=student, epochs=1, batch_size=batch, precision="float32", lr=1e-3)
        learner, clean, robust = (
            fresh_network(context, name, {}, role=name).to(device) for name in (student, teacher, teacher)
        )
        return cls(context, params, learner, clean, robust, scratch)

    def epoch(self) -> None:
        """By robustkd, from the recipe to the checkpoint; the teachers' outputs are not looked up, as when images are augmented."""
        (self.context.checkpoints / "training.safetensors").unlink(missing_ok=True)
        threat = self.context.threat
        adversary = Adversary.under(self.params.inner, threat)
        with frozen(self.clean.module), frozen(self.robust.module):
            recipe = MTARDRecipe(Teacher(self.clean), Teacher(self.robust), adversary, threat, self.params)
            train(self.context, self.student, recipe, self.params)

    def passes(self, *, both: bool = True) -> None:
        """The bare passes of an epoch."""
        images, labels = torch.from_numpy(self.context.train.images), torch.from_numpy(self.context.train.labels)
        device, size = self.context.device, self.params.batch_size
        for x, y in zip(images.to(device).split(size), labels.to(device).split(size), strict=True):
            with frozen(self.student.module):
                for _ in range(STEPS):
                    leaf = x.clone().requires_grad_()
                    torch.autograd.grad(F.cross_entropy(self.student.module(leaf), y), leaf)
            with torch.no_grad(), frozen(self.clean.module), frozen(self.robust.module):
                natural, robust = self.clean.module(x), self.robust.module(x)
            self.student.module.train()
            loss = kl(robust, self.student.module(x), reduction="batch")
            if both:
                loss = loss + kl(natural, self.student.module(x), reduction="batch")
            self.student.module.zero_grad()
            loss.backward()


def weight_gradients(setting: Setting) -> float:
    """How often a minibatch asks for the gradient of the student's weights, in an epoch by robustkd: once, for the step."""
    computed = 0

    def count(gradient: Tensor) -> None:
        nonlocal computed
        computed += 1

    weights: list[nn.Parameter] = list(setting.student.module.parameters())
    hooks = [weight.register_hook(count) for weight in weights]
    setting.epoch()
    for hook in hooks:
        hook.remove()
    minibatches = -(-len(setting.context.train) // setting.params.batch_size)
    return computed / len(weights) / minibatches


@click.command()
@click.option("--pairs", default="tiny-cnn/small-cnn,resnet20/resnet20", show_default=True, help="Students and their teachers.")
@click.option("--images", default=256, show_default=True, help="In an epoch.")
@click.option("--batch", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--strict", is_flag=True, help="Exit with 1 when a target is missed.")
def main(pairs: str, images: int, batch: int, repeats: int, device: str, strict: bool) -> None:
    """Print the table and write results/training.json."""
    torch.set_num_threads(1)
    rows: list[JsonObject] = []
    verdicts = Verdicts()
    for pair in pairs.split(","):
        student, teacher = pair.split("/")
        setting = Setting.of(student, teacher, images, batch, torch.device(device))
        asked = weight_gradients(setting)  # the first epoch, which warms up as well
        taken = [_three(setting) for _ in range(repeats)]
        bare, one_branch, ours = (repeated(repeats, iter(column).__next__) for column in zip(*taken, strict=True))
        ratio = repeated(repeats, iter([ours / bare for bare, _, ours in taken]).__next__)
        one = repeated(repeats, iter([ours / one for _, one, ours in taken]).__next__)
        network = f"{student} of {teacher}"
        rows += [
            {"network": network, "implementation": "bare passes", "seconds": bare, "ratio": 1.0},
            {"network": network, "implementation": "bare passes without x", "seconds": one_branch, "ratio": ratio / one},
            {"network": network, "implementation": "mtard", "seconds": ours, "ratio": ratio, "weight_gradients": asked},
        ]
        verdicts.expect(f"{network}: an epoch of mtard, to its bare passes", ratio, 1.15)
        verdicts.expect(f"{network}: weight gradients of a minibatch", asked, 1.0)
    weights = ("weight_gradients", "weight gradients/minibatch", ".2f")
    columns = [*COST[:2], ("seconds", "s/epoch", ".3f"), ("ratio", "to bare", ".3f"), weights]
    conclude("training", rows, columns, verdicts, device)
    if strict and not verdicts.all_met:
        raise SystemExit(1)


def _three(setting: Setting) -> tuple[float, float, float]:
    """CPU seconds (wall seconds where the work is done elsewhere) of the bare passes, of those without x, and of robustkd's epoch."""
    device = setting.context.device

    def now() -> float:
        if device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    marks = [now()]
    for work in (setting.passes, lambda: setting.passes(both=False), setting.epoch):
        work()
        marks.append(now())
    return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]


if __name__ == "__main__":
    main()
