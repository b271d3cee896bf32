"""What was run, for the report's set-up: attacks and defenses with parameters and papers, the campaign file, gates and commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustkd import plugins
from robustkd.contracts.json_value import JsonValue
from robustkd.redaction import redacted_value
from robustkd.reporting.formatting import evidence, moment, threat, words
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.summary import attack_names, seeds_of
from robustkd.scoring.results import CellResult, Results
from robustkd.scoring.summaries import AttackSummary


@dataclass(frozen=True)
class SetUp:
    """What was run, as far as the results do not say it.

    Attributes:
        campaign_file: the text of the campaign file, without secrets; "" where it is not known.
        gates: what each gate of the campaign asked for and how it was judged, in words.
        defenses: of each defense its ``kind`` and its parameters; those that are not known are left out.
        run: the last run that ended; None where nothing is noted of it.
    """

    campaign_file: str = ""
    gates: Sequence[str] = ()
    defenses: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    run: LastRun | None = None


@dataclass(frozen=True)
class LastRun:
    """When and how the campaign was run.

    Attributes:
        command: without secrets.
        commit: of the repository that the campaign file lies in; "" outside of one.
        changed: whether files of the repository differed from the commit.
        finished: in UTC, ISO 8601.
        packages: names and versions of the packages that numbers depend on most.
    """

    command: str
    commit: str
    changed: bool
    finished: str
    packages: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """All but the command, in words."""
        commit = f"commit {self.commit[:10]}{' with changes' if self.changed else ''}" if self.commit else ""
        versions = [f"{name} {version}" for name, version in self.packages.items()]
        return ", ".join(part for part in (f"Last run {moment(self.finished)}", commit, *versions) if part)


PACKAGES = ("robustkd", "torch")
"""Those whose versions are named beside the commit; record.json has all."""


def last_run(command: Sequence[str], git: Mapping[str, object], finished: str, packages: Mapping[str, str]) -> LastRun:
    """The last run as its record has it.

    Args:
        command: the words of its command line, without secrets.
        git: ``commit``, and ``dirty`` where files differed from it; empty outside of a repository.
        finished: in UTC, ISO 8601.
        packages: the version of every installed distribution.
    """
    versions = {name: packages[name] for name in PACKAGES if name in packages}
    return LastRun(" ".join(_typed(command)), str(git.get("commit") or ""), bool(git.get("dirty")), finished, versions)


def _typed(command: Sequence[str]) -> list[str]:
    """A command line as a person types it: where a program is installed says nothing elsewhere."""
    if not command:
        return []
    program = Path(command[0])
    if program.name != "__main__.py":
        return [program.name, *command[1:]]
    return ["robustkd" if program.parent.name == "robustkd" else f"python -m {program.parent.name}", *command[1:]]


@dataclass(frozen=True)
class AttackRow:
    """One attack of the campaign.

    Attributes:
        name: what the campaign calls it.
        plugin: its plug-in and that one's version, of a third party's also how the hash of its source begins; "" where the results
            do not say.
        params: its parameters in words, without those that are left to the attack; "" where it has none.
        paper: where its method comes from; "" where that is not known.
        forwards, backwards: passes a sample, on average over all samples, defenses and seeds; None where no cell has a number.
    """

    name: str
    plugin: str
    params: str
    paper: str
    forwards: float | None
    backwards: float | None


@dataclass(frozen=True)
class DefenseRow:
    """One defense of the campaign: its name there, its plug-in, what the campaign file says of it in words, and its paper."""

    name: str
    kind: str
    params: str
    paper: str


def facts(results: Results) -> dict[str, str]:
    """What the numbers are of, in reading order; what is not known is left out."""
    data = results.data
    found = {
        "Threat model": threat(results.threat_model),
        "Data": f"{data.name}, {terms_of(results).data}",
        "Data hash": data.digest[:16],
        "Seeds": ", ".join(str(seed) for seed in seeds_of(results)),
        "Date": moment(results.environment.finished or ""),
    }
    return {name: text for name, text in found.items() if text}


def defense_rows(defenses: Mapping[str, Mapping[str, JsonValue]]) -> list[DefenseRow]:
    """Every defense of a campaign, in its order.

    Args:
        defenses: by name the ``kind``, and the parameters; those that are None are left out.
    """
    rows = []
    for name, block in defenses.items():
        params = {key: value for key, value in block.items() if key != "kind" and value is not None}
        kind = str(block.get("kind", ""))
        rows.append(DefenseRow(name, kind, _in_words(params), plugins.paper("defenses", kind)))
    return rows


def attack_rows(results: Results) -> list[AttackRow]:
    """Every attack of the campaign, in its order."""
    return [_row(name, results.attacks.get(name), results.cells) for name in attack_names(results)]


def _row(name: str, known: AttackSummary | None, cells: list[CellResult]) -> AttackRow:
    done = [cell for cell in cells if cell.attack == name and cell.status == "done"]
    samples = sum(cell.n for cell in done)
    plugin = params = paper = ""
    if known is not None:
        plugin = f"{known.kind} {known.version}" + (f", source {known.source[:8]}" if known.source else "")
        params = _in_words({key: value for key, value in known.params.items() if value is not None})
        paper = plugins.paper("attacks", known.kind)
    forwards, backwards = (
        total / samples if samples else None
        for total in (sum(cell.forward_passes for cell in done), sum(cell.backward_passes for cell in done))
    )
    return AttackRow(name, plugin, params, paper, forwards, backwards)


def _in_words(params: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{words(key)} {evidence(_masked(key, value))}" for key, value in params.items())


def _masked(name: str, value: JsonValue) -> JsonValue:
    """The value without secrets, also where they lie deep."""
    if isinstance(value, dict):
        return {key: _masked(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(name, item) for item in value]
    return redacted_value(name, value) if isinstance(value, str) else value
