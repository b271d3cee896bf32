"""Every attack that a peer has too, side by side at equal budget: is ours at least as strong?

An hour of CPU time with the default numbers of images and three seeds. Searches for the nearest adversarial example draw next to nothing
and have one seed, but for those whose course hangs on rounding.
"""

from __future__ import annotations

import _networks
import click
from _comparisons import COMPARISONS, MINIMUM_NORM
from _harness import COST, Job, Jobs, Measurement, Verdicts, chance, over_seeds, same_machine, seconds, table

from robustkd.contracts.json_value import JsonObject

# Fixed budgets are chosen so that part of the samples survives: only there does strength show. (network, eps by norm, images)
FIXED = (
    ("cifar10_resnet20", {"linf": 1 / 255, "l2": 0.15, "l1": 2.0}, 60),
    ("mnist_lenet5_adv", {"linf": 0.3, "l2": 2.0, "l1": 10.0}, 100),
    ("pgd_at", {"linf": 0.1, "l2": 0.8, "l1": 6.0}, 200),
)
NEAREST = (("cifar10_resnet20", 10), ("mnist_lenet5_adv", 50), ("pgd_at", 100))
_HANG_ON_ROUNDING = ("ddn", "fab-l1")
"""Searches for the nearest example that end elsewhere when images are moved by a millionth: fab-l1 with medians from 5.1 to 7.0."""
_TRANSFERRED = {"transfer-ila": 200}
"""Images of transfer, where it is cheap and forty are too few to tell whose is stronger."""
# Threats that are no norm of the pixels' changes, and attacks by decisions alone. (comparison, network, eps, images)
OTHERS = (
    ("sigma-zero", "mnist_lenet5_adv", 20.0, 60),
    ("spgd", "mnist_lenet5_adv", 20.0, 60),
    ("spgd-projected", "mnist_lenet5_adv", 20.0, 60),
    ("sparse-rs", "mnist_lenet5_adv", 12.0, 60),
    ("pgd0", "mnist_lenet5_clean", 10.0, 60),
    ("hopskipjump-linf", "mnist_lenet5_clean", 0.2, 30),
    ("hopskipjump-l2", "mnist_lenet5_clean", 2.0, 30),
    ("geoda-linf", "mnist_lenet5_clean", 0.2, 30),
    ("geoda-l2", "mnist_lenet5_clean", 2.0, 30),
    ("rays-linf", "mnist_lenet5_clean", 0.2, 30),
    ("simba-l2", "cifar10_resnet20", 2.0, 40),
    ("patch-rs", "cifar10_resnet20", 3.0, 200),
    ("patch-at-a-place", "pgd_at", 9.0, 100),
    ("rotate-grid", "mnist_lenet5_adv", 1.0, 100),
    ("bandits-linf", "mnist_lenet5_clean", 0.2, 100),
    ("bandits-l2", "mnist_lenet5_clean", 2.5, 100),
    ("nes-linf", "mnist_lenet5_clean", 0.25, 100),
    ("nes-l2", "mnist_lenet5_clean", 2.5, 100),
    ("mora", "mnist_pair", 0.2, 200),
    ("spsa", "mnist_lenet5_clean", 0.25, 100),
    ("surfree-l2", "mnist_lenet5_clean", 2.0, 60),
    ("lavan", "mnist_lenet5_clean", 7.0, 100),
    ("patch-pgd", "cifar10_resnet20", 3.0, 100),
    ("universal-patch", "mnist_lenet5_clean", 9.0, 100),
    ("rotate-pgd", "mnist_lenet5_adv", 1.0, 100),
    ("stadv", "cifar10_resnet20", 0.02, 60),
    ("recolor", "cifar10_resnet20", 0.01, 60),
    ("lpa", "cifar10_resnet20", 0.3, 40),
    ("ppgd", "cifar10_resnet20", 0.3, 40),
    ("smoothed-pgd", "fgsm_at", 0.1, 100),
    ("universal", "fgsm_at", 0.2, 100),
    ("feature-pgd", "cifar10_resnet20", 1 / 255, 100),
    ("feature-target", "cifar10_resnet20", 1 / 255, 60),
    ("adv-encoder", "cifar10_resnet20", 10 / 255, 100),
    ("adv-encoder-patch", "cifar10_resnet20", 6.0, 100),
    *((name, "cifar10_resnet20", 4 / 255, _TRANSFERRED.get(name, 40)) for name in COMPARISONS if name.startswith("transfer-")),
)
_TRANSFER: JsonObject = {"steps": 10, "step_size": 0.4 / 255}
BUDGETS: dict[str, JsonObject] = {
    "sigma-zero": {"steps": 100},
    "spgd": {"steps": 100},
    "spgd-projected": {"steps": 100},
    "sparse-rs": {"queries": 300},
    "pgd0": {"steps": 20, "step_size": 0.15},
    "hopskipjump-linf": {"queries": 1000},
    "hopskipjump-l2": {"queries": 1000},
    "geoda-linf": {"queries": 1000},
    "geoda-l2": {"queries": 1000},
    "rays-linf": {"queries": 1000},
    "simba-l2": {"queries": 500},
    "patch-rs": {"queries": 200},
    "patch-at-a-place": {"steps": 20, "step_size": 0.1},
    "rotate-grid": {"rotations": 5, "translations": 3},
    "bandits-linf": {"queries": 450},
    "bandits-l2": {"queries": 450},
    "nes-linf": {"steps": 20, "pairs": 10},
    "nes-l2": {"steps": 20, "pairs": 10},
    "mora": {"steps": 20, "restarts": 5},
    "spsa": {"steps": 20, "pairs": 10, "delta": 0.01, "lr": 0.03},
    "surfree-l2": {"queries": 500},
    "lavan": {"steps": 40, "peer_step_size": 0.1},
    "patch-pgd": {"places": 3, "steps": 20, "step_size": 0.125, "peer_steps": 20},
    "universal-patch": {"epochs": 20, "batch_size": 20, "places": 1},
    "rotate-pgd": {"restarts": 5, "steps": 10},
    "stadv": {"steps": 20},
    "recolor": {"steps": 20},
    "lpa": {"steps": 10, "rounds": 3},
    "ppgd": {"steps": 5, "iterations": 5},
    "transfer-mi-fgsm": _TRANSFER,
    "transfer-vmi-fgsm": {**_TRANSFER, "neighbours": 5},
    "transfer-admix": {**_TRANSFER, "mixed": 3, "copies": 3},
    "transfer-ssa": {**_TRANSFER, "copies": 5},
    "transfer-pgn": {**_TRANSFER, "neighbours": 4},
    "transfer-bsr": {**_TRANSFER, "copies": 5, "blocks": 2},
    "transfer-ila": _TRANSFER,
    "transfer-sgm": {**_TRANSFER, "gamma": 0.5, "decay": 1.0},
    "smoothed-pgd": {"steps": 20, "neighbours": 8},
    "universal": {"epochs": 3},
    "feature-pgd": {"steps": 10},
    "feature-target": {"steps": 20},
    "adv-encoder": {"epochs": 5, "batch_size": 50},
    "adv-encoder-patch": {"epochs": 5, "batch_size": 50},
    "fgsm": {},
    "apgd-ce": {"steps": 100},
    "apgd-dlr": {"steps": 100},
    "apgd-t": {"steps": 100},
    "apgd-ce-l2": {"steps": 100},
    "apgd-ce-l1": {"steps": 100},
    "apgd-t-l2": {"steps": 100},
    "apgd-t-l1": {"steps": 100},
    "square": {"queries": 1000},
    "square-l2": {"queries": 1000},
    "square-l1": {"queries": 1000},
    "cw-l2": {"steps": 200, "binary_steps": 9},
    "cw-linf": {"steps": 1000},
    "ead": {"steps": 200, "binary_steps": 9},
    "deepfool-l2": {"steps": 50},
    "deepfool-linf": {"steps": 50},
}


