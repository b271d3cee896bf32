"""A result as an entry of RobustBench's leaderboard, ``model_info/<dataset>/<threat model>/<model>.json``.

The leaderboard's figure is one attack's: AutoAttack, version standard, as its authors set it, on all test images. Nothing else is
written as ``autoattack_acc``.

Source: Croce et al.: RobustBench: a standardized adversarial robustness benchmark (NeurIPS Datasets and Benchmarks 2021); the keys are
those of ``robustbench.utils.ModelInfo``, 1.1.1.
"""

from __future__ import annotations

import json
import math

from robustkd import plugins
from robustkd.contracts import UsageError
from robustkd.contracts.threat import number_written
from robustkd.scoring.results import CellResult, Results
from robustkd.scoring.summaries import AttackSummary

TEST_IMAGES = 10_000
BUDGETS = {("cifar10", "linf"): "8/255", ("cifar10", "l2"): "0.5", ("cifar100", "linf"): "8/255"}
"""eps of the leaderboards, by data set and norm. ImageNet's is missing: it is of 5,000 images of a list of RobustBench's own."""
KIND = "autoattack"


def entry(results: Results, defense: str, seed: int) -> str:
    """The entry of a trained defense as JSON. What a campaign does not know (paper, authors, architecture ..) is left to fill in.

    Raises:
        UsageError: the campaign did not measure the leaderboard's figure on it; the message says what is missing.
    """
    refusals = []
    for cell in results.cells:
        if (cell.defense, cell.seed) == (defense, seed) and (used := results.attacks.get(cell.attack)) and used.kind == KIND:
            if not (why := _against(results, cell, used)):
                return _written(results, cell)
            refusals.append(f"{cell.attack}: {why}")
    if not refusals:
        refusals = [f"no attack of the campaign on '{defense}' with seed {seed} is {KIND}"]
    raise UsageError(
        f"this is no figure of RobustBench's leaderboard: {'; '.join(refusals)}",
        fix="run {kind: autoattack} with its defaults on all 10,000 test images of cifar10 (linf 8/255, l2 0.5) or cifar100 (linf 8/255)",
    )


def _against(results: Results, cell: CellResult, used: AttackSummary) -> str:
    """Why a cell's number is not the leaderboard's; empty where it is."""
    plugin = plugins.load("attacks", KIND)
    defaults = plugin.Params().model_dump(mode="json")
    changed = [
        f"{name} is {used.params.get(name)}, not {value}" for name, value in defaults.items() if used.params.get(name) != value
    ]
    eps = BUDGETS.get((results.data.name, cell.norm))
    verdicts = [row.verdict for row in results.defenses if (row.defense, row.seed) == (cell.defense, cell.seed)]
    if cell.status != "done" or cell.robust_accuracy is None or cell.clean_accuracy is None:
        return f"it has no number ({cell.status})"
    if eps is None:
        return f"there is no leaderboard for the data '{results.data.name}' in {cell.norm}"
    if not math.isclose(cell.eps, number_written(eps), rel_tol=1e-6):
        return f"eps is {cell.eps:.6g}, the leaderboard's is {eps}"
    if cell.goal != "untargeted":
        return "it is targeted"
    if cell.where is not None:
        return "it is about a part of the image"
    if cell.n != TEST_IMAGES:
        return f"{cell.n:,} samples, and the leaderboard's figure is of all {TEST_IMAGES:,}"
    if changed:
        return ", ".join(changed)
    if used.version != plugin.version or used.source:
        return f"it was made by version {used.version} of the attack, and {plugin.version} is the present one"
    if cell.draws > 1:
        return "the defense draws random numbers, and the leaderboard takes deterministic ones"
    return "the checks find the robust accuracy not credible" if "not credible" in verdicts else ""


def _written(results: Results, cell: CellResult) -> str:
    assert cell.robust_accuracy is not None
    assert cell.clean_accuracy is not None
    unknown = {"link": "", "name": "", "authors": "", "additional_data": None, "number_forward_passes": None}
    known = {
        "dataset": results.data.name,
        "venue": "",
        "architecture": "",
        "eps": BUDGETS[results.data.name, cell.norm],
        "clean_acc": str(round(100 * cell.clean_accuracy, 2)),
        "reported": "",
        "autoattack_acc": str(round(100 * cell.robust_accuracy, 2)),
    }
    return json.dumps(unknown | known, indent=2) + "\n"
