"""Who meets whom: each attack of robustkd that a peer has too, at the same budget.

Every implementation is ``(model, x, y) -> adversarial images``. What a library cannot be told (a step schedule, say) stays its own.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import _encoder_peers
import _ensemble_peers
import _networks
import _peers
import _score_peers
import _threat_peers
import _transfer_peers
from _job import Job
from torch import Tensor, nn

import robustkd
from robustkd.contracts import ColourBudget, FlowBudget, PerceptualBudget, SpatialBudget

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
Maker = Callable[[Job], Attack]


@dataclass(frozen=True)
class Comparison:
    """An attack of ours and its counterparts.

    Attributes:
        norm: in which the results are judged; ``patch`` is the side of the smallest square around what changed, ``perceptual`` the
            distance of the network's own features, and how far images were transformed is not measured: ``transform``.
        ours: the plug-in, and our names of the budget's entries.
        peers: by library.
        params: parameters of ours beside the budget.
        threat: of ours, where it is no norm: keywords of ``robustkd.attack``.
        judged_on: the network that the results are to fool, where that is another than they are made on.
        learns: whether ours is fitted to images that are not attacked.
        ensemble: whether the network is one of several that answer together, and ours asks for its members.
    """

    norm: str
    ours: str
    peers: Mapping[str, Maker]
    params: Mapping[str, Any] = field(default_factory=dict)
    threat: Callable[[Job], Mapping[str, Any]] | None = None
    judged_on: str | None = None
    learns: bool = False
    ensemble: bool = False


def implementation(job: Job) -> Attack:
    """The attack that a job asks for."""
    comparison = COMPARISONS[job.comparison]
    return _robustkd(comparison, job) if job.implementation == "robustkd" else comparison.peers[job.implementation](job)


def _robustkd(comparison: Comparison, job: Job) -> Attack:
    threat = {"norm": comparison.norm, "eps": job.eps} if comparison.threat is None else comparison.threat(job)
    spec = {"kind": comparison.ours, **ours_of(job.budget), **comparison.params}

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if comparison.judged_on is None:
            fitted: Mapping[str, Any] = {"fit_data": _others(job)} if comparison.learns else {}
            attacked = _ensemble_peers.target(model, tuple(x.shape[1:])) if comparison.ensemble else model
            precision = job.budget.get("precision", "full")
            settings = {"precision": precision, "seed": job.seed, "batch_size": len(x)}
            report = robustkd.attack(spec, attacked, x, y, **threat, **fitted, **settings)
        else:
            fooled = _networks.load(comparison.judged_on, 1, job.device)[0]
            transfer = {"kind": "transfer", "surrogates": "here", "attacks": spec}
            given = {"models": {"here": model}, "fit_data": _others(job), "seed": job.seed, "batch_size": len(x)}
            report = robustkd.attack(transfer, fooled, x, y, **threat, **given)
        return report.adversarial.to(x.device)

    return run


def ours_of(budget: Mapping[str, Any]) -> dict[str, Any]:
    """What of a budget is a parameter of ours: all but that which a peer counts in another way, and the precision of the passes."""
    return {name: value for name, value in budget.items() if not name.startswith("peer_") and name != "precision"}


def _others(job: Job) -> tuple[Tensor, Tensor]:
    """Images that are not attacked, for attacks that mix others in or are fitted."""
    after = job.first + job.images
    _, x, y = _networks.load(job.network, after + _OTHERS, job.device)
    return x[after:], y[after:]


def _torchattacks(name: str, **renamed: Any) -> Maker:
    """``renamed``: their parameter -> our budget's entry, or a function of the job."""

    def make(job: Job) -> Attack:
        import torchattacks

        params = {theirs: job.budget[ours] if isinstance(ours, str) else ours(job) for theirs, ours in renamed.items()}

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return getattr(torchattacks, name)(model, **params)(x, y)

        return run

    return make


def _foolbox(name: str, *, fixed: bool, **renamed: Any) -> Maker:
    def make(job: Job) -> Attack:
        import foolbox

        params = {theirs: job.budget[ours] if isinstance(ours, str) else ours(job) for theirs, ours in renamed.items()}

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
            raw, _, _ = getattr(foolbox.attacks, name)(**params)(wrapped, x, y, epsilons=job.eps if fixed else None)
            return raw

        return run

    return make


