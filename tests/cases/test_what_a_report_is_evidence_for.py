"""The appendix of a report: what was run, the item of a framework or law that it is evidence for, and what it is not evidence for."""

import pytest

import robustkd
from robustkd import plugins
from robustkd.contracts import PromptAttack
from robustkd.scoring.intervals import wilson
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.summaries import AttackSummary, DataSummary, ThreatSummary


def appendix(folder, modality="images", **attacks):
    """The rows of the appendix of a campaign with these attacks, by item: what was run, and what is not shown."""
    bounds, n = wilson(30, 60), 60
    cells = [CellResult(name, "mine", name, 0, "done", "linf", 0.1, n, 0.9, 0.5, *bounds) for name in attacks]
    trained = DefenseResult("mine", 0, "external", "done", "linf", 0.1, n, 0.9, 0.5, *bounds, list(attacks))
    known = {name: AttackSummary(kind, "1", {}) for name, kind in attacks.items()}
    data = DataSummary("digits", n, modality=modality, benign=None if modality == "images" else 10)
    files = robustkd.report(Results("c", ThreatSummary("linf", 0.1), data, cells, [trained], attacks=known), folder)
    text = files.markdown.read_text()
    assert ("What this is evidence for" in files.html.read_text()) == ("What this is evidence for" in text)
    part = text.partition("## What this is evidence for")[2].partition("## How to read this")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return [(row[1].split("**")[1], row[0], row[2]) for row in rows if "**" in row[1]]


def test_each_attack_is_evidence_for_its_own_class(tmp_path):
    rows = appendix(tmp_path, strong="pgd", random="square", fog="corruption")
    of = {name: {item for item, ran, _ in rows if f"({name})" in ran} for name in ("strong", "random", "fog")}
    assert of["strong"] == {
        "MEASURE 2.7",
        "White-box evasion",
        "ML01:2023 Input Manipulation Attack",
        "Article 15 (5)",
    }
    assert of["random"] == of["strong"] - {"White-box evasion"} | {"Black-box evasion"}
    assert of["fog"] == {"MEASURE 2.5", "Article 15 (4)"}, "a corruption has no attacker"
    campaign = {item for item, ran, _ in rows if ran.startswith("the accuracy")}
    assert campaign == {"MEASURE 2.1", "Article 15 (1)", "Annex IV, point 2 (g)"}
    assert "MEASURE 2.13" not in {item for item, _, _ in rows}, "no checks were run"
    assert all(beyond for _, _, beyond in rows)
    (told,) = {beyond for item, _, beyond in rows if item == "Article 15 (5)"}
    assert "data and model poisoning" in told


def test_each_item_is_shown_with_what_it_is_of(tmp_path):
    appendix(tmp_path, strong="pgd")
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for item, source in (
        ("MEASURE 2.7", "NIST AI RMF"),
        ("White-box evasion", "NIST AI 100-2"),
        ("Article 15 (5)", "EU AI Act"),
    ):
        assert f"<strong>{item}</strong> ({source}): " in page
        assert f"**{item}** ({source}): " in text
    assert "<summary>7 items of NIST AI RMF, NIST AI 100-2, OWASP ML Top Ten, EU AI Act</summary>" in page


def test_requests_are_evidence_for_the_list_of_language_models(tmp_path):
    rows = appendix(tmp_path, "text", words="gcg", inside="embedding", control="no-attack")
    assert {item for item, ran, _ in rows if "(words)" in ran} >= {"LLM01:2025 Prompt Injection", "MEASURE 2.6"}
    assert not any("LLM01" in item or "ML01" in item for item, ran, _ in rows if "(inside)" in ran)
    assert not any("control" in ran for _, ran, _ in rows), "asking without an attack is evidence for no attack"


def test_a_campaign_without_a_number_is_evidence_for_nothing(tmp_path):
    cells = [CellResult("c", "mine", "pgd", 0, "failed", "linf", 0.1, error="memory")]
    failed = [DefenseResult("mine", 0, "external", "failed", "linf", 0.1)]
    attacks = {"pgd": AttackSummary("pgd", "1", {})}
    results = Results("c", ThreatSummary("linf", 0.1), DataSummary("digits", 60), cells, failed, attacks=attacks)
    assert "What this is evidence for" not in robustkd.report(results, tmp_path).markdown.read_text()


BUILT_IN = [name for name in plugins.names("attacks") if plugins.family("attacks", name) is None]


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_built_in_attack_belongs_somewhere(kind):
    from robustkd.reporting import frameworks

    attack = plugins.load("attacks", kind)
    spaces = {space for entry in frameworks.frameworks().evidence if entry.when for space in entry.when.space}
    assert attack.space in spaces or (issubclass(attack, PromptAttack) and attack.control)


def test_every_item_is_used_and_has_a_source():
    from robustkd.reporting import frameworks

    known = frameworks.frameworks()
    assert {name for entry in known.evidence for name in entry.items} == set(known.items)
    assert {item.source for item in known.items.values()} == set(known.sources)
    assert all((entry.when is None) != (entry.of is None) for entry in known.evidence)
