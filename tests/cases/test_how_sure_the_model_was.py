"""The logits before and after an attack are kept with the perturbed inputs, and a cell that has none is still opened."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from viewer.conftest import rewritten, served

import robustkd
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.targets import load_target
from support.campaigns import tiny_campaign

TEXT = tiny_campaign(
    "logits",
    train=200,
    test=300,  # more than one shard
    defenses={"plain": "{kind: standard, model: tiny-cnn, epochs: 2}"},
    attacks={"fgsm": "{kind: fgsm}"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("logits") / "runs" / "logits"
    robustkd.run(TEXT, where, workers=0, device="cpu", track=False)
    return where


def cell(folder):
    return Store(folder).get(robustkd.load(folder).cells[0].cell_id)


def test_they_are_the_model_s_own(folder):
    entry = cell(folder)
    record, kept = samples.read(entry), samples.perturbed(entry)
    logits = samples.perturbed(entry, "logits")
    assert logits.shape == (300, 2, 10)
    assert logits.dtype == np.float32
    (trained,) = (place for place in folder.glob("cells/*/*") if (place / "weights.safetensors").is_file())
    with torch.no_grad():
        again = load_target(trained)(torch.from_numpy(kept.copy())).numpy()
    np.testing.assert_allclose(logits[:, 1], again, atol=1e-4)
    right = logits[:, 0].argmax(1) == record.outcome.label
    assert (right == record.outcome.eligible).all()
    changed = logits[:, 1].argmax(1) != record.outcome.label
    assert (changed[record.outcome.eligible] == record.outcome.success[record.outcome.eligible]).all()


def test_the_viewer_shows_them_and_their_probabilities(folder):
    entry = cell(folder)
    row = int(np.flatnonzero(samples.read(entry).outcome.success)[0])
    logits = samples.perturbed(entry, "logits")[row].astype(float)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    taken = logits[1].argmax()
    with served(folder.parent) as get:
        words = get("sample", run="logits", defense="plain", seed=0, n=row).page.words
    assert f"{logits[0, taken]:.2f} {logits[1, taken]:.2f}" in words
    assert f"{100 * shares[1, taken]:.1f}" in words


def test_a_cell_of_an_earlier_version_has_none_and_is_opened(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "runs" / "logits")
    entry = cell(copy)
    arrays = load((entry.folder / "adversarial.safetensors").read_bytes())
    del arrays["logits"]
    rewritten(entry.folder, "adversarial.safetensors", save(arrays))
    with served(copy.parent) as get:
        words = get("sample", run="logits", defense="plain", seed=0, n=1).page.words
        assert "Logits were not kept" in words
    again = robustkd.run(TEXT, copy, workers=0, device="cpu", track=False)
    assert again.cells[0].cell_id == robustkd.load(folder).cells[0].cell_id
    assert "logits" not in load((entry.folder / "adversarial.safetensors").read_bytes())  # it was not done again
