"""Write the files of a report from results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustkd.redaction import writable
from robustkd.reporting import figures
from robustkd.reporting.gallery import Item, selected
from robustkd.reporting.latex import latex
from robustkd.reporting.markdown import markdown
from robustkd.reporting.page import page
from robustkd.reporting.samples import SampleEvidence, class_table
from robustkd.reporting.set_up import SetUp
from robustkd.reporting.summary import summary_rows
from robustkd.scoring.results import Results


@dataclass(frozen=True)
class ReportFiles:
    """What was written; a figure is None when the campaign has nothing to show in it."""

    html: Path
    markdown: Path
    latex: Path
    curves: Path | None
    heatmap: Path | None
    gallery: Path | None
    analyses: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that was written."""
        figures = (self.curves, self.heatmap, self.gallery, self.analyses)
        return tuple(path for path in (self.html, self.markdown, self.latex, *figures) if path)


def write_report(
    results: Results,
    folder: Path,
    gallery: Sequence[Item] = (),
    evidence: SampleEvidence | None = None,
    set_up: SetUp | None = None,
) -> ReportFiles:
    """Write ``report.html`` (self-contained), ``report.md``, ``report.tex`` and the figures into ``folder``, over any older ones.

    Args:
        results: the finished, or unfinished, campaign.
        folder: made when it does not exist.
        gallery: attacked samples to show; more than the page can hold are left out.
        evidence: what became of each test sample; without it the views by class and by sample are left out.
        set_up: what was run; without it the report says what the results alone do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summary_rows(results)
    shown = selected(gallery)
    evidence, set_up = evidence or SampleEvidence((), ()), set_up or SetUp()
    files = ReportFiles(
        html=folder / "report.html",
        markdown=folder / "report.md",
        latex=folder / "report.tex",
        curves=_figure(folder / "curves.png", lambda path: figures.curves(results, summaries, path)),
        heatmap=_figure(folder / "heatmap.png", lambda path: figures.heatmap(results, summaries, path)),
        gallery=_figure(folder / "gallery.png", lambda path: figures.gallery(shown, path)),
        analyses=_figure(folder / "analyses.png", lambda path: figures.analyses(results, path)),
    )
    _write(files.html, page(results, summaries, shown, evidence, set_up))
    _write(files.latex, latex(results, summaries, class_table(results, evidence), set_up))
    _write(files.markdown, markdown(results, summaries, [path.name for path in files.all if path.suffix == ".png"], set_up))
    return files


def _figure(path: Path, draw: Callable[[Path], bool]) -> Path | None:
    """Draw into ``path``; an older figure that no longer belongs is removed."""
    partial = path.with_suffix(".partial")
    if draw(partial):
        partial.replace(path)  # a reader, or a kill, never meets half a file
        return path
    path.unlink(missing_ok=True)
    return None


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(writable(text), encoding="utf-8", newline="\n")  # names, requests and answers are other people's
    partial.replace(path)
