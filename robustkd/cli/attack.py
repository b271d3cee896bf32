"""``robustkd attack``."""

from __future__ import annotations

from typing import Any

import click

from robustkd.cli.names import plugin_names
from robustkd.cli.one_model import OneModel, allowed, given, images, loaded_model, one_model_options, settings
from robustkd.cli.options import batch_size_option, json_option, precision_option, print_reserved, tell


@click.command("attack")
@click.argument("name", shell_complete=plugin_names("attacks"))
@click.option(
    "--model",
    "reference",
    required=True,
    help="Code (file.py:function, package.module:function), a registered model, a TorchScript, torch.export or ONNX file, "
    "or a folder: of a saved target, or of an image classifier of transformers.",
)
@one_model_options
@click.option("--set", "chosen", multiple=True, metavar="KEY=VALUE", help="A parameter of the attack, such as steps=40.")
@precision_option
@batch_size_option
@click.option(
    "--out", metavar="PATH", help="Save the adversarial inputs: adv.npz, or folder/ for PNG images. 8 bits may undo a success."
)
@json_option
def command(
    name: str,
    reference: str,
    options: OneModel,
    chosen: tuple[str, ...],
    batch_size: int | None,
    precision: Any,
    out: str | None,
    as_json: bool,
) -> None:
    """Attack one model once and print what it did."""
    from robustkd import api
    from robustkd.contracts import ThreatModel
    from robustkd.contracts.devices import device_named
    from robustkd.evaluation.saved import require_place

    there = device_named(options.device)
    splits = images(options)
    within = allowed(options, splits)
    threat = ThreatModel(**within)
    if out is not None:
        require_place(out, splits.test.sample_shape, threat)
    target = loaded_model(reference, options, splits).to(there)
    x, how = given(options, splits)
    report = api.attack(
        name,
        target,
        x,
        splits.test.labels,
        **within,
        seed=options.seed,
        **how,
        precision=precision or "full",
        batch_size=batch_size or api.BATCH_SIZE,
        fit_data=splits.train,
        params=settings("--set", chosen),
    )
    if out is not None:
        click.echo(report.save(out, splits.test_index), err=True)
    if as_json:
        print_reserved(report.to_json())
        return
    numbers, (low, high) = report.to_dict(), report.interval
    click.echo(f"clean accuracy   {report.clean_accuracy:6.1%}   n = {numbers['n']}")
    tell(f"robust accuracy  {report.robust_accuracy:6.1%}   [{low:.1%}, {high:.1%}]   under {name}, {threat}")
    click.echo(f"passes           {numbers['forward_passes']} forward, {numbers['backward_passes']} backward")
    tell("One attack is an upper bound, and no verdict: run a campaign for the worst case and the checks.")
