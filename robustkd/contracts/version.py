"""The version of the contracts, what changed from one to the next, and where what plug-ins may have imported is now."""

from __future__ import annotations

import re

CONTRACT_VERSION = "2"
"""Raised when a plug-in that was written before has to be changed. A package says which it is written for by an entry point."""

CHANGES: dict[str, str] = {
    "2": "modules have moved and names have changed: the parts of image attacks are in robustkd.attacks.image.engine, and its loop, "
    "maximize(.., update=..), was ascend(.., rule=..), for one; a ThreatModel holds a budget: EmbeddingRadius takes the place of "
    "space='embeddings', Corruptions that of space='corruption'; evidence of a check that is a share is a Share(x), or it is shown as "
    "a plain number; PromptAttack and GenerativeTarget are no longer an Attack and a Target (all are a BaseAttack and a BaseTarget); "
    "an attack on prompts that takes gradients says so (gradients = True), one that begins the answer needs 'prefill' and one that draws "
    "again 'sampling', one that puts turns before the request 'conversation', "
    "and a target that does more than answer names it in capabilities; "
    "a GenerativeTarget's strayed() is embedding_distance(), what it is asked is a Request (was Asked), and its answers to a data set are "
    "Responses (was Answered); "
    "an attack that goes by height and width says inputs = 'images', and so does an analysis, while a defense that takes "
    "other inputs says inputs = 'any'; "
    "a recipe for adversarial examples has inner() and outer(), a minibatch all_reduce, and Distillation.prepare() gives "
    "loss and trained target; "
    "the step of an attack asks ball.steepest(gradient, x), which in l1 leaves out pixels that their bounds stop; "
    "TextToImageTarget.encode() gives a Conditioning, whose tokens are what was the tensor",
}
"""What each version changed for plug-ins, in one sentence."""


def _into(old: str, new: str, names: str) -> dict[str, str]:
    return {f"{old}.{name}": f"{new}.{name}" for name in names.split()}