def _adv_lib(name: str, *, fixed: bool, given: Mapping[str, Any] | None = None, **renamed: Any) -> Maker:
    def make(job: Job) -> Attack:
        sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # imported for plots that nobody asks for
        import adv_lib.attacks

        params = {theirs: job.budget[ours] if isinstance(ours, str) else ours(job) for theirs, ours in renamed.items()}
        attack = partial(getattr(adv_lib.attacks, name), **params, **(given or {}))

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return attack(model, x, y, job.eps) if fixed else attack(model, x, y)

        return run

    return make


def _pyautoattack(job: Job) -> Attack:
    """As a whole only: of its parts it fixes steps, restarts and queries itself."""
    from pyautoattack import AutoAttack

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[COMPARISONS[job.comparison].norm]
        made = AutoAttack(model, device=job.device, eps=job.eps, norm=norm, seed=job.seed, version="standard")
        found = made.run_standard_evaluation(x, y, batch_size=len(x))
        return found[0] if isinstance(found, tuple) else found

    return run


def _pyautoattack_square(norm: str) -> Maker:
    def make(job: Job) -> Attack:
        from pyautoattack.square import SquareAttack

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = SquareAttack(
                model, norm=norm, eps=job.eps, n_queries=job.budget["queries"], seed=job.seed, device=job.device
            )
            found: Tensor = attack.perturb(x, y)
            return found

        return run

    return make


def _pyautoattack_apgd(norm: str, *, targeted: bool = False) -> Maker:
    """APGD as its AutoAttack runs it: in l1 with three radii, the last of them eps."""

    def make(job: Job) -> Attack:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        given = {"n_iter": job.budget["steps"], "norm": norm, "eps": job.eps, "seed": job.seed, "use_largereps": norm == "L1"}

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = APGDAttack_targeted if targeted else APGDAttack
            found: Tensor = attack(model, **given, device=job.device).perturb(x, y)
            return found

        return run

    return make


def _with_others(make: Callable[[Job, Tensor, Tensor], Attack]) -> Maker:
    """Of a peer that learns from images that are not attacked, and their labels."""
    return lambda job: make(job, *_others(job))


def _eps(job: Job) -> float:
    return job.eps


def _seed(job: Job) -> int:
    return job.seed


def _always(value: Any) -> Callable[[Job], Any]:
    return lambda job: value


def _total(job: Job) -> int:
    """torchattacks' CW has no binary search: it gets all of the steps at once."""
    return int(job.budget["steps"] * job.budget["binary_steps"])


def _patch_anywhere(job: Job) -> Mapping[str, Any]:
    return {"where": {"patch": int(job.eps), "place": "worst"}, "eps": 1.0}


def _patch_in_the_corner(job: Job) -> Mapping[str, Any]:
    return {"where": {"patch": int(job.eps), "place": (0, 0)}, "eps": 1.0}


def _patch_inside(job: Job) -> Mapping[str, Any]:
    return {"where": {"patch": int(job.eps), "place": _inside(job)}, "eps": 1.0}


def _inside(job: Job) -> tuple[int, int]:
    """Where the authors of AdvEncoder put a patch, in images of half the side: seven pixels from the lower right corner."""
    return (32 - 7 - int(job.eps),) * 2


def _transforms(job: Job) -> Mapping[str, Any]:
    return {"budget": SpatialBudget(_peers.ROTATION, _peers.TRANSLATION)}


def _flow(job: Job) -> Mapping[str, Any]:
    return {"budget": FlowBudget(job.eps)}


def _colour(job: Job) -> Mapping[str, Any]:
    return {"budget": ColourBudget(job.eps, colour_space="luv")}


def _perceptual(job: Job) -> Mapping[str, Any]:
    return {"budget": PerceptualBudget(job.eps, layers=tuple(f"network.{name}" for name in _threat_peers.LAYERS))}


_OTHERS = 200
_STEPS = {"eps": _eps, "alpha": "step_size", "steps": "steps"}

