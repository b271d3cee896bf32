"""``robustkd export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import tell

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.snapshot import Snapshot
    from robustkd.scoring.results import Results

MODELS = ("safetensors", "transformers", "diffusers", "torchscript", "torch-export", "onnx")
FORMATS = ("adversarial", "model-card", "robustbench", *MODELS)


@click.command("export")
@click.argument("results", shell_complete=outputs)
@click.option("--format", "form", type=click.Choice(FORMATS), default="adversarial", show_default=True)
@click.option(
    "--out", required=True, metavar="PATH", help="What is written; of adversarial inputs adv.npz, or folder/ of PNG images."
)
@click.option(
    "--code", "code", multiple=True, metavar="REFERENCE", help="Code that the model's card may call, such as net.py:build."
)
@click.option("--defense", help="Which defense [default: the only one].")
@click.option("--attack", help="Of adversarial inputs, which attack [default: the only one].")
@click.option("--seed", type=click.IntRange(0), help="Which training [default: the first].")
@click.option("--device", default="auto", show_default=True, help="Where the model is asked again.")
def command(
    results: str,
    form: str,
    out: str,
    defense: str | None,
    attack: str | None,
    seed: int | None,
    device: str,
    code: tuple[str, ...],
) -> None:
    """Write a result of a campaign that was run, or a trained defense, in a form that others read.

    RESULTS: a campaign (file or preset), an output folder or its results.json; with #DEFENSE or #DEFENSE/SEED behind it the defense that
    is meant. safetensors writes a folder with weights and model card; transformers (of a language model) and diffusers (of one that draws)
    the folder that save_pretrained would; torchscript, torch-export and onnx a program from pixels to logits.
    A table of every sample: robustkd store export.
    """
    from robustkd.campaigns.comparison import snapshot
    from robustkd.contracts import UsageError

    results, defense, seed = _named(results, defense, seed)
    found = snapshot.read(results)
    if found.results is None or found.folder is None:
        raise UsageError(f"{results} is a baseline file, not results", fix="name a campaign or its output folder")
    defense = _only("defense", defense, found.defenses)
    if form == "adversarial":
        tell(_adversarial(found, found.folder, out, defense, attack, seed, device))
        return
    if attack is not None:
        raise click.UsageError(f"--attack is for adversarial inputs; a {form} is of the whole defense")
    seed = found.seeds(defense)[0] if seed is None else seed
    if form in MODELS:
        from robustkd.application.trained import export_model, trained_folder

        target = trained_folder(f"{found.folder}#{defense}/{seed}")
        assert target is not None
        tell(export_model(target, Path(out), form, _model_card(found, found.results, defense, seed), code))
        return
    text = (_model_card if form == "model-card" else _robustbench)(found, found.results, defense, seed)
    _write_new(Path(out), text)


def _named(results: str, defense: str | None, seed: int | None) -> tuple[str, str | None, int | None]:
    """The campaign, defense and seed of ``campaign#defense/seed``; those of the options where they are not said there."""
    campaign, mark, rest = results.rpartition("#")
    if not mark or Path(results).exists():
        return results, defense, seed
    name, _, number = rest.partition("/")
    return campaign, defense or name, seed if seed is not None or not number.isdecimal() else int(number)


def _model_card(found: Snapshot, results: Results, defense: str, seed: int) -> str:
    from robustkd.application.model_card import model_card
    from robustkd.campaigns.comparison import gate

    judged = gate.judge_gates(found.gates, results)
    judged = gate.of_another_model(judged, found.outdated) if found.outdated else judged
    return model_card(results, defense, seed, [item.sentence for item in judged if item.defense == defense])


def _robustbench(found: Snapshot, results: Results, defense: str, seed: int) -> str:
    from robustkd.contracts import UsageError
    from robustkd.reporting import robustbench

    if found.outdated:
        raise UsageError(f"these are no numbers of today's model: {found.outdated}")
    return robustbench.entry(results, defense, seed)


def _write_new(file: Path, text: str) -> None:
    """Write a text file that is not there yet: what somebody wrote into a model card is not replaced."""
    from robustkd.campaigns.store.durable import write_text
    from robustkd.contracts import UsageError

    if file.exists():
        raise UsageError(f"{file} is there already", fix="name a new file, and take over what you need of it")
    if not file.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", fix="make it first")
    write_text(file, text)
    click.echo(str(file))


def _adversarial(
    found: Snapshot, folder: Path, out: str, defense: str, attack: str | None, seed: int | None, device: str
) -> str:
    from robustkd.application.adversarial import save_adversarial
    from robustkd.application.campaign import run_before

    attack = _only("attack", attack, list(found.settings))
    return save_adversarial(run_before(folder), folder, defense, attack, seed, out, device)


def _only(what: str, name: str | None, known: list[str]) -> str:
    """The name that was given, or the only one that there is."""
    from robustkd.contracts import UsageError, suggestion

    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        raise UsageError(f"the results have {len(known)} {what}s", fix=f"--{what}, one of: {', '.join(known)}")
    if name not in known:
        raise UsageError(f"there is no {what} '{name}'", fix=suggestion(name, known) or f"one of: {', '.join(known)}")
    return name
