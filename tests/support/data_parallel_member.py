"""One of several processes: trains defenses on its shares of the minibatches and writes the weights. Run by test_data_parallel.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from robustkd import plugins
from robustkd.contracts import Arrays, FitContext, ThreatModel
from robustkd.models.small import TinyCNN, TinyCNNParams
from robustkd.targets import ClassifierTarget


def trained(kind: str, params: dict[str, object], folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights and the epochs' metrics of a defense with two teachers, on 90 noisy pictures of three stripes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 100)
    images = rng.uniform(0, 0.5, (100, 1, 8, 8)).astype(np.float32)
    images[np.arange(100), 0, 2 * labels] += 0.5
    data = Arrays(images, labels)
    history: list[dict[str, float]] = []
    context = FitContext(
        train=data.select(np.arange(90)),
        validation=data.select(np.arange(90, 100)),
        input_shape=(1, 8, 8),
        num_classes=3,
        threat=ThreatModel(eps=0.15),
        seed=3,
        device=torch.device("cpu"),
        checkpoints=folder / "checkpoints",
        targets={name: teacher(seed) for seed, name in enumerate(("clean", "robust"))},
        log=lambda epoch, metrics: history.append(dict(metrics)),
    )
    target = plugins.make("defenses", {"kind": kind, **params}).fit(context)
    return target.module.state_dict(), history


def teacher(seed: int) -> ClassifierTarget:
    """A network with fresh weights."""
    torch.manual_seed(seed)
    module = TinyCNN(TinyCNNParams(width=4)).build((1, 8, 8), 3)
    return ClassifierTarget(module, num_classes=3, input_shape=(1, 8, 8))


if __name__ == "__main__":
    rank, size, jobs, folder = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for number, job in enumerate(jobs):
        weights, history = trained(job["kind"], job["params"], folder / str(number))
        save_file(weights, folder / f"weights-{number}-{rank}.safetensors")
        (folder / f"history-{number}-{rank}.json").write_text(json.dumps(history))
    dist.destroy_process_group()
