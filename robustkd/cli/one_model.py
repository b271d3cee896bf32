"""What the commands about a single model share: which model, which data, which budget."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click
import numpy as np

from robustkd.contracts.json_value import JsonValue

if TYPE_CHECKING:
    from robustkd.api import Normalisation, Success
    from robustkd.contracts import Budget
    from robustkd.contracts.threat import Norm
    from robustkd.data import Splits


class ThreatArguments(TypedDict, total=False):
    """The threat model, as arguments of ``robustkd.attack`` and ``robustkd.audit``."""

    norm: Norm
    eps: float | None
    where: Mapping[str, JsonValue] | None
    budget: Budget


class ModelArguments(TypedDict):
    """How a network takes inputs and gives classes, as arguments of ``robustkd.attack`` and ``robustkd.audit``."""

    normalise: Normalisation | None
    bounds: tuple[Any, Any] | None
    classes: Sequence[int] | None
    restrict: bool | None
    success: Success | None


_OF_ALL_DATA = ("bounds", "success", "seed")
"""Parameters that any data set takes."""
_OPTIONS = (
    click.option(
        "--weights",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Weights for code: safetensors, or a file of torch.save.",
    ),
    click.option("--weights-key", metavar="KEY", help="Where in that file they are, such as ema [default: found]."),
    click.option(
        "--kwarg",
        "kwargs",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument of the code's function, or a parameter of a registered model; may be repeated.",
    ),
    click.option(
        "--normalise",
        metavar="CONSTANTS",
        help="What the code's network wants done with the pixels first: imagenet, inception, clip, cifar10, cifar100, svhn, mnist, "
        "fashion-mnist, 0..255, or '{mean: [..], std: [..]}'.",
    ),
    click.option(
        "--bounds",
        metavar="PAIR",
        help="The lowest and the highest value that the code's network takes, such as '[-1, 1]' or '[0, 255]'; the data are brought "
        "there, and --eps is in that unit [default: [0, 1]].",
    ),
    click.option(
        "--classes",
        metavar="LIST",
        help="For each class of the data, the code's network's index of it, such as '[0, 217, 482]'; with --restrict or --no-restrict.",
    ),
    click.option(
        "--restrict/--no-restrict",
        default=None,
        help="Whether the outputs of --classes alone compete, or any other is a wrong answer.",
    ),
    click.option(
        "--code",
        "code",
        multiple=True,
        metavar="REFERENCE",
        help="Code that a saved target's card may call, such as net.py:build; may be repeated [default: none].",
    ),
    click.option(
        "--data", default="digits", show_default=True, help="A data set (robustkd list datasets); its test part is used."
    ),
    click.option(
        "--data-set",
        "data_settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="A parameter of the data set, such as root=PATH; also the bounds, success and seed of a campaign's data block.",
    ),
    click.option("--n", type=click.IntRange(1), help="How many test samples [default: all]."),
    click.option(
        "--norm", default="linf", show_default=True, type=click.Choice(["linf", "l2", "l1", "l0"], case_sensitive=False)
    ),
    click.option(
        "--eps",
        help="Budget in pixel units of [0, 1], or in that of the data's bounds or --bounds, where it has no default [default: 8/255].",
    ),
    click.option(
        "--where",
        "where",
        multiple=True,
        metavar="KEY=VALUE",
        help="The only pixels that may change: patch=5 with place=worst (or random, or '[top, left]'), channels=[0] or mask=FILE; "
        "in a patch eps is the whole pixel range by default.",
    ),
    click.option(
        "--threat",
        "change",
        metavar="BUDGET",
        help="In the place of --norm and --eps, how an image may change, as in a campaign file: '{rotation: 30, translation: 0.1}', "
        "'{flow: 1}', '{colour: 0.06}', '{perceptual: 0.5}'.",
    ),
    click.option("--seed", default=0, show_default=True),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps, xpu, .."),
)


@dataclass(frozen=True)
class OneModel:
    """What the options say that such a command has beside its own, as they were written."""

    weights: Path | None
    weights_key: str | None
    kwargs: tuple[str, ...]
    normalise: str | None
    bounds: str | None
    classes: str | None
    restrict: bool | None
    code: tuple[str, ...]
    data: str
    data_settings: tuple[str, ...]
    n: int | None
    norm: Norm
    eps: str | None
    where: tuple[str, ...]
    change: str | None
    seed: int
    device: str


def one_model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that such a command has beside its own; it gets them as ``options``, one ``OneModel``."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        return command(options=OneModel(**{field.name: values.pop(field.name) for field in fields(OneModel)}), **values)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def budget(options: OneModel, splits: Splits) -> float | None:
    """``--eps``, as a number or a fraction; 8/255 where neither it nor bounds are given, by ``--bounds`` or of the data, and None where
    a patch says it.
    """
    from robustkd.contracts import UsageError

    text, bounds = options.eps, options.bounds
    if bounds is not None and splits.unit is not None:
        raise UsageError(
            "--bounds, and the data have bounds", fix="leave out --bounds: the network is given the data in their own unit"
        )
    if text is None and "patch" in settings("--where", options.where):
        return None
    if text is None:
        if splits.unit is not None:
            raise UsageError(
                "the data have bounds, and no --eps is given", fix="give the budget in the unit of the data: --eps 0.3"
            )
        if bounds is not None:
            raise UsageError(
                "--bounds without --eps", fix="give the budget in the unit of the bounds: with '[0, 255]', --eps 8"
            )
        return 8 / 255
    eps = value("--eps", text)
    if not isinstance(eps, int | float) or eps < 0:
        raise UsageError(f"--eps is '{text}'", fix="give a number >= 0, such as 0.03 or 8/255")
    return float(eps)


def allowed(options: OneModel, splits: Splits) -> ThreatArguments:
    """``--norm``, ``--eps``, ``--where`` and ``--threat``, as arguments of ``robustkd.attack`` and ``robustkd.audit``."""
    from robustkd.campaigns.file.document.threat import ThreatSpec
    from robustkd.campaigns.file.problems import Problem, complaint, validated
    from robustkd.campaigns.file.yaml_source import parse
    from robustkd.contracts import UsageError

    where = options.where
    if options.change is None:
        return {"norm": options.norm, "eps": budget(options, splits), "where": settings("--where", where) or None}
    if options.eps is not None or where:
        raise UsageError(f"--{'where' if where else 'eps'} with --threat", fix="give one of them")
    problems: list[Problem] = []
    source = parse(options.change, "--threat")
    spec = validated(ThreatSpec, source.data, (), Path.cwd(), problems, also=())
    if spec is not None and (wrong := spec.problem("images")):
        problems.append(Problem((), *wrong))
    if spec is None or problems:
        raise complaint(source, problems)
    return {"budget": spec.model().budget}


def images(options: OneModel) -> Splits:
    """The data set's images; of prompts a campaign is told of."""
    from pydantic import ValidationError

    from robustkd import plugins
    from robustkd.api import IN_A_CAMPAIGN
    from robustkd.contracts import UsageError, suggestion
    from robustkd.data import SplitParams, load_splits

    data, params = options.data, settings("--data-set", options.data_settings)
    known = [*plugins.load("datasets", data).Params.model_fields, *_OF_ALL_DATA]
    for key in params.keys() - known:
        raise UsageError(
            f"--data-set {key}: the data '{data}' have no such parameter",
            fix=suggestion(key, known) or f"they have {', '.join(known)}",
        )
    try:
        split = SplitParams(test=options.n, **{key: params.pop(key) for key in _OF_ALL_DATA if key in params})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--data-set {first['loc'][0]}: {first['msg']}", fix="bounds=[-1, 1], or success=any or success={label: 3}"
        ) from None
    splits = load_splits(data, params, split)
    if splits.modality != "images":
        raise UsageError(f"the data '{data}' are prompts, and this command is about classifiers of images", fix=IN_A_CAMPAIGN)
    for note in splits.notes:
        click.echo(f"data: {note}", err=True)
    return splits


