"""Adversarial images that were saved: loaded again without robustkd, they break the model as was said."""

import csv
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import robustkd
from robustkd.contracts import UsageError
from robustkd.data import SplitParams, load_splits
from support.campaigns import external, tiny_campaign

FILE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def network(channels=1, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, classes))


def data(channels=1, n=24):
    x = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, network(channels)(x).argmax(1)


def seen(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images)).argmax(1).numpy()


def images_in(folder, rows):
    loaded = [np.asarray(Image.open(folder / row["file"]), dtype=np.float32) / 255 for row in rows]
    return np.stack([image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in loaded])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.3), ("l1", 2.0)])
def test_an_archive_is_what_the_report_says(tmp_path, norm, eps):
    x, y = data()
    found = robustkd.attack("pgd", network(), x, y, norm=norm, eps=eps, steps=5)
    found.save(tmp_path / "adv.npz")
    saved = np.load(tmp_path / "adv.npz", allow_pickle=False)
    before, after = seen(network(), saved["x"]), seen(network(), saved["adversarial"])
    assert (before == saved["prediction"]).all()
    assert (after == saved["adversarial_prediction"]).all()
    assert (((before == saved["y"]) & (after != saved["y"])) == saved["success"]).all()
    assert float((after == saved["y"]).mean()) == found.robust_accuracy < 1
    assert np.linalg.norm((saved["adversarial"] - saved["x"]).reshape(24, -1), {"linf": np.inf, "l2": 2, "l1": 1}[norm], 1) == (
        pytest.approx(saved["distance"], abs=1e-5)
    )
    assert set(saved["norm"]) == {norm}
    assert set(saved["eps"]) == {eps}
    assert saved["id"].tolist() == list(range(24))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 1 / 255), ("linf", 0.021), ("l2", 0.1)])
def test_images_are_what_their_table_says(tmp_path, channels, norm, eps):
    x, y = data(channels)
    found = robustkd.attack("pgd", network(channels), x, y, norm=norm, eps=eps, steps=5)
    told = found.save(tmp_path / "images")
    rows = list(csv.DictReader((tmp_path / "images/samples.csv").open()))
    clean, attacked = (images_in(tmp_path / "images" / part, rows) for part in ("clean", "adversarial"))
    before, after = seen(network(channels), clean), seen(network(channels), attacked)
    assert [row["prediction"] for row in rows] == [str(one) for one in before]
    assert [row["adversarial_prediction"] for row in rows] == [str(one) for one in after]
    broken = (before == y.numpy()) & (after != y.numpy())
    assert [row["success"] == "True" for row in rows] == broken.tolist()
    spent = np.linalg.norm((attacked - clean).reshape(24, -1), {"linf": np.inf, "l2": 2}[norm], 1)
    assert (spent <= eps + 1e-6).all(), "rounding carries nothing out of its budget"
    assert f"{int((broken & found.success).sum())} of {int(found.success.sum())} broken samples are broken after" in told


def test_a_success_that_eight_bits_undo_is_none_in_the_folder(tmp_path):
    x = (255 * data(n=2000)[0]).round() / 255
    model = network()
    found = robustkd.attack("pgd", model, x, model(x).argmax(1), eps=0.4 / 255, steps=5)  # less than half of a level
    found.save(tmp_path / "images")
    rows = list(csv.DictReader((tmp_path / "images/samples.csv").open()))
    assert found.success.any()
    assert not [row for row in rows if row["success"] == "True"]
    assert {float(row["distance"]) for row in rows} == {0.0}


def test_the_command_saves_under_the_samples_own_positions(tmp_path, say):
    (tmp_path / "net.py").write_text(FILE)
    asked = ("attack", "fgsm", "--model", "net.py:build", "--n", 20, "--eps", 0.2, "--out")
    code, told = say(*asked, "adv.npz")
    assert code == 0
    assert "adv.npz: 20 samples" in told
    saved = np.load("adv.npz")
    whole = load_splits("digits", {}, SplitParams(test=20))
    assert (saved["id"] == whole.test_index).all()
    assert (saved["x"] == whole.test.unit()).all()
    assert say(*asked, "images/")[0] == 0
    assert len(list((tmp_path / "images/adversarial").glob("*.png"))) == 20
    for out, said in [
        ("images/", "not an empty folder"),
        ("gone/adv.npz", "there is no folder gone"),
        ("adv.png", "neither an archive nor a folder"),
    ]:
        code, told = say(*asked, out)
        assert (code, said in told) == (2, True), told


