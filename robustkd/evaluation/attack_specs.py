"""Attacks as Python's calls are given them: names, mappings, attacks of one's own and functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from robustkd import plugins
from robustkd.contracts import Attack, BaseAttack, Modality, Params, PromptAttack, ThreatModel, UsageError
from robustkd.contracts.json_value import JsonValue
from robustkd.plugins.nested import PluginSpec

AttackLike = str | Mapping[str, Any] | BaseAttack | Callable[..., Any]
"""``"pgd"``, ``{"kind": "pgd", "steps": 40}``, an attack of one's own, or a function ``(model, x, y, eps) -> x_adv``."""
DEFAULT_ATTACKS: tuple[AttackLike, ...] = ("fgsm", "pgd", {"kind": "pgd", "loss": "margin"})
DEFAULT_PROMPT_ATTACKS: tuple[AttackLike, ...] = ("direct", "human-jailbreaks", "best-of-n")
"""Of models that answer: what every one of them can be asked, also one that is only served. A local one is to be searched on as well."""
IN_A_CAMPAIGN = (
    "language models and text-to-image models are attacked in Python, robustkd.attack('gcg', model, requests), or in a campaign: "
    "'robustkd init language-model FILE' or 'robustkd init unlearning FILE' writes one"
)
"""Where somebody is sent who attacks a model that answers requests as if it took images."""


def with_params(attack: AttackLike, params: Mapping[str, Any], more: Mapping[str, Any]) -> AttackLike:
    """The attack with the parameters that are given beside it."""
    if not isinstance(params, Mapping):
        raise UsageError(f"params is a {type(params).__name__}", fix="give a mapping, such as {'steps': 40}")
    if twice := sorted({"kind", *more} & params.keys()):
        raise UsageError(
            f"{', '.join(twice)} of params: given already", fix="name each parameter once, and the attack by its name"
        )
    given = {**params, **more}
    if isinstance(attack, BaseAttack):
        if given:
            raise UsageError(f"{', '.join(given)}: an attack of one's own has its parameters already")
        return attack
    if _is_function(attack):
        made: Attack = plugins.load("attacks", "code").of(attack, **given)
        return made
    if not isinstance(attack, str | Mapping):
        raise _no_attack(attack)
    return {**({"kind": attack} if isinstance(attack, str) else attack), **given}


def _no_attack(given: object) -> UsageError:
    return UsageError(
        f"{given!r} is no attack",
        fix="give a name, a mapping of 'kind' and parameters, or an object: PGD(PGD.Params(..)), not PGD",
    )


def several(attacks: AttackLike | Sequence[AttackLike]) -> Sequence[AttackLike]:
    """One attack or several as a sequence; functions as attacks.

    Raises:
        UsageError: one of them is no attack.
    """
    given = [attacks] if isinstance(attacks, str | Mapping | BaseAttack) or callable(attacks) else attacks
    if not isinstance(given, Sequence):
        raise _no_attack(attacks)
    return [with_params(each, {}, {}) for each in given]


def _is_function(attack: object) -> TypeGuard[Callable[..., Any]]:
    return callable(attack) and not isinstance(attack, type | BaseAttack)


def labelled(attacks: Sequence[AttackLike], threat: ThreatModel) -> dict[str, Attack]:
    """The attacks on images by labels, all different: those that read alike are numbered.

    Raises:
        UsageError: there is none, or the result of one is judged under another threat model than ``threat``.
    """
    used = {label: attack_of(spec) for label, spec in labels(attacks).items()}
    for label, plugin in used.items():
        if (judged := plugin.threat_for(threat)) != threat:
            fix = "run it with robustkd.attack, or in a campaign, which reports each threat model by itself"
            raise UsageError(f"attack '{label}' is judged under {judged}, the robust accuracy is about {threat}", fix=fix)
    return used


def labels(attacks: Sequence[AttackLike]) -> dict[str, AttackLike]:
    """What is given, by labels that are all different: those that read alike are numbered.

    Raises:
        UsageError: there is none.
    """
    used: dict[str, AttackLike] = {}
    for spec in attacks:
        label = _label(spec)
        numbered = (f"{label} #{number}" for number in itertools.count(2))
        used[next(name for name in (label, *itertools.islice(numbered, len(used))) if name not in used)] = spec
    if not used:
        raise UsageError("no attack was named", fix="pass attacks=['pgd', ...]")
    return used


def attack_of(spec: AttackLike) -> Attack:
    """The attack on images that a name or a mapping stands for.

    Raises:
        UsageError: it is for prompts.
        PluginError: there is none of this name, or its parameters are wrong.
    """
    made = _made(spec)
    if not isinstance(made, Attack):
        raise UsageError(f"attack '{made.name}' is for prompts, and here classifiers of images are attacked", fix=IN_A_CAMPAIGN)
    return made


def prompt_attack_of(spec: AttackLike, modality: Modality) -> PromptAttack:
    """The attack on requests that a name or a mapping stands for.

    Raises:
        UsageError: it is for images, or for models of another modality.
        PluginError: there is none of this name, or its parameters are wrong.
    """
    made = _made(spec)
    if not isinstance(made, PromptAttack) or modality not in made.modalities:
        raise UsageError(
            f"attack '{made.name}' is for {' and '.join(made.modalities)}, and here the model is asked by {modality}",
            fix="see `robustkd list attacks`, or give images and a classifier of images",
        )
    return made


def _made(spec: AttackLike) -> BaseAttack:
    if isinstance(spec, BaseAttack):
        return spec
    assert isinstance(spec, str | Mapping)
    made: BaseAttack = plugins.make("attacks", {"kind": spec} if isinstance(spec, str) else spec)
    return made


def _label(spec: AttackLike) -> str:
    """The attack's name, with the parameters that a mapping names or that differ from an object's defaults."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, BaseAttack):
        return _formatted(spec.name, _non_default(spec.params))
    assert isinstance(spec, Mapping)
    return _formatted(str(spec.get("kind", "")), {key: value for key, value in spec.items() if key != "kind"})


def _formatted(kind: str, params: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key}={_value(value)}" for key, value in params.items())
    return f"{kind}({listed})" if listed else kind


def _value(value: Any) -> str:
    if isinstance(value, PluginSpec):
        return _formatted(value.kind, _non_default(value.params))
    return f"[{', '.join(_value(item) for item in value)}]" if isinstance(value, list | tuple) else str(value)


def _non_default(params: Any) -> dict[str, JsonValue]:
    """The parameters that differ from their defaults; none of an attack that holds its parameters in some other way."""
    if not isinstance(params, Params):
        return {}
    fields = {name: field for name, field in type(params).model_fields.items() if name in params.model_fields_set}
    values = {name: getattr(params, name) for name in fields}
    return {
        name: values[name] for name, field in fields.items() if values[name] != field.get_default(call_default_factory=True)
    }
