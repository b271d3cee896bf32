"""Options and printing that several commands share."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Results folder [default: runs/<name of the campaign>]."
)
profile_option = click.option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where and how to run: engine, devices, limits, tracking. Options of the command win over it.",
)
precision_option = click.option(
    "--precision", type=click.Choice(["full", "bf16"]), help="In which attacks take gradients [default: full, the model's own]."
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="The most samples that a model is attacked on at once; only what a random model draws depends on it [default: 256].",
)
allow_missing_option = click.option(
    "--allow-missing",
    is_flag=True,
    help="A gate that has nothing to judge (no number, or not a credible one) ends with code 0, not 5.",
)
_STDOUT = "robustkd.stdout"


def reserve_stdout(ctx: click.Context) -> None:
    """From here on standard output is for ``print_reserved`` alone.

    What models, plug-ins and libraries print goes to standard error, also from C code and from child processes: a program reads what the
    command says.
    """
    ctx.meta[_STDOUT] = ctx.with_resource(_kept_stdout())


def print_reserved(text: str, *, nl: bool = True) -> None:
    """Print to the standard output that ``reserve_stdout`` set apart."""
    click.echo(text, file=click.get_current_context().meta[_STDOUT], nl=nl)


@contextmanager
def _kept_stdout() -> Iterator[TextIO]:
    out = sys.stdout
    out.flush()
    try:
        own = out.fileno() == 1
    except OSError:  # no file: a test's, a notebook's
        own = False
    with redirect_stdout(sys.stderr):
        if not own:
            yield out
            return
        with os.fdopen(os.dup(1), "w", encoding=out.encoding, errors=out.errors) as kept:
            # For good: what C code still holds in its buffers is written when the process ends.
            os.dup2(2, 1)
            yield kept


def _for_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and not ctx.resilient_parsing:
        reserve_stdout(ctx)
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_for_json,
    help="Print JSON, and nothing else on standard output.",
)


def console() -> Console:
    """Where tables are printed. It knows terminals, pipes and NO_COLOR."""
    from rich.console import Console

    made = Console(highlight=False)
    made.width = columns(sys.stdout) or 160  # a pipe has no width to keep to
    return made


def columns(stream: TextIO) -> int | None:
    """The width of a terminal, or what ``COLUMNS`` says; None where there is none to keep to."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(20, int(os.environ["COLUMNS"]))
    return shutil.get_terminal_size().columns if stream.isatty() else None


def tell(text: str, indent: str = "", *, stream: TextIO | None = None) -> None:
    """Print prose without cutting a word; what follows its first line is indented a little more."""
    click.echo(whole_words(text, indent, f"{indent}  ", stream), file=stream)


def whole_words(text: str, indent: str = "", hanging: str | None = None, stream: TextIO | None = None) -> str:
    """``text`` on lines that a stream can show without cutting a word; where it has no width, on its own lines.

    Args:
        indent: before the first line of each of the text's own lines.
        hanging: before the lines that follow it; ``indent`` by default.
        stream: standard output by default.
    """
    width = columns(stream or sys.stdout)
    later = indent if hanging is None else hanging
    if width is None:
        return "\n".join(f"{indent}{line}".rstrip() for line in text.split("\n"))
    lines = []
    for line in text.split("\n"):
        own = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line, width, initial_indent=indent, subsequent_indent=later + own, break_long_words=False, break_on_hyphens=False
        )
        lines += wrapped or [""]
    return "\n".join(lines)
