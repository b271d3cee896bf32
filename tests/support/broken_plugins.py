"""Plug-ins that each break one promise; test_conformance.py registers them as a package of somebody's."""

import time

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from robustkd.attacks.image.engine.ascent import fixed_budget
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.contracts import (
    Analysis,
    Arrays,
    Attack,
    AttackResult,
    Check,
    Condenser,
    Dataset,
    Detector,
    Model,
    RawData,
    Table,
    Transform,
)
from robustkd.defenses.image.distillation.kd import KD
from robustkd.defenses.image.standard import Standard, StandardRecipe
from robustkd.defenses.training import fresh_network, train
from robustkd.targets import ClassifierTarget

# --- attacks


class Fine(PGD):
    """Three steps of PGD: nothing is wrong with it."""

    class Params(PGDParams):
        steps: int = Field(3, ge=1, description="steps")


def result(batch, adversarial, forwards=1, backwards=0):
    ones = torch.ones(len(batch), dtype=torch.int64)
    success = torch.zeros(len(batch), dtype=torch.bool)
    return AttackResult(adversarial, success, forwards * ones, backwards * ones)


class Overshoots(Fine):
    """Doubles what it found."""

    def run(self, target, batch, threat, rng):
        found = super().run(target, batch, threat, rng)
        far = (batch.inputs + 2 * (found.adversarial - batch.inputs)).clamp(0, 1)
        return AttackResult(far, found.success, found.forwards, found.backwards)


class Boasts(Fine):
    """Claims every sample."""

    def run(self, target, batch, threat, rng):
        found = super().run(target, batch, type(threat)(threat.norm, 0.0), rng)
        return AttackResult(batch.inputs.clone(), torch.ones_like(found.success), found.forwards, found.backwards)


class Draws(Fine):
    """Starts at a point of torch's global generator."""

    def run(self, target, batch, threat, rng):
        start = (batch.inputs + 1e-3 * torch.rand(batch.inputs.shape)).clamp(0, 1)
        found = super().run(target, batch, threat, rng)
        still = torch.where(found.success.view(-1, 1, 1, 1), found.adversarial, start)
        return AttackResult(still, found.success, found.forwards, found.backwards)


class Averages(Fine):
    """Moves every image by the batch's mean gradient."""

    def run(self, target, batch, threat, rng):
        x = batch.inputs.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(target(x), batch.labels), x)
        step = threat.eps * gradient.mean(0, keepdim=True).sign()
        return result(batch, (batch.inputs + step).clamp(0, 1), backwards=1)


class Trains(Fine):
    """Leaves the model in training mode."""

    def run(self, target, batch, threat, rng):
        found = super().run(target, batch, threat, rng)
        target.module.train()
        return found


class Miscounts(Fine):
    """Reports one pass, whatever it made."""

    def run(self, target, batch, threat, rng):
        found = super().run(target, batch, threat, rng)
        return AttackResult(found.adversarial, found.success, torch.ones_like(found.forwards), found.backwards)


class Idle(Attack):
    """Returns the images as they came."""

    norms = ("linf",)
    source = "nowhere"

    def run(self, target, batch, threat, rng):
        return fixed_budget(target, batch, threat, lambda search, rows, ball, number: None, restarts=0)


class Moves(Fine):
    """Adds a thousandth whatever the budget is."""

    def run(self, target, batch, threat, rng):
        found = super().run(target, batch, threat, rng)
        moved = found.adversarial if threat.eps else (batch.inputs + 1e-3).clamp(0, 1)
        return AttackResult(moved, found.success, found.forwards, found.backwards)


class Undocumented(Fine):
    class Params(PGDParams):
        steps: int = Field(3, ge=1, description="steps")
        bias: float = 0.0

    source = ""


class Anything(Fine):
    """Takes any parameter at all."""

    class Params(BaseModel):
        steps: int = 3


class Lax(Fine):
    """Forgives misspelt parameters."""

    class Params(PGDParams):
        model_config = ConfigDict(extra="ignore")


# --- defenses


