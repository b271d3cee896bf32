"""PGD-40 against the peers', where most samples break and where most survive; four budgets in one run against four runs; and what is saved
where samples leave whose iterates repeat.
"""

from __future__ import annotations

import _networks
import click
import torch
from _counted import Counted
from _harness import COST, Job, Measurement, Verdicts, conclude, fastest, measure, now, seconds

import robustkd
from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.contracts import ThreatModel
from robustkd.evaluation.images import evaluate_attack, make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget

# (network, eps, images, at most this share of the best peer's time)
BOUTS = (("cifar10_resnet20", 8 / 255, 200, 0.25), ("mnist_lenet5_adv", 0.3, 500, 0.80), ("pgd_at", 0.1, 500, 0.80))
PEERS = ("torchattacks", "foolbox", "adv-lib")
SHARES = (0.25, 0.5, 0.75, 1.0)
CYCLE_STEPS = 200


@click.command()
@click.option("--networks", default=",".join(bout[0] for bout in BOUTS), show_default=True)
@click.option("--images", default=0, help="Instead of each network's own number.")
@click.option("--steps", default=40, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(networks: str, images: int, steps: int, device: str) -> None:
    """Print the tables and write results/pgd.json."""
    rows: list[Measurement] = []
    verdicts = Verdicts()
    for name, eps, count, share in BOUTS:
        if name not in networks.split(",") or not _networks.there(name):
            continue
        budget = {"steps": steps, "step_size": eps / 10}
        jobs = [Job("pgd", who, name, images or count, eps, budget, device=device) for who in ("robustkd", *PEERS)]
        bout = [measure(job) for job in jobs]
        rows += bout
        if (best := fastest(bout)) and "error" not in bout[0]:
            verdicts.expect(f"{name}: time to {best['implementation']}'s", seconds(bout[0]) / seconds(best), share)
        several = _four_budgets(name, eps, images or count, device)
        rows.append({"network": name, "implementation": "robustkd, 4 eps at once", **several})
        verdicts.expect(f"{name}: passes of four eps in one run, to those of four runs", several["share_of_passes"], 0.5)
        verdicts.expect(f"{name}: time of four eps in one run, to that of four runs", several["share_of_time"], 0.5)
        cycles = _cycles(name, eps, min(images or count, 200), device)
        rows.append({"network": name, "implementation": f"robustkd, {CYCLE_STEPS} steps, out of a cycle", **cycles})
        verdicts.expect(f"{name}: passes where cycles leave, to all of {CYCLE_STEPS} steps", cycles["share_of_passes"], 0.5)
    columns = [*COST, ("share_of_passes", "of the passes", ".2f"), ("robust_accuracy", "robust", ".3f")]
    conclude("pgd", rows, columns, verdicts, device)


def _cycles(name: str, eps: float, images: int, device: str) -> dict[str, float]:
    """Steps of a quarter of eps from the image: where no sample breaks any more, iterates repeat."""
    torch.set_num_threads(1)
    inner, x, y = _networks.load(name, images, device)
    network = Counted(inner).eval()
    passes, times, standing = [], [], []
    for stop in (True, False):
        before, started = network.passes.total[0], now(device)
        report = robustkd.attack(
            "pgd", network, x, y, eps=eps, steps=CYCLE_STEPS, step_size=eps / 4, random_start=False, stop_at_cycle=stop
        )
        passes.append(network.passes.total[0] - before)
        times.append(now(device) - started)
        standing.append(report.robust_accuracy)
    if standing[0] != standing[1]:
        raise RuntimeError(f"{name}: {standing[0]} stand where cycles leave, {standing[1]} where they do not")
    return {
        "forwards": passes[0] / images,
        "seconds": times[0],
        "share_of_passes": passes[0] / passes[1],
        "share_of_time": times[0] / times[1],
        "robust_accuracy": standing[0],
    }


def _four_budgets(name: str, eps: float, images: int, device: str) -> dict[str, float]:
    torch.set_num_threads(1)
    inner, x, y = _networks.load(name, images, device)
    network = Counted(inner).eval()
    target = ClassifierTarget(network, num_classes=10, input_shape=x.shape[1:])
    batch = with_clean_logits(target, make_batch(x, y, device=device))
    attack = PGD(PGD.Params(steps=20))
    budgets = [share * eps for share in SHARES]
    before = network.passes.total[0]
    started = now(device)
    evaluate_attack(target, attack, batch, ThreatModel("linf", eps), curve=budgets)
    together, took = network.passes.total[0] - before, now(device) - started
    before, started = network.passes.total[0], now(device)
    for budget in budgets:
        robustkd.attack("pgd", network, x, y, eps=budget, steps=20)
    return {
        "seconds": took,
        "forwards": together / images,
        "share_of_passes": together / (network.passes.total[0] - before),
        "share_of_time": took / (now(device) - started),
    }


if __name__ == "__main__":
    main()
