"""A result on a page of somebody else's: a model card, and an entry of RobustBench's leaderboard, each read by its own code."""

import json
from dataclasses import replace

import pytest

from robustkd import plugins
from robustkd.integrations.robustbench import import_robustbench
from robustkd.scoring.intervals import wilson
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.summaries import AttackSummary, DataSummary, ThreatSummary

AUTO = plugins.load("attacks", "autoattack")
STANDARD = AttackSummary("autoattack", AUTO.version, AUTO.Params().model_dump(mode="json"))


def write(folder, *, data="cifar10", n=10_000, norm="linf", eps=8 / 255, verdict="credible", attack=STANDARD, **cell):
    """The results of a campaign of one defense under one attack that leaves 43.21 %, and a stronger one that leaves 40 %."""
    bounds = wilson(round(0.4321 * n), n)
    of = CellResult("c", "fast", "auto", 0, "done", norm, eps, n, 0.8334, 0.4321, *bounds)
    other = replace(of, cell_id="d", attack="mine", robust_accuracy=0.4)
    worst = DefenseResult(
        "fast", 0, "external", "done", norm, eps, n, 0.8334, 0.4, *wilson(round(0.4 * n), n), ["auto", "mine"], verdict
    )
    attacks = {"auto": attack, "mine": AttackSummary("pgd", "1", {})}
    results = Results(
        "page", ThreatSummary(norm, eps), DataSummary(data, n, "a1b2"), [replace(of, **cell), other], [worst], attacks=attacks
    )
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(results.to_json())
    return folder


def test_robustbench_reads_the_entry(robustkd, tmp_path, capsys, monkeypatch):
    write(tmp_path / "run")
    place = tmp_path / "model_info/cifar10/Linf"
    place.mkdir(parents=True)
    file = "model_info/cifar10/Linf/Wong2020Fast.json"
    assert robustkd("export", "run", "--format", "robustbench", "--out", file)[0] == 0
    import_robustbench()
    from robustbench import utils

    entry = json.loads((tmp_path / file).read_text())
    assert vars(utils.ModelInfo(**entry))["autoattack_acc"] == "43.21"  # the attack's own number and not the worst case, 40 %
    assert (entry["clean_acc"], entry["eps"], entry["dataset"]) == ("83.34", "8/255", "cifar10")
    utils.list_available_models("cifar10", "Linf")
    shown = capsys.readouterr().out
    assert "**Wong2020Fast**" in shown
    assert "83.34%" in shown
    assert "43.21%" in shown
    code, _, err = robustkd("export", "run", "--format", "robustbench", "--out", file)
    assert (code, "is there already" in err) == (2, True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 1000}, "1,000 samples"),
        ({"data": "digits"}, "no leaderboard for the data 'digits'"),
        ({"norm": "l2", "eps": 1.0}, "the leaderboard's is 0.5"),
        ({"attack": replace(STANDARD, params={**STANDARD.params, "steps": 20})}, "steps is 20, not 100"),
        ({"attack": replace(STANDARD, params={**STANDARD.params, "version": "adaptive"})}, "version is adaptive"),
        ({"attack": replace(STANDARD, version="1")}, "made by version 1"),
        ({"attack": AttackSummary("pgd", "1", {})}, "no attack of the campaign on 'fast' with seed 0 is autoattack"),
        ({"goal": "targeted"}, "it is targeted"),
        ({"draws": 10}, "draws random numbers"),
        ({"verdict": "not credible"}, "not credible"),
        ({"status": "failed", "robust_accuracy": None}, "it has no number (failed)"),
    ],
)
def test_another_number_is_no_entry(robustkd, tmp_path, given, said):
    write(tmp_path / "run", **given)
    code, _, err = robustkd("export", "run", "--format", "robustbench", "--out", "entry.json")
    assert (code, said in err) == (2, True), err
    assert not (tmp_path / "entry.json").exists()


def test_the_hub_reads_the_card_and_shows_the_verdict_beside_the_number(robustkd, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    write(tmp_path / "run", verdict="suspect")
    assert robustkd("export", "run", "--format", "model-card", "--out", "README.md")[0] == 0
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.model_name == "fast"
    clean, robust = card.data.eval_results
    assert (robust.task_type, robust.dataset_type, robust.metric_value) == ("image-classification", "cifar10", 40.0)
    assert (clean.metric_type, clean.metric_value) == ("accuracy", 83.34)
    assert "verdict: suspect" in robust.metric_name
    assert "95 % interval" in robust.metric_name
    assert robust.metric_args["attacks"] == ["auto", "mine"]
    assert "40.0 % (95 % interval 39.0 to 41.0 %)" in " ".join(card.text.split())
    assert "suspect" in card.text
    for arguments, said in [
        (("--out", "README.md"), "is there already"),
        (("--out", "gone/README.md"), "there is no folder gone"),
        (("--out", "new.md", "--attack", "auto"), "--attack is for adversarial inputs"),
        (("--out", "new.md", "--defense", "fsat"), "did you mean 'fast'?"),
        (("--out", "new.md", "--seed", "4"), "has no robust accuracy with seed 4"),
    ]:
        code, _, err = robustkd("export", "run", "--format", "model-card", *arguments)
        assert (code, said in err) == (2, True), err
