"""Whoever renames the classes of his data gets other texts, so a training that reads these is another one, and no other is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan

TRAINED = "epochs: 1, batch_size: 20"
CAMPAIGN = f"""
version: 1
name: names
data: {{{{name: npz, file: data.npz, classes: {{classes}}, validation: 10}}}}
threat: {{{{norm: linf, eps: 0.1}}}}
defenses:
  plain: {{{{kind: standard, model: tiny-cnn, {TRAINED}}}}}
  clip: {{{{kind: clip-pretrain, model: tiny-cnn, {TRAINED}}}}}
  captioner: {{{{kind: caption-pretrain, model: tiny-cnn, {TRAINED}}}}}
  by-number: {{{{kind: fare, encoder: plain, held_out: [1], {TRAINED}}}}}
  by-name: {{{{kind: fare, encoder: plain, held_out: [bag], {TRAINED}}}}}
  means: {{{{kind: encoder-head, encoder: plain, head: prototypes}}}}
  texts: {{{{kind: encoder-head, encoder: clip, head: text}}}}
  distilled: {{{{kind: vlm-ood, teacher: plain, student: tiny-cnn, {TRAINED}}}}}
attacks:
  pgd: {{{{kind: pgd, steps: 2}}}}
checks: none
"""


def trainings(folder: Path, classes: str) -> dict[str, str]:
    laid = plan.build(spec.from_text(CAMPAIGN.format(classes=classes), "names.yaml", folder))
    return {cell.defense: cell.id for cell in laid.of("train")}


@pytest.mark.usefixtures("no_escalation")
def test_other_names_are_another_training_for_those_that_read_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.random((60, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    before, after = (trainings(tmp_path, classes) for classes in ("[coat, bag, sandal]", "[bag, coat, sandal]"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"clip", "captioner", "by-name", "texts", "distilled"}
    assert trainings(tmp_path, "[coat, bag, sandal]") == before
