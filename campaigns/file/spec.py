"""campaign.yaml -> Campaign: every key known, every plug-in found, every parameter typed, before anything runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from robustkd.campaigns.file import presets, resolve
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.file.document.document import Document
from robustkd.campaigns.file.problems import Problem, complaint, problems_of
from robustkd.campaigns.file.references import Uses, circle, reference_problems
from robustkd.campaigns.file.resolve import Resolver
from robustkd.campaigns.file.yaml_source import Source, parse, read
from robustkd.contracts import Modality, UsageError


def load(reference: str | Path) -> Campaign:
    """Read a campaign file, or a packaged preset by its name.

    Raises:
        UsageError: with every problem of the file, each with file, line, key and fix.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") and not path.exists():
        raise UsageError(f"there is no file {path}", fix=presets.meant(str(reference)) or presets.NAMED)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return from_text(read(path), str(path), path.resolve().parent)
    return from_text(presets.read(str(reference)), f"preset {reference}", Path.cwd())


def from_text(text: str, origin: str, folder: Path) -> Campaign:
    """Validate the text of a campaign file; ``load`` says how it fails."""
    source = parse(text, origin)
    document = _document(source, folder)
    resolver = Resolver(folder)
    data = resolver.data(document.data)
    modality: Modality = data.modality if data else "images"
    if data and (wrong := document.threat.problem(modality)):
        resolver.problems.append(Problem(("threat",), *wrong))
    scale = data.split.scale if data else 1.0
    threat = document.threat.divided(scale)
    defenses = {name: use for name, block in document.defenses.items() if (use := resolver.defense(name, block))}
    attacks = {
        name: attack
        for name, block in document.attacks.items()
        if (attack := resolver.attack(name, block, threat, modality, scale))
    }
    judges = resolver.judges(document.judges, data)
    analyses = {
        name: analysis
        for name, block in document.analyses.items()
        if (analysis := resolver.analysis(name, block, document.defenses))
    }
    uses = Uses(defenses, attacks, judges, analyses)
    problems = resolver.problems + reference_problems(document, uses, modality if data else None)
    problems = problems or circle(defenses)
    if problems or data is None:
        raise complaint(source, problems)
    return Campaign(
        name=document.name,
        text=text,
        origin=origin,
        folder=folder,
        data=data,
        threat=threat.model(),
        defenses=defenses,
        attacks=attacks,
        analyses=analyses,
        seeds=tuple(dict.fromkeys(document.matrix.seeds)),
        exclude=document.matrix.exclude,
        checks=resolve.checks(document.checks, modality),
        gates=document.gates,
        groups=document.groups,
        description=document.description,
        judges=judges,
        batch_size=document.batch_size,
        undefended=(
            tuple(name for name, use in defenses.items() if use.plugin.undefended)
            if document.undefended is None
            else document.undefended
        ),
    )


def _document(source: Source, folder: Path) -> Document:
    if not isinstance(source.data, dict):
        fix = "begin with 'version: 1' and 'name: my-campaign'"
        raise UsageError(f"{source.name}: a campaign is a mapping of keys", fix=fix)
    try:
        return Document.model_validate(source.data, context={"folder": folder})
    except ValidationError as error:
        raise complaint(source, problems_of(error, Document, ())) from None