COMPARISONS: dict[str, Comparison] = {
    "fgsm": Comparison(
        "linf", "fgsm", {"torchattacks": _torchattacks("FGSM", eps=_eps), "foolbox": _foolbox("FGSM", fixed=True)}
    ),
    "bim": Comparison(
        "linf",
        "bim",
        {
            "torchattacks": _torchattacks("BIM", **_STEPS),
            "foolbox": _foolbox("LinfBasicIterativeAttack", fixed=True, abs_stepsize="step_size", steps="steps"),
        },
    ),
    "pgd": Comparison(
        "linf",
        "pgd",
        {
            "torchattacks": _torchattacks("PGD", **_STEPS),
            "foolbox": _foolbox("LinfPGD", fixed=True, abs_stepsize="step_size", steps="steps"),
            "adv-lib": _adv_lib("pgd_linf", fixed=True, absolute_step_size="step_size", steps="steps"),
        },
    ),
    "pgd-l2": Comparison(
        "l2",
        "pgd",
        {
            "torchattacks": _torchattacks("PGDL2", **_STEPS),
            "foolbox": _foolbox("L2PGD", fixed=True, abs_stepsize="step_size", steps="steps"),
        },
    ),
    "mi-fgsm": Comparison("linf", "mi-fgsm", {"torchattacks": _torchattacks("MIFGSM", **_STEPS)}),
    "ni-fgsm": Comparison("linf", "ni-fgsm", {"torchattacks": _torchattacks("NIFGSM", **_STEPS)}),
    "di2-fgsm": Comparison(
        "linf", "di2-fgsm", {"torchattacks": _torchattacks("DIFGSM", **_STEPS, decay=_always(1.0))}, {"decay": 1.0}
    ),
    "ti-fgsm": Comparison(
        "linf",
        "ti-fgsm",
        {"torchattacks": _torchattacks("TIFGSM", **_STEPS, decay=_always(1.0))},
        {"decay": 1.0, "probability": 0.5},
    ),
    "si-fgsm": Comparison("linf", "si-fgsm", {"torchattacks": _torchattacks("SINIFGSM", **_STEPS)}, {"look_ahead": True}),
    "vmi-fgsm": Comparison("linf", "vmi-fgsm", {"torchattacks": _torchattacks("VMIFGSM", **_STEPS)}, {"neighbours": 5}),
    "vni-fgsm": Comparison("linf", "vni-fgsm", {"torchattacks": _torchattacks("VNIFGSM", **_STEPS)}, {"neighbours": 5}),
    "apgd-ce": Comparison(
        "linf",
        "apgd-ce",
        {
            "torchattacks": _torchattacks("APGD", eps=_eps, steps="steps", seed=_seed),
            "adv-lib": _adv_lib("apgd", fixed=True, given={"norm": float("inf"), "loss_function": "ce"}, n_iter="steps"),
        },
    ),
    "apgd-dlr": Comparison(
        "linf",
        "apgd-dlr",
        {
            "torchattacks": _torchattacks("APGD", eps=_eps, steps="steps", seed=_seed, loss=_always("dlr")),
            "adv-lib": _adv_lib("apgd", fixed=True, given={"norm": float("inf"), "loss_function": "dlr"}, n_iter="steps"),
        },
    ),
    "apgd-t": Comparison(
        "linf",
        "apgd-t",
        {
            "torchattacks": _torchattacks("APGDT", eps=_eps, steps="steps", seed=_seed),
            "adv-lib": _adv_lib("apgd_targeted", fixed=True, given={"norm": float("inf")}, n_iter="steps"),
        },
    ),
    "apgd-ce-l2": Comparison("l2", "apgd-ce", {"pyautoattack": _pyautoattack_apgd("L2")}),
    "apgd-ce-l1": Comparison("l1", "apgd-ce", {"pyautoattack": _pyautoattack_apgd("L1")}),
    "apgd-t-l2": Comparison("l2", "apgd-t", {"pyautoattack": _pyautoattack_apgd("L2", targeted=True)}),
    "apgd-t-l1": Comparison("l1", "apgd-t", {"pyautoattack": _pyautoattack_apgd("L1", targeted=True)}),
    "square": Comparison(
        "linf",
        "square",
        {
            "torchattacks": _torchattacks("Square", eps=_eps, n_queries="queries", seed=_seed),
            "pyautoattack": _pyautoattack_square("Linf"),
        },
    ),
    "square-l2": Comparison("l2", "square", {"pyautoattack": _pyautoattack_square("L2")}),
    "square-l1": Comparison("l1", "square", {"pyautoattack": _pyautoattack_square("L1")}),
    "autoattack": Comparison(
        "linf",
        "autoattack",
        {"torchattacks": _torchattacks("AutoAttack", eps=_eps, seed=_seed), "pyautoattack": _pyautoattack},
    ),
    "autoattack-adaptive": Comparison("linf", "autoattack", {}, {"version": "adaptive"}),
    "cw-l2": Comparison(
        "l2",
        "cw-l2",
        {
            "foolbox": _foolbox("L2CarliniWagnerAttack", fixed=False, binary_search_steps="binary_steps", steps="steps"),
            "adv-lib": _adv_lib("carlini_wagner_l2", fixed=False, binary_search_steps="binary_steps", max_iterations="steps"),
            "torchattacks": _torchattacks("CW", steps=_total),
        },
    ),
    "cw-linf": Comparison("linf", "cw-linf", {"adv-lib": _adv_lib("carlini_wagner_linf", fixed=False, max_iterations="steps")}),
    "ddn": Comparison(
        "l2",
        "ddn",
        {
            "foolbox": _foolbox("DDNAttack", fixed=False, steps="steps"),
            "adv-lib": _adv_lib("ddn", fixed=False, given={"levels": None}, steps="steps"),
        },
    ),
    **{
        f"fmn-{norm}": Comparison(
            norm,
            "fmn",
            {
                "foolbox": _foolbox(f"{theirs}FMNAttack", fixed=False, steps="steps"),
                "adv-lib": _adv_lib("fmn", fixed=False, given={"norm": order}, steps="steps"),
            },
        )
        for norm, theirs, order in (("linf", "LInf", float("inf")), ("l2", "L2", 2), ("l1", "L1", 1), ("l0", "L0", 0))
    },
    **{
        f"fab-{norm}": Comparison(
            norm,
            "fab",
            {
                "torchattacks": _torchattacks("FAB", eps=_eps, steps="steps", norm=_always(theirs)),
                "adv-lib": _adv_lib("fab", fixed=False, given={"norm": order}, n_iter="steps"),
            },
        )
        for norm, theirs, order in (("linf", "Linf", float("inf")), ("l2", "L2", 2), ("l1", "L1", 1))
    },
    "deepfool-l2": Comparison(
        "l2",
        "deepfool",
        {
            "torchattacks": _torchattacks("DeepFool", steps="steps"),
            "foolbox": _foolbox("L2DeepFoolAttack", fixed=False, steps="steps"),
        },
    ),
    "deepfool-linf": Comparison("linf", "deepfool", {"foolbox": _foolbox("LinfDeepFoolAttack", fixed=False, steps="steps")}),
    "ead": Comparison(
        "l1",
        "ead",
        {
            "foolbox": _foolbox(
                "EADAttack", fixed=False, binary_search_steps="binary_steps", steps="steps", decision_rule=_always("L1")
            ),
            "torchattacks": _torchattacks("EADL1", binary_search_steps="binary_steps", max_iterations="steps"),
        },
    ),
}