@click.command()
@click.option(
    "--networks", default="cifar10_resnet20,fgsm_at,mnist_lenet5_adv,mnist_lenet5_clean,mnist_pair,pgd_at", show_default=True
)
@click.option(
    "--comparisons", default=",".join(d for d in COMPARISONS if not d.startswith("autoattack")), help="Which; all by default."
)
@click.option("--images", default=0, help="Instead of each network's own number.")
@click.option("--seeds", default=3, show_default=True, help="Over which each implementation is averaged.")
@click.option("--limit", default=600.0, show_default=True, help="Seconds that an implementation may take.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--name", default="strength", help="Of the file in results/.")
@click.option("--minutes", default=0.0, help="Of CPU time, after which no run is begun; 0: no end.")
@click.option("--again", is_flag=True, help="Measure anew what the file in results/ has.")
@click.option("--strict", is_flag=True, help="Fail when a target of strength is missed, or a run is left to do.")
def main(
    networks: str,
    comparisons: str,
    images: int,
    seeds: int,
    limit: float,
    device: str,
    name: str,
    minutes: float,
    again: bool,
    strict: bool,
) -> None:
    """Print the table and write results/strength.json. Each run is written down at once: the same command goes on where it was stopped."""
    all_jobs = Jobs(name, device, again=again, minutes=minutes)
    rows: list[Measurement] = []
    strength, speed = Verdicts(), Verdicts()
    for network, comparison, eps, count, draws in _bouts():
        if network not in networks.split(",") or comparison not in comparisons.split(",") or not _networks.there(network):
            continue
        budget = BUDGETS.get(comparison, {"steps": 100} if comparison in MINIMUM_NORM else {"steps": 10, "step_size": eps / 4})
        if comparison in ("mi-fgsm", "ni-fgsm", "di2-fgsm", "ti-fgsm", "si-fgsm", "vmi-fgsm", "vni-fgsm"):
            budget = {"steps": 10, "step_size": eps / 10}
        jobs = [
            Job(comparison, who, network, images or count, eps, budget, device=device)
            for who in ("robustkd", *COMPARISONS[comparison].peers)
        ]
        drawn = seeds if draws else 1
        bout = [row for job in jobs if (row := over_seeds(job, drawn, limit=limit, measured=all_jobs.measure))]
        rows += bout
        if len(bout) < len(jobs):
            continue
        print(f"{network}: {comparison} done", flush=True)
        _compare(network, comparison, bout, strength, speed)
    measured = ("median_norm", "median", ".4f"), ("mean_norm", "mean", ".4f"), ("success", "found", ".3f")
    table(rows, [*COST[:1], ("comparison", "attack", ""), *COST[1:], ("robust_accuracy", "robust", ".3f"), *measured])
    verdicts = Verdicts(strength.lines + speed.lines)
    verdicts.print()
    all_jobs.write(rows, verdicts)
    if strict and (all_jobs.left or not strength.all_met):
        raise SystemExit(1)


