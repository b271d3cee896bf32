"""What several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from robustkd.campaigns.file.spec import Campaign

out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Results folder [default: runs/<name of the campaign>]."
)
precision_option = click.option(
    "--precision", type=click.Choice(["full", "bf16"]), help="In which attacks take gradients [default: full, the model's own]."
)
allow_missing_option = click.option(
    "--allow-missing",
    is_flag=True,
    help="A gate that has nothing to judge (no number, or not a credible one) ends with code 0, not 5.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def console() -> Console:
    """Where tables are printed. It knows terminals, pipes and NO_COLOR."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = 160  # a pipe has no width to keep to
    return made


def results_folder(campaign: Campaign, out: Path | None) -> Path:
    """Where a campaign's results are."""
    return out or campaign.default_folder
