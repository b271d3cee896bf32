"""Gates as JUnit XML and SARIF: one entry a rule, with number, interval, verdict and the line of the campaign file."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from support.campaigns import tiny_campaign

GATES = """gates:
  - {defense: plain, at_least: 0.0}
  - {defense: plain, metric: clean_accuracy, at_least: 0.99}
  - defense: plain
    at_least: 0.999
"""

# What the schemas say of the elements that are written; nothing else may be there. JUnit as Jenkins' xUnit plug-in has it (junit-10.xsd),
# SARIF as OASIS has it (sarif-schema-2.1.0.json), against which the output was validated once as a whole.
JUNIT = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": ({"testcase"}, {"name", "tests", "failures", "errors"}, {"skipped"}),
    "testcase": ({"failure", "error", "skipped", "system-out"}, {"name"}, {"classname", "time"}),
    "failure": (set(), set(), {"type", "message"}),
    "error": (set(), set(), {"type", "message"}),
    "skipped": (set(), set(), {"type", "message"}),
    "system-out": (set(), set(), set()),
}


def closed(required, **properties):
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


TEXT = closed("text", text={"type": "string", "minLength": 1})
LOCATION = closed(
    "physicalLocation",
    physicalLocation=closed(
        "artifactLocation region",
        artifactLocation=closed("uri", uri={"type": "string", "pattern": r"^[^\\ ]+$"}),
        region=closed("startLine", startLine={"type": "integer", "minimum": 1}),
    ),
)
RESULT = closed(
    "message ruleId kind level locations",
    ruleId={"type": "string"},
    ruleIndex={"type": "integer", "minimum": 0},
    kind={"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]},
    level={"enum": ["none", "note", "warning", "error"]},
    message=TEXT,
    locations={"type": "array", "items": LOCATION},
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
    properties={"type": "object"},
) | {"if": {"properties": {"kind": {"not": {"const": "fail"}}}}, "then": {"properties": {"level": {"const": "none"}}}}
RULE = closed("id", id={"type": "string"}, shortDescription=TEXT)
DRIVER = closed("name", name={"type": "string"}, version={"type": "string"}, rules={"type": "array", "items": RULE})
RUN = closed(
    "tool results",
    tool=closed("driver", driver=DRIVER),
    invocations={"items": closed("executionSuccessful", executionSuccessful={"type": "boolean"}, exitCode={"type": "integer"})},
    results={"type": "array", "items": RESULT},
)
SARIF = closed(
    "version runs", **{"$schema": {"type": "string"}}, version={"const": "2.1.0"}, runs={"type": "array", "items": RUN}
)


def require_junit(element):
    children, required, optional = JUNIT[element.tag]
    assert required <= set(element.attrib) <= required | optional
    for child in element:
        assert child.tag in children, f"{child.tag} in {element.tag}"
        require_junit(child)


def test_each_gate_has_its_number_and_its_line(robustkd, tmp_path):
    (tmp_path / "my gates.yaml").write_text(tiny_campaign("gated", checks="{samples: 8}") + GATES)
    assert robustkd("run", "my gates.yaml", "--no-track", "--workers", "0")[0] in (0, 4, 5)
    code, out, _ = robustkd("gate", "my gates.yaml", "--baseline", "runs/gated", "--junit", "g.xml", "--sarif", "g.sarif")
    sentences = out.splitlines()
    first = tiny_campaign("gated", checks="{samples: 8}").count("\n") + 2
    lines = [first, first + 1, first + 2, (tmp_path / "my gates.yaml").read_text().split("\n").index(
        "  plain: {kind: standard, model: tiny-cnn, epochs: 1}") + 1]  # fmt: skip

    root = ElementTree.parse(tmp_path / "g.xml").getroot()
    require_junit(root)
    cases = list(root.iter("testcase"))
    assert len(cases) == len(sentences) == 4
    for case, sentence, line in zip(cases, sentences, lines, strict=True):
        (child,) = case
        whole = f"{child.get('message', '')}\n{child.text}"
        assert sentence in whole
        assert f"my gates.yaml:{line}" in whole
    assert "verdict on the defense: " in f"{cases[0][0].get('message', '')}{cases[0][0].text}"

    written = json.loads((tmp_path / "g.sarif").read_text())
    jsonschema.validate(written, SARIF)
    (run,) = written["runs"]
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": code}]
    places = [result["locations"][0]["physicalLocation"] for result in run["results"]]
    assert [(place["artifactLocation"]["uri"], place["region"]["startLine"]) for place in places] == [
        ("my%20gates.yaml", line) for line in lines
    ]
    told = {"passed": "pass", "failed": "fail", "inconclusive": "open", "not judged": "fail"}
    for result, sentence in zip(run["results"], sentences, strict=True):
        assert sentence in result["message"]["text"]
        assert result["kind"] == told[result["properties"]["outcome"]]
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert {result["ruleId"] for result in run["results"]} == {
        "robust_accuracy/at-least",
        "clean_accuracy/at-least",
        "robust_accuracy/below-baseline",
    }
    assert len({result["partialFingerprints"]["gate/v1"] for result in run["results"]}) == 4

    # An edited file has other lines: then the copy of what was run is named.
    (tmp_path / "my gates.yaml").write_text("# edited\n" + (tmp_path / "my gates.yaml").read_text())
    robustkd("gate", "my gates.yaml", "--sarif", "g.sarif")
    (run,) = json.loads((tmp_path / "g.sarif").read_text())["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("runs/gated/campaign.yaml", lines[0])


def test_the_published_schemas(robustkd, tmp_path):
    """Both files against ``sarif-schema-2.1.0.json`` of OASIS and ``junit-10.xsd`` of Jenkins' xUnit plug-in, whole.

    The schemas are other people's and are not stored here: ``ROBUSTKD_SCHEMAS`` names a folder that has them. They are
    ``sarif-2.1/schema/sarif-schema-2.1.0.json`` of github.com/oasis-tcs/sarif-spec, and
    ``src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd`` of github.com/jenkinsci/xunit-plugin.
    """
    if not (given := os.environ.get("ROBUSTKD_SCHEMAS")):
        pytest.skip("ROBUSTKD_SCHEMAS names no folder with the schemas")
    xmlschema = pytest.importorskip("xmlschema")
    (tmp_path / "gates.yaml").write_text(tiny_campaign("gated", checks="{samples: 8}") + GATES)
    assert robustkd("run", "gates.yaml", "--no-track", "--workers", "0")[0] in (0, 4, 5)
    robustkd("gate", "gates.yaml", "--baseline", "runs/gated", "--junit", "g.xml", "--sarif", "g.sarif")
    xmlschema.XMLSchema(Path(given) / "junit-10.xsd").validate(tmp_path / "g.xml")
    written, schema = (json.loads(file.read_text()) for file in (tmp_path / "g.sarif", Path(given) / "sarif-schema-2.1.0.json"))
    jsonschema.validators.validator_for(schema)(schema, format_checker=jsonschema.FormatChecker()).validate(written)
    for broken in ({"runs": 1}, {"version": "2.0"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(written | broken, schema)