COMPARISONS |= {
    "sigma-zero": Comparison("l0", "sigma-zero", {"adv-lib": _adv_lib("sigma_zero", fixed=False, num_steps="steps")}),
    "spgd": Comparison("l0", "spgd", {"authors": _peers.authors_spgd(projected=False)}),
    "spgd-projected": Comparison("l0", "spgd", {"authors": _peers.authors_spgd(projected=True)}, {"projected": True}),
    "sparse-rs": Comparison("l0", "sparse-rs", {"authors": _peers.authors_sparse_rs("L0")}),
    "pgd0": Comparison("l0", "pgd0", {"authors": _peers.authors_pgd0}),
    **{
        f"hopskipjump-{norm}": Comparison(
            norm,
            "hopskipjump",
            {
                "foolbox": _peers.by_decisions(norm, _peers.foolbox_hopskipjump),
                "art": _peers.by_decisions(norm, _peers.art_hopskipjump),
            },
        )
        for norm in ("linf", "l2")
    },
    **{
        f"geoda-{norm}": Comparison(norm, "geoda", {"art": _peers.by_decisions(norm, _peers.art_geoda)})
        for norm in ("linf", "l2")
    },
    "rays-linf": Comparison("linf", "rays", {"authors": _peers.by_decisions("linf", _peers.authors_rays)}),
    "simba-l2": Comparison("l2", "simba", {"art": _peers.by_decisions("l2", _peers.art_simba)}, {"basis": "pixel"}),
    "patch-rs": Comparison("patch", "patch-rs", {"authors": _peers.authors_sparse_rs("patches")}, threat=_patch_anywhere),
    "patch-at-a-place": Comparison("patch", "pgd", {"art": _peers.art_masked_pgd}, threat=_patch_in_the_corner),
    "rotate-grid": Comparison(
        "transform", "rotate-grid", {"foolbox": _peers.foolbox_spatial, "art": _peers.art_spatial}, threat=_transforms
    ),
}

