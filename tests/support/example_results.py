"""Made-up campaigns: what an honest, a masked, a robust and a doubtful defense look like, without the hours."""

from dataclasses import replace

import numpy as np

from robustkd.contracts import Finding, Share
from robustkd.reporting import AttackedSamples, GalleryItem, SampleEvidence
from robustkd.scoring.intervals import wilson
from robustkd.scoring.paired import compared
from robustkd.scoring.results import CellResult, CurvePoint, DefenseResult, Results, Skipped
from robustkd.scoring.summaries import DataSummary, Environment, ThreatSummary

N = 300
EPS = 0.1
ATTACKS = ("fgsm", "pgd", "pgd-logits", "cw")
CHECKS = (
    ("threat-model-audit", "severe"),
    ("output-type", "warning"),
    ("randomised-output", "severe"),
    ("zero-gradient", "severe"),
    ("logit-scale-invariance", "severe"),
    ("loss-disagreement", "severe"),
    ("one-step-beats-iterative", "warning"),
    ("black-box-beats-white-box", "severe"),
)
DEFENSES = {  # clean, one accuracy per attack, worst case, verdict
    "standard": ("standard", 0.97, (0.083, 0.0, 0.0, 0.0), 0.0, "credible"),
    "distilled": ("defensive-distillation", 0.973, (0.97, 0.96, 0.203, 0.21), 0.2, "not credible"),
    "pgd-at": ("pgd-at", 0.953, (0.85, 0.81, 0.806, 0.807), 0.8, "credible"),
    "mtard": ("mtard", 0.96, (0.82, 0.78, 0.77, 0.79), 0.76, "suspect"),
}
FIRED = {
    "distilled": {
        "loss-disagreement": (
            {
                "cross_entropy_robust": Share(0.96),
                "logit_margin_robust": Share(0.203),
                "explanation": "PGD on the cross entropy leaves 96.0 % standing, the same PGD on the logit margin 20.3 %: "
                "the gradient of the cross entropy is masked",
            },
            "attack with a loss on logits (pgd with loss: margin), and report that number",
        ),
        "logit-scale-invariance": (
            {"scale": 40.0, "robust_as_is": Share(0.96), "robust_rescaled": Share(0.22), "p_value": 3.1e-54},
            "divide the logits by a constant before the attack, or use a scale-free loss (DLR)",
        ),
        "zero-gradient": ({"zero_share": Share(0.941), "not_finite_share": Share(0.0), "threshold": 0.05}, ""),
    },
    "mtard": {
        "one-step-beats-iterative": (
            {"samples": 4, "of": N, "explanation": "FGSM breaks 4 samples that PGD leaves standing"},
            "more restarts, or a smaller step",
        )
    },
}


def curve_to(clean: float, worst: float, n: int = N) -> list[CurvePoint]:
    points = []
    for eps in (0.0, 0.02, 0.04, 0.06, 0.08, EPS, 0.12):
        share = clean * (max(worst, 0.002) / clean) ** ((eps / EPS) ** 1.6)
        points.append(CurvePoint(eps, share, *wilson(round(share * n), n)))
    return points


def checks_of(defense: str, seed: int) -> list[Finding]:
    found = []
    for name, severity in CHECKS:
        told, fix = FIRED.get(defense, {}).get(name, ({}, ""))
        if name == "black-box-beats-white-box":
            found.append(Finding(name, severity, False, {"reason": "the campaign has no black-box attack"}, applicable=False))
        elif told and not (name == "zero-gradient" and seed == 2):
            found.append(Finding(name, severity, True, told, fix))
        else:
            found.append(Finding(name, severity, False, {"samples": 64, "worst": 1.5e-7}))
    return found


