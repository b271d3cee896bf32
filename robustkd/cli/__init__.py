"""The command line. A command's module is imported only when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

# name -> what it does; the command is in robustkd.cli.<name>, where "-" is "_".
COMMANDS = {
    "run": "Run a campaign: train its defenses, attack them, judge and report.",
    "plan": "Show what a campaign would do, and what it leaves out and why.",
    "report": "Write the report of a campaign that was run, again.",
    "compare": "What changed from one campaign to another, tested on the samples that they share.",
    "gate": "Judge a campaign's gates, and whether it fell below a baseline.",
    "store": "List, verify, prune and export the finished cells of a campaign.",
    "export": "Write a result for others: the adversarial inputs of an attack, a model card, a RobustBench entry.",
    "promote": "Register a trained defense that passed its gates in MLflow's model registry.",
    "reproduce": "Re-create a campaign from the record of a run, and say what differs here.",
    "track": "Write a campaign that was run to MLflow, again.",
    "ui": "Open the MLflow dashboard of a campaign.",
    "view": "Show campaigns, samples and conversations as pages, also while they run.",
    "attack": "Attack a saved or external model once, without a campaign.",
    "audit": "Check whether a model's robust accuracy can be believed, without a campaign.",
    "audit-judges": "How well judges of answers agree with people, and whether they go by how an answer looks.",
    "list": "List plug-ins and presets.",
    "describe": "Tell everything about one plug-in: parameters, defaults, source, an example.",
    "init": "Write a commented campaign file to begin with.",
    "schema": "Print the JSON Schema of the campaign file, for editors.",
    "leaderboard": "Rank the defenses of several campaigns that were run.",
    "new": "Write an installable package with a working plug-in to begin with.",
    "test-plugin": "Test whether a plug-in keeps what the platform relies on.",
    "completion": "Print the completion script of a shell.",
    "doctor": "Check the installation; --fix repairs it.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"robustkd.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from robustkd.contracts.errors import suggestion

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = suggestion(args[0], COMMANDS) or "robustkd --help lists the commands"
            raise click.UsageError(f"there is no command '{args[0]}' ({hint})")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names of the commands, none of which is imported for it."""
        commands = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"robustkd {version('robustkd')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Does this defense hold? robustkd answers from one campaign file.

    Begin with `robustkd run quickstart`. Exit codes: 0 done, 1 failure, 2 usage, 3 incomplete (cells failed), 4 a gate failed,
    5 a gate has nothing to judge.
    """
    if os.environ.get("NO_COLOR"):  # no-color.org; rich knows it by itself
        ctx.color = False
    if ctx.invoked_subcommand != "doctor":  # which says it itself
        from robustkd.integrations.checkout import FIX, stale_install

        if stale := stale_install():
            click.echo(f"warning: {stale} ({FIX})", err=True)


def _end() -> None:
    """Spare Python a last look at every object, which takes .5 s after MLflow.

    Not where torch is there too: bindings of its compiler complain about objects that are left.
    """
    if "torch" not in sys.modules:
        gc.freeze()


def _tell_usage(error: click.ClickException) -> None:
    """Print what is wrong with a command line in whole words, with the nearest of the words that can be used in its place."""
    from robustkd.cli.options import tell
    from robustkd.contracts.errors import suggestion

    message, context = error.format_message(), getattr(error, "ctx", None)
    kind = getattr(getattr(error, "param", None), "type", None)
    if isinstance(kind, click.Choice) and (wrong := re.search(r"'([^']*)' is not one of", message)):
        hint = suggestion(wrong[1], map(str, kind.choices))
        message = f"{message.rstrip('.')} ({hint})" if hint else message
    if context is not None:
        click.echo(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
    tell(f"Error: {message}", stream=sys.stderr)


def main() -> None:
    """The entry point: errors of ours become one message and an exit code."""
    atexit.register(_end)
    try:
        sys.exit(cli.main(standalone_mode=False))  # the code that a command gave to Exit, or None
    except click.ClickException as error:
        _tell_usage(error)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        # Of the others nothing is kept.
        kept = (
            "; what is finished is kept, and running again goes on from there"
            if {"run", "reproduce"} & set(sys.argv[1:2])
            else ""
        )
        click.echo(f"stopped{kept}", err=True)
        sys.exit(130)
    except Exception as error:
        from robustkd.cli.options import tell
        from robustkd.contracts.errors import (  # late: it loads pydantic and NumPy, which --help does not need
            RobustkdError,
            lacks_memory,
            show_traceback,
        )
        from robustkd.redaction import safe_to_show

        if not isinstance(error, RobustkdError):
            if not lacks_memory(error):
                raise
            error = RobustkdError(
                f"memory ran out: {error}", fix="use a smaller --batch-size, a smaller model or fewer samples"
            )
        show_traceback(error)
        tell(f"error: {safe_to_show(str(error))}", stream=sys.stderr)
        sys.exit(error.exit_code)
