"""The version of the contracts, what changed from one to the next, and where modules that plug-ins may have imported are now."""

from __future__ import annotations

import re

CONTRACT_VERSION = "2"
"""Raised when a plug-in that was written before has to be changed. A package says which it is written for by an entry point."""

CHANGES: dict[str, str] = {
    "2": "modules have moved: the parts of image attacks are in robustkd.attacks.image.engine, for one",
}
"""What each version changed for plug-ins, in one sentence."""


def _into(old: str, new: str, names: str) -> dict[str, str]:
    return {f"{old}.{name}": f"{new}.{name}" for name in names.split()}


_IMAGE, _TEXT, _DIFFUSION = "robustkd.attacks.image", "robustkd.attacks.text", "robustkd.attacks.diffusion"
_DEFENSES, _CAMPAIGNS = "robustkd.defenses.image", "robustkd.campaigns"

MOVED: dict[str, str] = {
    # Contract 1 -> 2. A name that is a package now is here too: what was imported from the module is in one module of the package.
    "robustkd.evaluation": "robustkd.evaluation.images",
    "robustkd.prompting": "robustkd.evaluation.prompts",
    "robustkd.checking": "robustkd.evaluation.checks",
    "robustkd.scoring.judging": "robustkd.evaluation.judging",
    "robustkd.nested": "robustkd.plugins.nested",
    "robustkd.models.normalise": "robustkd.normalisation.layer",
    "robustkd.sources": "robustkd.plugins.sources",
    "robustkd.autoattack_bridge": "robustkd.integrations.autoattack",
    "robustkd.robustbench_bridge": "robustkd.integrations.robustbench",
    "robustkd.doctor": "robustkd.integrations.doctor",
    "robustkd.report": "robustkd.reporting",
    "robustkd.cli.session": "robustkd.application.session",
    "robustkd.campaigns.evidence": "robustkd.application.samples",
    "robustkd.campaigns.gallery": "robustkd.application.gallery",
    "robustkd.attacks.oracle": f"{_IMAGE}.engine.oracle",
    **_into(_IMAGE, f"{_IMAGE}.engine", "adam ascent ball cascade estimates losses objective side_by_side"),
    **_into(_IMAGE, f"{_IMAGE}.engine.minimum_norm", "nearest finish linearise penalty sparse"),
    **_into(_IMAGE, f"{_IMAGE}.gradient", "fgsm bim pgd apgd mora universal diff_protect"),
    **_into(_IMAGE, f"{_IMAGE}.transferable", "momentum ni_fgsm di2_fgsm ti_fgsm si_fgsm vmi_fgsm sgm"),
    **_into(_IMAGE, f"{_IMAGE}.black_box", "square nes spsa"),
    **_into(_IMAGE, f"{_IMAGE}.minimum_norm", "cw_l2 cw_linf ddn fmn fab ead deepfool"),
    "robustkd.attacks.wrapper": f"{_IMAGE}.wrappers.wrapper",
    **_into(_IMAGE, f"{_IMAGE}.wrappers", "eot bpda transfer"),
    **_into(_IMAGE, f"{_IMAGE}.autoattack", "autoattack adaptive"),
    **_into(_IMAGE, f"{_IMAGE}.corruptions", "corruption corruption_families"),
    "robustkd.attacks.no_attack": f"{_TEXT}.no_attack",
    **_into(_TEXT, f"{_TEXT}.engine", "descent suffix docket slots vocabulary continuous aim other_models templates"),
    **_into(_DIFFUSION, f"{_DIFFUSION}.engine", "token_search slots denoising simplex"),
    **_into(_DEFENSES, f"{_DEFENSES}.adversarial", "pgd_at trades mart fast free"),
    **_into(_DEFENSES, f"{_DEFENSES}.robust_distillation", "ard rslad iad adaad mtard ciard"),
    **_into(
        _DEFENSES,
        f"{_DEFENSES}.distillation",
        "kd bd_kd taid sinkd nd_loss ofa_kd meal_v2 quantised_distillation tgeo_kd dataset_reinforcement hard_augmentation",
    ),
    **_into(
        _DEFENSES,
        f"{_DEFENSES}.self_distillation",
        "defensive_distillation iterated_self_distillation ps_kd random_teacher sla_sd",
    ),
    **_into(_DEFENSES, f"{_DEFENSES}.ensembles", "ensemble ensemble_at dverge adp gal trs"),
    **_into(_DEFENSES, f"{_DEFENSES}.inputs", "transform lq_vae"),
    **_into(_DEFENSES, f"{_DEFENSES}.pretrained", "external robustbench"),
    "robustkd.defenses.analyses": "robustkd.analyses",
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.store", "store durable samples shards identity"),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.file", "spec problems yaml_source schema presets starters"),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.plan", "plan cells changes estimate finished"),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.results", "collect results_file inventory"),
    **_into(
        _CAMPAIGNS,
        f"{_CAMPAIGNS}.execution",
        "run worker job errors lifeline torchrun torchrun_member schedule profile record reproduce engines",
    ),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.comparison", "snapshot compare gate baseline ci"),
}
"""From a module's former name to its present one."""


def moved(error: BaseException) -> tuple[str, str] | None:
    """The former and the present name of the module that an import missed; None where it failed for another reason."""
    if not isinstance(error, ImportError) or not error.name:
        return None
    wanted = re.match(r"cannot import name '(\w+)'", str(error))
    asked = (*([f"{error.name}.{wanted[1]}"] if wanted else []), error.name)
    return next(((name, MOVED[name]) for name in asked if name in MOVED), None)