class Unseeded(Standard):
    """Weights from torch's global generator."""

    def fit(self, context):
        target = ClassifierTarget.from_model("tiny-cnn", {}, input_shape=context.input_shape, num_classes=context.num_classes)
        return train(context, target, StandardRecipe(), self.params)


class ForgetfulRecipe(StandardRecipe):
    """A weight that moves and is not named in ``state``."""

    def __init__(self):
        self.weight = 1.0

    def loss(self, target, batch):
        self.weight *= 0.9
        return self.weight * F.cross_entropy(target(batch.x), batch.y), {}


class Forgetful(Standard):
    """Does not resume where it was."""

    def fit(self, context):
        return train(context, fresh_network(context, "tiny-cnn", {}), ForgetfulRecipe(), self.params)


class Unready(Standard):
    """Returned in training mode."""

    def fit(self, context):
        target = super().fit(context)
        target.module.train()
        return target


class Unsaved(Standard):
    """Computes with a number that is no buffer."""

    def fit(self, context):
        target = super().fit(context)
        for module in target.module.modules():
            if isinstance(module, nn.ReLU):
                module.forward = lambda x: 0.5 * F.relu(x)
        return target


class Secretive(Standard):
    """Looks at the threat model, and says that it does not."""

    def fit(self, context):
        target = super().fit(context)
        with torch.no_grad():
            for parameter in target.module.parameters():
                parameter.mul_(1 + context.threat.eps)
        return target


# --- the rest


class Wordless(Check):
    """Fires, and says nothing."""

    update = "always"
    source = "nowhere"

    def run(self, context):
        return self.finding(True)


class Ragged(Analysis):
    """More columns than values."""

    def run(self, target, batch, threat, seed):
        return Table("a caption", rows=["a"], columns=["x", "y"], values=[[1.0]])


class Bright(Dataset):
    """Bytes, but as floating point."""

    def load(self):
        return RawData(None, Arrays(np.full((4, 1, 8, 8), 200.0, np.float32), np.arange(4)), ("a", "b", "c", "d"))


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Normed(Model):
    """The batch's mean in evaluation mode as well."""

    def build(self, input_shape, num_classes):
        return nn.Sequential(nn.Flatten(), Centred(), nn.Linear(64, num_classes))


class Blocks(nn.Module):
    def forward(self, x):
        return (4 * x).round() / 4


class Opaque(Transform):
    """No gradient, and no surrogate."""

    def build(self, input_shape):
        return Blocks()


class Boastful(KD):
    """Names members that its target does not have."""

    def target_capabilities(self, others):
        return frozenset({"logits", "members"})


class Meddles(KD):
    """Moves its teacher."""

    def fit(self, context):
        student = super().fit(context)
        with torch.no_grad():
            next(context.target(self.params.teacher).module.parameters()).add_(1)
        return student


class Restless(Check):
    """A number that is never the same."""

    update = "never"
    source = "nowhere"

    def run(self, context):
        return self.finding(False, drawn=time.perf_counter())


class Careless(Check):
    """Writes into the weights."""

    update = "never"
    source = "nowhere"

    def run(self, context):
        with torch.no_grad():
            next(context.target.module.parameters()).add_(1)
        return self.finding(False)


def table(value):
    return Table("a caption", rows=["a"], columns=["x"], values=[[value]])


class Fickle(Analysis):
    """Draws from torch's global generator."""

    def run(self, target, batch, threat, seed):
        return table(float(torch.rand(())))


class Rough(Analysis):
    """Draws, and throws it away."""

    def run(self, target, batch, threat, seed):
        np.random.rand()
        return table(1.0)


class Shuffled(Dataset):
    """Another order each time."""

    def load(self):
        images = np.random.default_rng().random((8, 1, 8, 8), np.float32)
        return RawData(None, Arrays(images, np.arange(8) % 2), ("a", "b"))


class Net(nn.Module):
    """A linear layer on the pixels, and a place for what goes wrong."""

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Wide(Model):
    """A class too many."""

    def build(self, input_shape, num_classes):
        return Net(num_classes + 1)