COMPARISONS |= {
    **{
        f"bandits-{norm}": Comparison(norm, "bandits", {"authors": _score_peers.authors_bandits(norm)})
        for norm in ("linf", "l2")
    },
    **{f"nes-{norm}": Comparison(norm, "nes", {"authors": _score_peers.authors_nes(norm)}) for norm in ("linf", "l2")},
    "surfree-l2": Comparison("l2", "surfree", {"authors": _peers.by_decisions("l2", _score_peers.authors_surfree)}),
    "lavan": Comparison("patch", "lavan", {"art": _peers.art_masked_pgd}, threat=_patch_in_the_corner),
    "mora": Comparison("linf", "mora", {"authors": _ensemble_peers.authors_mora}, ensemble=True),
    "spsa": Comparison(
        "linf",
        "spsa",
        {
            "torchattacks": _torchattacks(
                "SPSA", eps=_eps, lr="lr", delta="delta", nb_iter="steps", nb_sample="pairs", max_batch_size="pairs"
            )
        },
    ),
    "universal-patch": Comparison(
        "patch",
        "universal-patch",
        {"art": _with_others(_threat_peers.art_universal_patch)},
        threat=_patch_anywhere,
        learns=True,
    ),
    "rotate-pgd": Comparison("transform", "rotate-pgd", {"foolbox": _peers.foolbox_random_spatial}, threat=_transforms),
    "patch-pgd": Comparison("patch", "patch-pgd", {"authors": _threat_peers.authors_patch_training}, threat=_patch_anywhere),
    "stadv": Comparison("transform", "stadv", {"authors": _threat_peers.authors_of_recoloradv("stadv")}, threat=_flow),
    "recolor": Comparison(
        "transform", "recolor", {"authors": _threat_peers.authors_of_recoloradv("recoloradv")}, threat=_colour
    ),
    "lpa": Comparison(
        "perceptual",
        "lpa",
        {
            "authors": _threat_peers.authors_perceptual(
                "LagrangePerceptualAttack", num_iterations="steps", binary_steps="rounds"
            )
        },
        threat=_perceptual,
    ),
    "ppgd": Comparison(
        "perceptual",
        "ppgd",
        {
            "authors": _threat_peers.authors_perceptual(
                "PerceptualPGDAttack", num_iterations="steps", cg_iterations="iterations"
            )
        },
        threat=_perceptual,
    ),
    **{
        f"transfer-{ours}": Comparison(
            "linf", ours, {"transferattack": _transfer_peers.transferattack(theirs, **renamed)}, judged_on="cifar10_resnet56"
        )
        for ours, theirs, renamed in (
            ("mi-fgsm", "mifgsm", {}),
            ("vmi-fgsm", "vmifgsm", {"num_neighbor": "neighbours"}),
            ("admix", "admix", {"num_admix": "mixed", "num_scale": "copies"}),
            ("ssa", "ssm", {"num_spectrum": "copies"}),
            ("pgn", "pgn", {"num_neighbor": "neighbours"}),
            ("bsr", "bsr", {"num_scale": "copies", "num_block": "blocks"}),
            ("ila", "ila", {}),
        )
    },
}

COMPARISONS |= {
    "transfer-sgm": Comparison(
        "linf", "sgm", {"transferattack": _transfer_peers.transferattack_sgm}, judged_on="cifar10_resnet56"
    ),
    "smoothed-pgd": Comparison("linf", "smoothed-pgd", {"formula": _transfer_peers.smoothed_by_formula}),
    "universal": Comparison("linf", "universal", {"art": _with_others(_encoder_peers.art_universal)}, learns=True),
    "feature-pgd": Comparison("linf", "feature-pgd", {"authors": _encoder_peers.authors_feature_pgd}, {"distance": "l2"}),
    "feature-target": Comparison(
        "linf", "feature-target", {"art": _with_others(_encoder_peers.art_feature_target)}, learns=True
    ),
    "adv-encoder": Comparison(
        "linf", "adv-encoder", {"authors": _with_others(_encoder_peers.authors_adv_encoder)}, learns=True
    ),
    "adv-encoder-patch": Comparison(
        "patch",
        "adv-encoder-patch",
        {"authors": _with_others(_encoder_peers.authors_adv_encoder_patch(_inside))},
        threat=_patch_inside,
        learns=True,
    ),
}

MINIMUM_NORM = (
    "cw-l2",
    "cw-linf",
    "ddn",
    "fmn-linf",
    "fmn-l2",
    "fmn-l1",
    "fmn-l0",
    "fab-linf",
    "fab-l2",
    "fab-l1",
    "deepfool-l2",
)
MINIMUM_NORM += (
    "deepfool-linf",
    "ead",
    "sigma-zero",
    "hopskipjump-linf",
    "hopskipjump-l2",
    "geoda-linf",
    "geoda-l2",
    "rays-linf",
    "surfree-l2",
)
