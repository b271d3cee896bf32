"""What all pages share: the campaigns, what was read of them lately, and how templates are rendered."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from robustkd.campaigns.store.store import Entry
from robustkd.contracts import Transcript, UsageError
from robustkd.redaction import writable
from robustkd.reporting import palette
from robustkd.reporting.environment import TEMPLATES, environment
from robustkd.reporting.formatting import moment
from robustkd.reporting.verdict_text import NO_VERDICT
from robustkd.viewer.addresses import Address, FileLinks, Links, address
from robustkd.viewer.data import CleanData, clean_data
from robustkd.viewer.evidence import KeptInputs, Recent, SampleTable, sample_table
from robustkd.viewer.evidence import transcripts as read_transcripts
from robustkd.viewer.runs import Run, Runs

OWN_TEMPLATES = Path(__file__).parent / "templates"


def side_name(key: str, seed: int, defense: str) -> str:
    """What the address of a comparison calls a trained defense."""
    return f"{key}/{seed}/{defense}"


class NotFound(UsageError):
    """There is no such page; the message says what is not there."""


class Site:
    """The viewer's state.

    Args:
        links: how pages are addressed.
        with_harmful: whether requests that a model should refuse, their answers and pictures are shown, behind a click.
        most_samples: how many samples of a defense are listed; None for all.
    """

    def __init__(
        self, runs: Runs, links: Links | None = None, *, with_harmful: bool = True, most_samples: int | None = None
    ) -> None:
        self.runs, self.links = runs, links or Links()
        self.with_harmful, self.most_samples = with_harmful, most_samples
        self.inputs = KeptInputs()
        self.numbers: Recent[float | None] = Recent(50_000)
        self._tables: Recent[SampleTable | None] = Recent(6)
        self._data: Recent[CleanData] = Recent(2)
        self._transcripts: Recent[list[Transcript]] = Recent(24)

    @property
    def exported(self) -> bool:
        """Whether pages are files for somebody else."""
        return isinstance(self.links, FileLinks)

    def run(self, wanted: Address) -> Run:
        """The campaign that an address names.

        Raises:
            NotFound: there is none.
        """
        run = self.runs.get(key := wanted.get("run"))
        if run is None:
            raise NotFound(f"{self.runs.folder} holds no campaign '{key}'", fix="the leaderboard lists them")
        return run

    def trained(self, wanted: Address) -> tuple[Run, str, int]:
        """The campaign, the defense and the seed that an address names.

        Raises:
            NotFound: there is no such trained defense.
        """
        run, defense, seed = self.run(wanted), wanted.get("defense"), wanted.get("seed", "0")
        for place in run.attacks():
            if (writable(place.defense), str(place.seed)) == (defense, seed):
                return run, place.defense, place.seed
        raise NotFound(f"'{run.name}' has no attack on a defense '{defense}' with seed {seed}")

    def table(self, run: Run, defense: str, seed: int) -> SampleTable | None:
        """The samples of a trained defense; None where no attack on it is finished."""
        cells = tuple(place.cell_id for place in run.attacks() if (place.defense, place.seed) == (defense, seed))
        there = tuple(entry.seal for cell in cells if (entry := run.entry(cell)))
        return self._tables.get((run.folder, defense, seed, there, run.version), lambda: sample_table(run, defense, seed))

    def data(self, run: Run, entry: Entry) -> CleanData:
        """The clean samples of a campaign."""
        key = (run.folder, str(entry.meta.identity.get("test data")))
        return self._data.get(key, lambda: clean_data(run, entry))

    def transcripts(self, entry: Entry) -> list[Transcript]:
        """The transcripts of an attack on requests."""
        return self._transcripts.get((entry.folder, entry.seal), lambda: read_transcripts(entry))

    def render(self, template: str, wanted: Address, **context: Any) -> str:
        """A page as HTML."""
        html: str = self._environment.get_template(template).render(
            wanted=wanted, exported=self.exported, with_harmful=self.with_harmful, **context
        )
        return writable(html)

    @cached_property
    def _environment(self) -> Any:
        made = environment(OWN_TEMPLATES, TEMPLATES)
        to: Callable[..., str] = lambda name, /, **query: self.links.to(address(name, **query))  # noqa: E731
        again: Callable[..., str] = lambda page, /, **changes: self.links.to(page.with_(**changes))  # noqa: E731
        made.globals.update(to=to, again=again, link=self.links.to, palette=palette, no_verdict=NO_VERDICT, side_name=side_name)
        made.filters["moment"] = moment
        return made

    def style(self) -> str:
        """The style sheet: the report's, and what the viewer adds."""
        text: str = self._environment.get_template("view.css.j2").render(terms={"group": "class"})
        return text

    def script(self) -> str:
        """The viewer's script."""
        return (OWN_TEMPLATES / "view.js").read_text(encoding="utf-8")