def _renamed(module: str, **names: str) -> dict[str, str]:
    return {f"{module}.{old}": f"{module}.{new}" for old, new in names.items()}


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
    "robustkd.defenses.text.lat.blocks_of": "robustkd.targets.residual_streams.blocks_of",
    "robustkd.attacks.oracle": f"{_IMAGE}.engine.oracle",
    **_into(_IMAGE, f"{_IMAGE}.engine", "adam ascent ball cascade estimates losses objective"),
    f"{_IMAGE}.side_by_side": f"{_IMAGE}.engine.targeted_runs",
    f"{_IMAGE}.finish": f"{_IMAGE}.engine.minimum_norm.refine",
    **_into(_IMAGE, f"{_IMAGE}.engine.minimum_norm", "nearest linearise penalty sparse"),
    **_renamed(
        f"{_IMAGE}.engine.ascent",
        Climbers="AttackState",
        StepRule="Update",
        Slope="GradientEstimator",
        GiveUp="EarlyStop",
        Found="SearchResult",
        Run="Attempt",
        ascend="maximize",
        climb_to_last="last_iterate",
        no_slope="no_gradient",
    ),
    **_renamed(
        f"{_IMAGE}.engine.minimum_norm.nearest", Seekers="MinNormState", Question="MinNormProblem", MoveRule="MinNormUpdate"
    ),
    **_into(_IMAGE, f"{_IMAGE}.gradient", "fgsm bim pgd apgd mora universal diff_protect"),
    **_into(_IMAGE, f"{_IMAGE}.transferable", "momentum ni_fgsm di2_fgsm ti_fgsm si_fgsm vmi_fgsm sgm"),
    **_into(_IMAGE, f"{_IMAGE}.black_box", "square nes spsa"),
    **_into(_IMAGE, f"{_IMAGE}.minimum_norm", "cw_l2 cw_linf ddn fmn fab ead deepfool"),
    "robustkd.attacks.wrapper": f"{_IMAGE}.wrappers.wrapper",
    **_into(_IMAGE, f"{_IMAGE}.wrappers", "eot bpda transfer"),
    **_into(_IMAGE, f"{_IMAGE}.autoattack", "autoattack adaptive"),
    **_into(_IMAGE, f"{_IMAGE}.corruptions", "corruption corruption_families"),
    "robustkd.attacks.no_attack": f"{_TEXT}.no_attack",
    **_into(_TEXT, f"{_TEXT}.engine", "descent suffix slots vocabulary continuous other_models templates"),
    **_into(_TEXT, f"{_TEXT}.suffixes", "gcg beast random_search random_prompt"),
    f"{_TEXT}.human_jailbreaks": f"{_TEXT}.rewording.human_jailbreaks",
    f"{_TEXT}.autodan": f"{_TEXT}.rewording.autodan",
    f"{_TEXT}.pair": f"{_TEXT}.attacker_model.pair",
    f"{_TEXT}.embedding": f"{_TEXT}.embedding_space.embedding",
    f"{_TEXT}.soft_prompt": f"{_TEXT}.embedding_space.soft_prompt",
    f"{_TEXT}.docket": f"{_TEXT}.engine.candidate_queue",
    f"{_TEXT}.aim": f"{_TEXT}.engine.target_prefix",
    f"{_TEXT}.engine.docket": f"{_TEXT}.engine.candidate_queue",
    f"{_TEXT}.engine.aim": f"{_TEXT}.engine.target_prefix",
    **_renamed(
        f"{_TEXT}.engine.continuous",
        Push="EmbeddingPGD",
        Climb="PGDConfig",
        Highest="BestPerturbation",
        climb="maximize",
    ),
    f"{_TEXT}.engine.descent.together": f"{_TEXT}.engine.descent.merge_swaps",
    f"{_TEXT}.engine.suffix.Purse": "robustkd.targets.passes.PassCounter",
    "robustkd.defenses.text.junk": "robustkd.defenses.text.random_suffix",
    **_into(_DIFFUSION, f"{_DIFFUSION}.engine", "token_search slots denoising simplex"),
    "robustkd.defenses.diffusion.sfd": "robustkd.defenses.diffusion.one_step.sfd",
    **_into(_DEFENSES, f"{_DEFENSES}.adversarial", "pgd_at trades mart fast free"),
    **_into(_DEFENSES, f"{_DEFENSES}.robust_distillation", "ard rslad iad adaad mtard ciard"),
    **_into(
        _DEFENSES,
        f"{_DEFENSES}.distillation",
        "kd bd_kd taid sinkd nd_loss ofa_kd meal_v2 quantised_distillation tgeo_kd dataset_reinforcement hard_augmentation",
    ),
    **_into(
        _DEFENSES,
        f"{_DEFENSES}.distillation.self_distillation",
        "defensive_distillation iterated_self_distillation ps_kd random_teacher sla_sd",
    ),
    **_into(_DEFENSES, f"{_DEFENSES}.ensembles", "ensemble ensemble_at dverge adp gal trs"),
    **_into(_DEFENSES, f"{_DEFENSES}.inputs", "transform lq_vae"),
    **_into(_DEFENSES, f"{_DEFENSES}.pretrained", "external robustbench"),
    # Names that trainings of other packages import.
    "robustkd.defenses.training.loop.train": "robustkd.defenses.training.epochs.train",
    **{
        f"robustkd.defenses.training.{old}": f"robustkd.defenses.training.{new}"
        for old, new in {
            "teaching": "frozen_teacher",
            "TaughtInner": "TeacherInner",
            "TaughtRecipe": "TeacherRecipe",
            "networks.initialising": "networks.seeded_init",
            "distillation.beside": "auxiliary.with_auxiliary",
            "distillation.Companion": "auxiliary.AuxiliaryNetwork",
        }.items()
    },
    "robustkd.defenses.training.seeding.preserved_rng": "robustkd.contracts.random.preserved_rng",
    "robustkd.campaigns.worker.device_named": "robustkd.contracts.devices.device_named",
    "robustkd.campaigns.execution.worker.device_named": "robustkd.contracts.devices.device_named",
    "robustkd.campaigns.execution.workspace.device_named": "robustkd.contracts.devices.device_named",
    **_renamed("robustkd.contracts", Asked="Request", Answered="Responses"),
    **_renamed("robustkd.contracts.prompts", Asked="Request", Answered="Responses"),
    "robustkd.contracts.attack.Inputs": "robustkd.contracts.data.Inputs",
    "robustkd.defenses.training.features.last_linear": "robustkd.targets.activations.last_linear",
    "robustkd.defenses.training.features.with_penultimate": "robustkd.targets.activations.with_penultimate",
    "robustkd.defenses.analyses": "robustkd.analyses",
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.store", "store durable samples shards identity"),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.file", "spec problems yaml_source schema presets starters"),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.plan", "plan cells changes estimate finished"),
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.results", "collect results_file inventory"),
    **_into(
        _CAMPAIGNS,
        f"{_CAMPAIGNS}.execution",
        "run worker job errors torchrun torchrun_member schedule profile record reproduce engines",
    ),
    f"{_CAMPAIGNS}.lifeline": f"{_CAMPAIGNS}.execution.parent_watchdog",
    f"{_CAMPAIGNS}.execution.lifeline": f"{_CAMPAIGNS}.execution.parent_watchdog",
    **_into(_CAMPAIGNS, f"{_CAMPAIGNS}.comparison", "snapshot compare gate baseline ci"),
}
"""From the former name of a module, or of something in it, to the present one."""


def moved(error: BaseException) -> tuple[str, str] | None:
    """The former and the present name of what an import missed; None where it failed for another reason."""
    if not isinstance(error, ImportError) or not error.name:
        return None
    wanted = re.match(r"cannot import name '(\w+)'", str(error))
    asked = (*([f"{error.name}.{wanted[1]}"] if wanted else []), error.name)
    return next(((name, MOVED[name]) for name in asked if name in MOVED), None)