def test_inputs_that_are_no_images_have_no_folder(tmp_path):
    x = torch.rand(6, 5)
    found = robustkd.attack("fgsm", nn.Linear(5, 3), x, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(UsageError, match="no PNG images"):
        found.save(tmp_path / "images")
    found.save(tmp_path / "adv.npz", ids=np.array(list("abcdef")))
    assert np.load(tmp_path / "adv.npz")["id"].tolist() == list("abcdef")


def test_a_model_that_draws_is_judged_on_its_draws_again(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x + 0.2 * torch.randn_like(x))

    x, y = data()
    found = robustkd.attack("pgd", Noisy(), x, y, eps=torch.linspace(0.01, 0.1, 24), steps=3)
    found.save(tmp_path / "images")
    rows = list(csv.DictReader((tmp_path / "images/samples.csv").open()))
    assert [float(row["eps"]) for row in rows] == pytest.approx(torch.linspace(0.01, 0.1, 24).tolist())
    assert all(float(row["distance"]) <= float(row["eps"]) + 1e-6 for row in rows)
    assert any(row["success"] == "True" for row in rows)


def test_each_attack_of_an_evaluation_is_saved_and_a_pickled_report_is_not(tmp_path):
    x, y = data()
    report = robustkd.evaluate(network(), x, y, attacks=["fgsm", "pgd"], eps=0.05, level="none")
    for name, found in report.attacks.items():
        found.save(tmp_path / f"{name}.npz")
        saved = np.load(tmp_path / f"{name}.npz")
        assert (seen(network(), saved["adversarial"]) == found.outcome.after).all()
    again = pickle.loads(pickle.dumps(found))
    assert again.robust_accuracy == found.robust_accuracy
    with pytest.raises(UsageError, match="was pickled"):
        again.save(tmp_path / "again.npz")


def test_a_campaign_s_own_break_the_trained_network_again(tmp_path, say):
    (tmp_path / "net.py").write_text(FILE)
    attacks = {"pgd": "{kind: pgd, steps: 3}", "goal": "{kind: pgd, steps: 3, threat: {norm: l2, eps: 1.0, goal: targeted}}"}
    text = tiny_campaign("kept", external("net.py:build"), attacks)
    (tmp_path / "kept.yaml").write_text(text)
    assert say("run", "kept.yaml", "--no-track", "--workers", 0)[0] == 0
    results = robustkd.load("runs/kept")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for attack, norm in (("pgd", "linf"), ("goal", "l2")):
        code, told = say("export", "runs/kept", "--attack", attack, "--out", f"{attack}.npz")
        assert code == 0, told
        saved = np.load(f"{attack}.npz")
        after = seen(model, saved["adversarial"])
        assert (after == saved["adversarial_prediction"]).all()
        reached = after == saved["goals"] if attack == "goal" else after != saved["y"]
        right = seen(model, saved["x"]) == saved["y"]
        assert ((right & reached) == saved["success"]).all()
        (cell,) = (cell for cell in results.cells if cell.attack == attack)
        assert float((right & ~reached).mean()) == cell.robust_accuracy
        assert set(saved["norm"]) == {norm}
        code, told = say("export", "kept.yaml", "--attack", attack, "--out", f"{attack}/")
        assert code == 0, told
        rows = list(csv.DictReader((tmp_path / attack / "samples.csv").open()))
        assert [row["adversarial_prediction"] for row in rows] == [
            str(one) for one in seen(model, images_in(tmp_path / attack / "adversarial", rows))
        ]
        assert "after rounding to 8 bits" in told
    for arguments, said in [
        (("--attack", "pdg"), "did you mean 'pgd'?"),
        ((), "the results have 2 attacks"),
        (("--attack", "pgd", "--seed", 3), "its seeds are 0"),
    ]:
        code, told = say("export", "runs/kept", *arguments, "--out", "x.npz")
        assert (code, said in told) == (2, True), told
    assert say("store", "prune", "kept.yaml", "--perturbations", "--yes")[0] == 0
    code, told = say("export", "runs/kept", "--attack", "pgd", "--out", "x.npz")
    assert (code, "were not kept" in told) == (1, True), told
