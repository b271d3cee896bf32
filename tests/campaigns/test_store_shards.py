"""An attack cell that is interrupted goes on from its last shard, and nobody can tell."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.attacks.image.gradient.universal import Universal
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.shards import ShardFiles
from robustkd.campaigns.store.store import Store
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.judging import ImageOutcome, PromptOutcome

NETS = """\
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear((x + 0.05 * torch.randn_like(x)).flatten(1))
"""

TEXT = """\
version: 1
name: long
data: {name: digits, train: 200}
threat: {norm: linf, eps: 0.1, curve: [0.05, 0.2]}
checks: none
defenses:
  noisy: {kind: external, code: 'nets.py:Noisy'}
attacks:
  it: {kind: KIND}
"""


@pytest.fixture
def make_plan(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return lambda kind: planning.build(spec.from_text(TEXT.replace("KIND", kind), "test.yaml", tmp_path))


def content(plan, out):
    (cell,) = plan.of("attack")
    entry = Store(out).get(cell.id)
    record = samples.read(entry)
    outcome = {name: array.tobytes() for name, array in record.outcome.columns().items()}
    return outcome, record.broken_at.tobytes(), samples.perturbed(entry).tobytes(), samples.perturbed(entry).shape


class Attacked:
    """Counts the samples that an attack class is run on, and its fits."""

    def __init__(self, monkeypatch):
        self.samples, self.fits = 0, []
        for attack in (PGD, Universal):
            monkeypatch.setattr(attack, "run", self._counted(attack.run))
        monkeypatch.setattr(Universal, "fit", self._fitted(Universal.fit))

    def _counted(self, run):
        def counted(attack, target, batch, threat, rng):
            self.samples += len(batch)
            return run(attack, target, batch, threat, rng)

        return counted

    def _fitted(self, fit):
        def counted(attack, target, data, threat, rng):
            self.fits.append(threat.eps)
            return fit(attack, target, data, threat, rng)

        return counted


def found_in(shard):
    """What a shard holds, whoever it belongs to."""
    arrays = {name: np.array(array) for name, array in load(shard.read_bytes()[32:]).items()}
    outcome = ImageOutcome.of_columns(arrays)
    return Evaluation(outcome, torch.from_numpy(arrays["adversarial"]), arrays["broken_at"])


def interrupt_after(monkeypatch, count):
    write, written = ShardFiles.write, []

    def interrupted(self, first, *content):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(first)
        write(self, first, *content)

    monkeypatch.setattr(ShardFiles, "write", interrupted)


@pytest.mark.parametrize("kind", ["pgd, steps: 3", "universal, epochs: 1"])
def test_an_interrupted_cell_goes_on_from_its_last_shard_with_the_same_bits(kind, make_plan, tmp_path, monkeypatch):
    plan = make_plan(kind)
    undisturbed = Attacked(monkeypatch)
    run(plan, tmp_path / "whole", InlineEngine(), device="cpu")
    learns = plan.campaign.attacks["it"].plugin.learns
    assert len(undisturbed.fits) == len(set(undisturbed.fits))  # once for each eps, not for each shard
    assert (len(undisturbed.fits) > 1) == learns

    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "out", InlineEngine(), device="cpu")
    checkpoints = tmp_path / "out/checkpoints"
    shards = sorted(checkpoints.rglob("shard-*"))
    assert [shard.name for shard in shards] == ["shard-00000000", "shard-00000256"]

    resumed = Attacked(monkeypatch)
    run(plan, tmp_path / "out", InlineEngine(), device="cpu")
    assert resumed.samples < 0.15 * undisturbed.samples  # 27 of 539
    assert content(plan, tmp_path / "out") == content(plan, tmp_path / "whole")
    assert not list(checkpoints.iterdir())


@pytest.mark.parametrize("harm", ["garbage", "cut", "moved", "foreign"])
def test_a_shard_that_is_not_sound_or_not_its_own_is_done_again(harm, make_plan, tmp_path, monkeypatch):
    plan = make_plan("pgd, steps: 1")
    run(plan, tmp_path / "whole", InlineEngine(), device="cpu")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "out", InlineEngine(), device="cpu")
    first, second = sorted((tmp_path / "out/checkpoints").rglob("shard-*"))
    if harm == "garbage":
        first.write_bytes(b"\x00" * 4000)
    elif harm == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif harm == "moved":
        first.write_bytes(second.read_bytes())
    else:  # sound, but with another seed's noise
        foreign = ShardFiles(first.parent, "another cell")
        foreign.write(0, found_in(second), 1.0)
        assert foreign.read(0, ImageOutcome) is not None
    counted = Attacked(monkeypatch)
    run(plan, tmp_path / "out", InlineEngine(), device="cpu")
    assert counted.samples > 256
    assert content(plan, tmp_path / "out") == content(plan, tmp_path / "whole")


def test_what_guards_made_of_requests_comes_back(tmp_path):
    files = ShardFiles(tmp_path, "own")
    flags, counts = np.array([True, False, True]), np.arange(3)
    outcome = PromptOutcome(
        counts, counts, flags, ~flags, counts, counts, ~flags, counts, fooled=flags, alarm=np.array([0.5, -1.0, 1e6])
    )
    found = Evaluation(outcome, torch.zeros(0), np.zeros(3), benign=flags[:2], harmless_alarms=np.array([0.25, -2.0]))
    files.write(0, found, 1.0)
    again = files.read(0, PromptOutcome)
    assert all(np.array_equal(array, again.outcome.columns()[name]) for name, array in outcome.columns().items())
    assert {"fooled", "alarm"} <= set(again.outcome.columns())
    assert np.array_equal(again.harmless_alarms, found.harmless_alarms)