class Constant(Model):
    """Weights that nothing was drawn for."""

    def build(self, input_shape, num_classes):
        net = Net(num_classes)
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.5)
        return net


class Steps(Net):
    def forward(self, x):
        return self.linear(x.flatten(1).round())


class Detached(Model):
    """Rounds its input."""

    def build(self, input_shape, num_classes):
        return Steps(num_classes)


class Offset(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.offset = torch.rand(classes)

    def forward(self, x):
        return super().forward(x) + self.offset


class Hidden(Model):
    """Computes with a tensor that is no buffer."""

    def build(self, input_shape, num_classes):
        return Offset(num_classes)


class Shrinks(Transform):
    """Half the size."""

    def build(self, input_shape):
        return nn.AvgPool2d(2)


class Clock(nn.Module):
    def forward(self, x):
        return x + 1e-3 * (time.perf_counter() % 1)


class Clocked(Transform):
    """Random numbers of its own."""

    def build(self, input_shape):
        return Clock()


# --- detectors


class Scorer(nn.Module):
    """The entropy of the answer, scored as ``how`` says."""

    def __init__(self, how, model=None):
        super().__init__()
        self.how, self.model, self.offset = how, model, 0.0

    def forward(self, inputs, logits):
        log_p = logits.log_softmax(1)
        return self.how(self, -(log_p.exp() * log_p).sum(1))


class Entropic(Detector):
    """The entropy of the answer: a subclass spoils it."""

    source = "nowhere"

    def build(self, model, others):
        return Scorer(lambda scorer, entropy: type(self).spoilt(scorer, entropy), model)


class Columns(Entropic):
    """Returns a column in the place of a row."""

    def spoilt(self, entropy):
        return entropy.unsqueeze(1)


class Relative(Entropic):
    """Scores an image by what else is in its batch."""

    def spoilt(self, entropy):
        return entropy - entropy.mean()


class Guesses(Entropic):
    """Draws a part of its scores."""

    def spoilt(self, entropy):
        return entropy + torch.rand(())


class Amnesiac(Entropic):
    """Keeps what it learns where no file has it."""

    def spoilt(self, entropy):
        return entropy * (1 + self.offset)

    def fit(self, scorer, model, context):
        scorer.offset = 1.0


class Trespasses(Entropic):
    """Changes the classifier that it watches."""

    def spoilt(self, entropy):
        with torch.no_grad():
            next(self.model.module.parameters()).add_(0.1)
        return entropy


class Blunt(Entropic):
    """Scores behind a stage without a gradient, and says nothing of it."""

    def spoilt(self, entropy):
        return entropy.detach()


# --- condensers


class Firsts(Condenser):
    """The first images of each class: a subclass spoils it."""

    source = "nowhere"

    def condense(self, context):
        rows = np.concatenate([np.flatnonzero(context.train.labels == label)[:2] for label in range(context.num_classes)])
        return self.spoilt(context.train.select(rows), context)


class Hoarder(Condenser):
    """Keeps all that there is."""

    source = "nowhere"

    def condense(self, context):
        return context.train


class Dice(Firsts):
    """Draws from a generator that is everybody's."""

    def spoilt(self, arrays, context):
        return arrays.select(np.random.permutation(len(arrays)))


class Rounded(Firsts):
    """Makes images in a type that no file of such data has."""

    def spoilt(self, arrays, context):
        return Arrays(arrays.unit().astype(np.float64), arrays.labels)


class Forgets(Firsts):
    """Goes on from a note that another one left off."""

    def spoilt(self, arrays, context):
        note = context.checkpoints / "note"
        begun = note.exists()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        context.log(0, {"loss": 0.0})
        return arrays.select(np.arange(len(arrays))[::-1]) if begun else arrays


class Scribbles(Firsts):
    """Writes into the training images."""

    def spoilt(self, arrays, context):
        context.train.images[0] = 1 - context.train.images[0]
        return arrays


class Peeks(Firsts):
    """Goes by the threat model, and does not say so."""

    def spoilt(self, arrays, context):
        return arrays.select(np.arange(len(arrays))[::-1]) if context.threat.norm == "l2" else arrays
