"""AutoAttack, standard and adaptive, against torchattacks' and pyautoattack's: robust accuracy, time, passes.

Hours on two cores with the default numbers of images and seeds; ``--images`` and ``--seeds`` make it shorter.
"""

from __future__ import annotations

import _networks
import click
from _harness import COST, Job, Measurement, Verdicts, earlier, fastest, over_seeds, seconds, table, write

# (network, images, standard's share of pyautoattack's time at most: 0.6 where half of the samples stand or fewer, 0.85 where most do)
BOUTS = (("cifar10_resnet20", 500, 0.6), ("pgd_at", 500, 0.6), ("mnist_lenet5_adv", 1000, 0.85))
TURNS = (
    ("autoattack", "robustkd"),
    ("autoattack-adaptive", "robustkd"),
    ("autoattack", "pyautoattack"),
    ("autoattack", "torchattacks"),
)


@click.command()
@click.option("--networks", default=",".join(bout[0] for bout in BOUTS), show_default=True)
@click.option("--images", default=0, help="Instead of each network's own number.")
@click.option("--seeds", default=3, show_default=True, help="Over which each implementation is averaged.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="autoattacks", help="Of the file in results/.")
@click.option("--implementations", default="robustkd,pyautoattack,torchattacks", show_default=True)
@click.option("--reuse", is_flag=True, help="Take the peers' rows from the file in results/ where they are there.")
@click.option("--strict", is_flag=True, help="Fail when a target of strength is missed.")
def main(
    networks: str, images: int, seeds: int, device: str, name: str, implementations: str, reuse: bool, strict: bool
) -> None:
    """Print the table and write results/autoattacks.json."""
    rows: list[Measurement] = []
    strength, speed = Verdicts(), Verdicts()
    for network, count, share in BOUTS:
        if network not in networks.split(",") or not _networks.there(network):
            continue
        eps = _networks.EPS[network]
        bout = []
        for comparison, who in TURNS:
            if who not in implementations.split(","):
                continue
            job = Job(comparison, who, network, images or count, eps, device=device)
            bout.append((earlier(name, job) if reuse and who != "robustkd" else None) or over_seeds(job, seeds))
            print(f"{network}: {who} {comparison} done", flush=True)
        rows += bout
        _compare(bout, share, strength, speed)
    table(rows, [*COST[:1], ("comparison", "attack", ""), *COST[1:], ("robust_accuracy", "robust", ".3f")])
    verdicts = Verdicts(strength.lines + speed.lines)
    verdicts.print()
    write(name, rows, verdicts, device)
    if strict and not strength.all_met:
        raise SystemExit(1)


def _compare(bout: list[Measurement], share: float, strength: Verdicts, speed: Verdicts) -> None:
    standard, adaptive, *peers = bout
    name = standard["network"]
    if standard["implementation"] != "robustkd" or any("error" in row for row in (standard, adaptive)):
        return
    for peer in peers:
        if "error" not in peer:
            said = f"{name}: robust accuracy of standard above {peer['implementation']}'s, points"
            strength.expect(said, 100 * (standard["robust_accuracy"] - peer["robust_accuracy"]), 0.1)
    said = f"{name}: robust accuracy of adaptive above standard's, points"
    strength.expect(said, 100 * (adaptive["robust_accuracy"] - standard["robust_accuracy"]), 0.2)
    # torchattacks' gradient attacks have 10 steps where the procedure has 100.
    if reference := next((peer for peer in peers if peer["implementation"] == "pyautoattack" and "error" not in peer), None):
        speed.expect(f"{name}: standard's time to pyautoattack's", seconds(standard) / seconds(reference), share)
    if best := fastest(peers):
        speed.expect(f"{name}: adaptive's time to {best['implementation']}'s", seconds(adaptive) / seconds(best), 0.10)


if __name__ == "__main__":
    main()