def given(options: OneModel, splits: Splits) -> tuple[np.ndarray, ModelArguments]:
    """The inputs as the code's network takes them, and the arguments of ``robustkd.attack`` and ``robustkd.audit`` that say how."""
    from robustkd.contracts import UsageError

    x, unit, bounds = splits.test.unit(), splits.unit, options.bounds
    if options.normalise is not None and (bounds is not None or unit is not None):
        raise UsageError(
            f"--normalise, and {'--bounds is given' if unit is None else 'the data have bounds'}: the constants are of pixels in [0, 1]",
            fix=f"leave out {'--bounds' if unit is None else 'the bounds of the data'}, or normalise inside the network",
        )
    if unit is not None:
        import torch

        x = unit.restored(torch.from_numpy(x).double()).float().numpy()
    elif bounds is not None:
        try:
            low, high = (np.asarray(each, x.dtype) for each in value("--bounds", bounds))
            x = np.clip(low + x * (high - low), low, high)
        except (TypeError, ValueError):
            raise UsageError(f"--bounds is '{bounds}'", fix="give a pair: '[-1, 1]' or '[0, 255]'") from None
    own = None if bounds is None else value("--bounds", bounds)
    return x, {
        "normalise": None if options.normalise is None else value("--normalise", options.normalise),
        "bounds": own if unit is None else (unit.low, unit.high),
        "classes": None if options.classes is None else value("--classes", options.classes),
        "restrict": options.restrict,
        "success": {"label": splits.label} if isinstance(splits.label, int) else splits.label,
    }