def campaign(seeds: tuple[int, ...] = (0, 1, 2)) -> Results:
    """A realistic campaign: what an honest, a masked, a robust and a doubtful defense look like."""
    cells, defenses = [], []
    for seed in seeds:
        shift = (0.0, 0.012, -0.009)[seed]
        for name, (kind, clean, robust, worst, verdict) in DEFENSES.items():
            clean = clean - shift / 4
            for attack, share in zip(ATTACKS, robust, strict=True):
                share = max(share + shift, 0.0) if share else 0.0
                cells.append(
                    CellResult(
                        f"{name}-{attack}-{seed}", name, attack, seed, "done", "linf", EPS, N, clean, share,
                        *wilson(round(share * N), N), 1 - share / clean, EPS if attack != "cw" else 0.062,
                        N * 40, N * 20, 1.7 + 40 * share, curve_to(clean, share),
                    )
                )  # fmt: skip
            worst = max(worst + shift, 0.0) if worst else 0.0
            history = [{"epoch": e, "loss": 2 / (e + 1) + 0.1 * seed, "accuracy": clean - 0.3 / (e + 1)} for e in range(6)]
            defenses.append(
                DefenseResult(
                    name, seed, kind, "done", "linf", EPS, N, clean, worst, *wilson(round(worst * N), N), list(ATTACKS),
                    verdict, checks_of(name, seed), curve_to(clean, worst), train_seconds=61.0, history=history,
                )
            )  # fmt: skip
    return Results(
        "digits quickstart",
        ThreatSummary("linf", EPS),
        DataSummary("digits", N, "9f2c51d0a7e84b3361"),
        cells,
        defenses,
        environment=Environment(robustkd="0.1.0", finished="2025-11-22 20:41 UTC", torch="2.9.0"),
    )


def broken_campaign() -> Results:
    """Names with HTML in them, failures with HTML in them, None everywhere."""
    evil = "<script>alert(1)</script>"
    cells = [
        CellResult("a", evil, "pgd|x", 0, "failed", "linf", 8 / 255, error="Traceback:\n  <b>boom</b> & more"),
        CellResult("b", evil, "cw", 0, "invalid", "linf", 8 / 255, N, 0.9, None, error="NaN pixels"),
        CellResult("c", "later", "pgd|x", 0, "pending", "linf", 8 / 255),
    ]
    defenses = [
        DefenseResult(evil, 0, "x", "failed", "linf", 8 / 255, error='died: <img src=x onerror="alert(2)">'),
        DefenseResult("later", 0, "x", "blocked", "linf", 8 / 255),
    ]
    skipped = [Skipped("later", "cw", "needs logits & <em>more</em>")]
    return Results(f"{evil} campaign", ThreatSummary("linf", 8 / 255), DataSummary("unknown", 0), cells, defenses, skipped)


def pictures(defenses=tuple(DEFENSES), attacks=ATTACKS, each: int = 4, side: int = 8, channels: int = 1) -> list[GalleryItem]:
    rng = np.random.default_rng(0)
    items = []
    for defense in defenses:
        for attack in attacks:
            for k in range(each):
                clean = rng.random((channels, side, side), dtype=np.float32)
                adversarial = np.clip(clean + rng.choice([-EPS, EPS], clean.shape).astype(np.float32), 0, 1)
                items.append(GalleryItem(defense, attack, 0, clean, adversarial, k, k, (k + 3) % 10, EPS, "linf"))
    return items


def evidence(results: Results, classes: int = 10, n: int = N) -> SampleEvidence:
    """Samples whose outcomes agree with the campaign's numbers: the hard ones fall first, to every attack alike."""
    label = np.arange(n) % classes
    hardness = np.random.default_rng(0).permutation(n) / n
    parts: dict[tuple[str, int], AttackedSamples] = {}
    for cell in results.cells:
        if cell.robust_accuracy is None or cell.clean_accuracy is None:
            continue
        wrong, falls = hardness >= cell.clean_accuracy, hardness >= cell.robust_accuracy
        before = np.where(wrong, (label + 1) % classes, label)
        key = cell.defense, cell.seed
        part = parts.setdefault(key, AttackedSamples(*key, np.arange(n) + 1000, label, before == label, {}, before))
        part.taken_for[cell.attack] = np.where(falls & ~wrong, (label + 3) % classes, -1)
    return SampleEvidence([f"class {k}" for k in range(classes)], list(parts.values()))


def large(defenses: int, attacks: int) -> Results:
    """One seed of many defenses and attacks."""
    one = campaign((0,))
    names = [f"defense {i}" for i in range(defenses)]
    trained = [
        replace(one.defenses[i % 4], defense=name, attacks=[f"a{j}" for j in range(attacks)]) for i, name in enumerate(names)
    ]
    cells = [
        replace(one.cells[(4 * i + j) % 16], cell_id=f"{i}.{j}", defense=name, attack=f"a{j}")
        for i, name in enumerate(names)
        for j in range(attacks)
    ]
    draws = np.random.default_rng(0).random((defenses, N))
    standing = ((name, 0, draws[i] < 0.1 + 0.8 * i / defenses) for i, name in enumerate(names))
    return replace(one, cells=cells, defenses=trained, comparisons=compared(standing))
