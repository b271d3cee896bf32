"""Runs the gallery's campaigns and writes what the site shows of them: ``python docs/gallery.py``, twenty seconds of a core.

Nothing of it is committed. A site that is built without it says how to make it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import robustkd
from robustkd.reporting import summary_rows
from robustkd.reporting.verdict_text import answer
from robustkd.viewer.addresses import FileLinks, address
from robustkd.viewer.export import export
from robustkd.viewer.runs import Runs

FOLDER = Path(__file__).parent / "_gallery"
"""Its content is put beside the site's pages."""
PAGES, INDEX = "gallery", "index.json"
SAMPLES = 10
"""Of each defense, in the exported pages."""


class Shown(NamedTuple):
    """A campaign of the gallery: its title, what is to be seen in it, and its file."""

    title: str
    about: str
    text: str


CAMPAIGNS = {
    "trained-against-attacks": Shown(
        "A defense that is trained against attacks",
        "An undefended network beside the same one trained on adversarial examples. Both numbers are credible; the curves say at "
        "which budget each falls.",
        """
version: 1
name: trained-against-attacks
data: {name: digits, train: 900, test: 100}
threat: {norm: linf, eps: 0.1, curve: [0.05]}
checks: {level: standard, samples: 40}
defenses:
  standard: {kind: standard, model: tiny-cnn, epochs: 20}
  pgd-at:   {kind: pgd-at, model: tiny-cnn, epochs: 20, inner: {steps: 4}}
gates:
  - {defense: pgd-at, at_least: 0.3}
attacks:
  fgsm:   {kind: fgsm}
  pgd:    {kind: pgd, steps: 20, restarts: 2}
  fmn:    {kind: fmn, steps: 30}
  square: {kind: square, queries: 200}
""",
    ),
    "masked-gradients": Shown(
        "A number that must not be believed",
        "Defensive distillation at a high temperature: its cross entropy saturates, so attacks that follow it find nothing. The "
        "checks say so, and what is left with the attacks that they call for.",
        """
version: 1
name: masked-gradients
data: {name: digits, train: 900, test: 100}
threat: {norm: linf, eps: 0.1}
checks: {level: standard, samples: 40}
defenses:
  teacher:   {kind: standard, model: tiny-cnn, epochs: 20}
  distilled: {kind: defensive-distillation, teacher: teacher, model: tiny-cnn, epochs: 20, temperature: 40}
attacks:
  fgsm: {kind: fgsm}
  pgd:  {kind: pgd, steps: 20}
""",
    ),
}


def build(folder: Path = FOLDER) -> None:
    """Run the campaigns and write their reports and exported pages into ``folder``, in the place of former ones."""
    with tempfile.TemporaryDirectory() as scratch:
        runs, made = Path(scratch, "runs"), Path(scratch, PAGES)
        found = {}
        for name, shown in CAMPAIGNS.items():
            results = robustkd.run(shown.text, runs / name, workers=0, device="cpu", track=False)
            (made / name).mkdir(parents=True)
            shutil.copy(runs / name / "report.html", made / name / "report.html")
            page = FileLinks().to(address("campaign", run=name))
            found[name] = {"answer": answer(results, summary_rows(results)), "page": page}
        export(Runs(runs), made / "viewer", samples=SAMPLES)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder / PAGES)
    (folder / INDEX).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


def listing(folder: Path = FOLDER) -> str:
    """What the gallery's page says of each campaign, as Markdown; that it was not made, where it was not."""
    index = folder / INDEX
    if not index.is_file():
        return "This copy of the site was built without the gallery: `make gallery`, then build it again."
    found = json.loads(index.read_text(encoding="utf-8"))
    parts = []
    for name, shown in CAMPAIGNS.items():
        page, said = found[name]["page"], found[name]["answer"]
        links = f'<a href="{PAGES}/{name}/report.html">The report</a> · <a href="{PAGES}/viewer/{page}">in the viewer</a>'
        parts.append(f"## {shown.title}\n\n{shown.about}\n\n> {said}\n\n{links}\n\n```yaml\n{shown.text.strip()}\n```")
    board = f'<a href="{PAGES}/viewer/index.html">All of them in one leaderboard</a>, with every sample to open.'
    return "\n\n".join([*parts, "## Side by side", board])


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