def loaded_model(reference: str, options: OneModel, splits: Splits) -> Any:
    """The model that a user names, see ``load_model``; of a registered one, for the data's images and classes.

    Without ``--classes`` its outputs must be known to be the data's classes (``output_names``).
    """
    from robustkd.api import IN_A_CAMPAIGN
    from robustkd.application.trained import load_model
    from robustkd.contracts import UsageError

    if _answers_requests(Path(reference)):
        raise UsageError(
            f"{reference} holds a language or a diffusion model, and this command is about classifiers of images",
            fix=IN_A_CAMPAIGN,
        )
    model = load_model(
        reference,
        weights=options.weights,
        weights_key=options.weights_key,
        kwargs=settings("--kwarg", options.kwargs),
        input_shape=splits.input_shape,
        num_classes=splits.num_classes,
        code=options.code,
        normalised=options.normalise is not None or options.bounds is not None,
    )
    if options.classes is None and splits.label is None:
        _require_known_outputs(model, splits)
    return model


def _require_known_outputs(model: Any, splits: Splits) -> None:
    from robustkd.lazy import torch
    from robustkd.targets import ClassifierTarget
    from robustkd.targets.output_names import count_outputs, require_known_outputs

    outputs = getattr(model, "num_classes", None)
    if not hasattr(model, "card"):
        network = ClassifierTarget(model, num_classes=0, input_shape=splits.input_shape)
        outputs = count_outputs(network, torch.from_numpy(splits.test.select(np.arange(min(2, len(splits.test)))).unit()))
    if outputs is not None:
        require_known_outputs(outputs, splits.classes, known=splits.outputs_known, network=getattr(model, "module", model))


def _answers_requests(folder: Path) -> bool:
    """Whether a folder holds a model of diffusers, or one of transformers with a tokenizer."""
    ours = (folder / "card.json").is_file()
    return not ours and any(
        (folder / name).is_file() for name in ("model_index.json", "tokenizer_config.json", "generation_config.json")
    )


def settings(option: str, pairs: tuple[str, ...]) -> dict[str, JsonValue]:
    """Pairs of KEY=VALUE as a mapping."""
    from robustkd.contracts import UsageError

    found = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            example = "root=my-images" if option == "--data-set" else "steps=40"
            raise UsageError(f"{option} '{pair}' is no KEY=VALUE", fix=f"such as {option} {example}")
        found[key] = value(option, text)
    return found


def value(option: str, text: str) -> Any:
    """A value as it would be read in a campaign file: 40, 0.01, 8/255, true, or a text."""
    from robustkd.campaigns.file.yaml_source import parse

    return parse(text, option).data