def _bouts() -> list[tuple[str, str, float, int, bool]]:
    """(network, comparison, eps, images, whether seeds differ)."""
    apart = [comparison for comparison, _, _, _ in OTHERS]
    fixed = [
        (network, comparison, eps[COMPARISONS[comparison].norm], images, True)
        for network, eps, images in FIXED
        for comparison in COMPARISONS
        if COMPARISONS[comparison].norm in eps
        and comparison not in (*MINIMUM_NORM, *apart)
        and not comparison.startswith("autoattack")
    ]
    nearest = [
        (network, comparison, _networks.EPS[network], images, comparison in _HANG_ON_ROUNDING)
        for network, images in NEAREST
        for comparison in MINIMUM_NORM
        if comparison not in apart
    ]
    return fixed + nearest + [(network, comparison, eps, images, True) for comparison, network, eps, images in OTHERS]


def _compare(network: str, comparison: str, bout: list[Measurement], strength: Verdicts, speed: Verdicts) -> None:
    ours, *peers = bout
    peers = [peer for peer in peers if "error" not in peer]
    if "error" in ours or not peers:
        return
    if comparison in MINIMUM_NORM:
        nearest = min(peers, key=lambda row: row["median_norm"])
        said = f"{network}: {comparison}: median norm to {nearest['implementation']}'s"
        by_chance = chance(ours["median_norms"], nearest["median_norms"]) / nearest["median_norm"]
        strength.expect(said, ours["median_norm"] / nearest["median_norm"], 1.01, chance=by_chance)
        most = max(peers, key=lambda row: row["success"])
        said = f"{network}: {comparison}: {most['implementation']}'s success above ours, points"
        strength.expect(said, 100 * (most["success"] - ours["success"]), 0.5)
    else:
        best = min(peers, key=lambda row: row["robust_accuracy"])
        said = f"{network}: {comparison}: robust accuracy above {best['implementation']}'s, points"
        by_chance = 100 * chance(ours["robust_accuracies"], best["robust_accuracies"])
        strength.expect(said, 100 * (ours["robust_accuracy"] - best["robust_accuracy"]), 0.5, chance=by_chance)
    if comparison == "cw-l2" and same_machine([ours, *peers]):
        quickest = min(peers, key=seconds)
        speed.expect(f"{network}: {comparison}: time to {quickest['implementation']}'s", seconds(ours) / seconds(quickest), 0.5)
        # A search that fails on the far samples has a small mean: only those that find as many can be compared.
        as_good = [peer["mean_norm"] for peer in peers if peer["success"] >= ours["success"] - 0.005]
        if as_good:
            speed.expect(f"{network}: {comparison}: mean norm to the best peer's", ours["mean_norm"] / min(as_good), 1.0)


if __name__ == "__main__":
    main()
