"""``robustkd attack``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from robustkd.cli.options import json_option


@click.command("attack")
@click.argument("name")
@click.option(
    "--model", "reference", required=True, help="A saved target's folder, or code: package.module:function or file.py:function."
)
@click.option(
    "--weights", type=click.Path(path_type=Path, dir_okay=False), help="Weights for code: safetensors, or a torch state_dict."
)
@click.option("--data", default="digits", show_default=True, help="A data set (robustkd list datasets); its test part is used.")
@click.option(
    "--data-set", "data_settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the data set, such as root=PATH."
)
@click.option("--n", type=click.IntRange(1), help="How many test samples [default: all].")
@click.option("--norm", default="linf", show_default=True, type=click.Choice(["linf", "l2", "l1", "l0"]))
@click.option("--eps", default="8/255", show_default=True, help="Budget in pixel units of [0, 1].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the attack, such as steps=40.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@json_option
def command(
    name: str,
    reference: str,
    weights: Path | None,
    data: str,
    data_settings: tuple[str, ...],
    n: int | None,
    norm: Any,
    eps: str,
    settings: tuple[str, ...],
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Attack one model once and print what it did."""
    from robustkd import api
    from robustkd.campaigns.worker import device_named
    from robustkd.contracts import UsageError
    from robustkd.data import SplitParams, load_splits
    from robustkd.scoring.intervals import wilson

    budget = _value("--eps", eps)
    if not isinstance(budget, int | float) or budget < 0:
        raise UsageError(f"--eps is '{eps}'", fix="give a number >= 0, such as 0.03 or 8/255")
    splits = load_splits(data, _settings("--data-set", data_settings), SplitParams(test=n))
    target = _model(reference, weights, splits.input_shape, splits.num_classes).to(device_named(device))
    report = api.attack(
        name,
        target,
        splits.test.unit(),
        splits.test.labels,
        norm=norm,
        eps=float(budget),
        seed=seed,
        **_settings("--set", settings),
    )
    outcome = report.outcome
    low, high = wilson(int(outcome.standing.sum()), len(outcome))
    numbers = {
        "n": len(outcome),
        "clean_accuracy": report.clean_accuracy,
        "robust_accuracy": report.robust_accuracy,
        "ci_low": low,
        "ci_high": high,
        "forward_passes": int(outcome.forwards.sum()),
        "backward_passes": int(outcome.backwards.sum()),
    }
    if as_json:
        click.echo(json.dumps(numbers, indent=1))
        return
    click.echo(f"clean accuracy   {report.clean_accuracy:6.1%}   n = {len(outcome)}")
    click.echo(
        f"robust accuracy  {report.robust_accuracy:6.1%}   [{low:.1%}, {high:.1%}]   under {name}, {norm} <= {float(budget):.4g}"
    )
    click.echo(f"passes           {numbers['forward_passes']} forward, {numbers['backward_passes']} backward")
    click.echo("One attack is an upper bound, and no verdict: run a campaign for the worst case and the checks.")


def _model(reference: str, weights: Path | None, shape: tuple[int, ...], classes: int) -> Any:
    from robustkd.targets import ClassifierTarget, load_target
    from robustkd.targets.code import call_by_reference
    from robustkd.targets.files import load_weights

    if Path(reference).is_dir():
        return load_target(Path(reference))
    module = call_by_reference(reference, {})
    if weights is not None:
        load_weights(module, weights)
    return ClassifierTarget(module.eval(), num_classes=classes, input_shape=shape)


def _settings(option: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    from robustkd.contracts import UsageError

    found = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"{option} '{pair}' is no KEY=VALUE", fix=f"such as {option} steps=40")
        found[key] = _value(option, value)
    return found


def _value(option: str, text: str) -> Any:
    """A value as it would be read in a campaign file: 40, 0.01, 8/255, true, or a text."""
    from robustkd.campaigns.yaml_source import parse

    return parse(text, option).data
