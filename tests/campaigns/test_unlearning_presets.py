"""The campaigns about erased text-to-image models: what is planned, and what a plan says is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import RobustkdError

PARTS = ("esd-church/unet", "salun-church/unet", "advunlearn-church/text_encoder")


def test_every_method_is_attacked_beside_its_controls() -> None:
    campaign = spec.load("unlearning-small")
    attacked = {name for name in campaign.defenses if not campaign.excluded(name, "unlearndiffatk")}
    assert {campaign.defenses[name].kind for name in attacked} == {
        "text-to-image-pretrain",
        "esd",
        "uce",
        "salun",
        "advunlearn",
    }
    assert {"no-attack", "random-tokens", "seed-search"} < set(campaign.attacks)
    searched, control = (campaign.defenses[name].plugin.params for name in ("advunlearn", "random-prefix"))
    assert (searched.prefix, control.prefix) == ("attacked", "random")
    attack = {"prefix", "attack_steps", "attack_lr"}
    assert searched.model_dump(exclude=attack) == control.model_dump(exclude=attack)


def test_each_distillation_stands_beside_itself_without_its_idea() -> None:
    uses = spec.load("distilled-generators-small").defenses
    for name, control, idea in [
        ("erased-swiftbrush", "erased-sds", {"score"}),
        ("erased-dmd2", "erased-dmd", {"critic_steps"}),
        ("erased-cd", "erased-cd-data", {"states"}),
        ("erased-dmd2", "dmd2", {"base"}),
    ]:
        with_it, without = (uses[each].plugin.params.model_dump() for each in (name, control))
        assert {key for key in with_it if with_it[key] != without[key]} == idea
        assert uses[name].kind == uses[control].kind
    for name, plain in [
        ("erased-pg-sb", "erased-swiftbrush"),
        ("erased-disback", "erased-dmd2"),
        ("erased-scott", "erased-cd"),
    ]:
        assert uses[name].plugin.params.steps == uses[plain].plugin.params.steps
    erasers = [uses[name].plugin.params.model_dump(exclude={"base"}) for name in ("erased", "dmd2-erased")]
    assert erasers[0] == erasers[1]
    assert uses["erased"].plugin.params.base == uses["dmd2"].plugin.params.base == "original"


def test_each_eraser_and_each_attack_stands_beside_itself_without_its_idea() -> None:
    campaign = spec.load("erasers-small")
    for uses, pairs in [
        (
            campaign.defenses,
            [
                ("rece", "rece-uce", {"rounds"}),
                ("stereo", "stereo-esd", {"rounds", "anchor"}),
                ("receler", "receler-unattacked", {"attack_steps"}),
                ("msd-dropped", "msd", {"drop"}),
            ],
        ),
        (
            campaign.attacks,
            [("ring-a-bell", "ring-a-bell-random", {"generations"}), ("concept-inversion", "no-inversion", {"steps"})],
        ),
    ]:
        for name, control, idea in pairs:
            with_it, without = (uses[each].plugin.params.model_dump() for each in (name, control))
            assert {key for key in with_it if with_it[key] != without[key]} == idea, name
    drawn = {name for name in campaign.defenses if not campaign.excluded(name, "no-attack")}
    assert set(campaign.analyses["hub"].defenses) == drawn


def test_a_plan_on_stable_diffusion_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def missing() -> str:
        with pytest.raises(RobustkdError) as caught:
            plan.build(spec.load("unlearning-sd14"))
        return str(caught.value)

    assert "prompts/church.csv cannot be read" in missing()
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "church.csv").write_text(f"prompt,evaluation_seed\nA church.,1\n{'a ' * 73},2\n")
    assert "models/tokenizer" in missing()
    tokenizer = tmp_path / "models" / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps({"a</w>": 0, "<|endoftext|>": 1}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    for name in ("parachute", "garbage_truck"):
        assert f"prompts/{name}.csv cannot be read" in missing()
        (tmp_path / "prompts" / f"{name}.csv").write_text("prompt,evaluation_seed\nA thing.,1\n")
    for part in PARTS:
        assert f"models/{part}" in missing()
        folder = tmp_path / "models" / part
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert "no weights" in missing()
        (folder / "model.safetensors").write_bytes(b"weights")
    assert "judges/imagenet.onnx" in missing()
    (tmp_path / "judges").mkdir(exist_ok=True)
    (tmp_path / "judges" / "imagenet.onnx").write_bytes(b"network")
    assert "judges/clip holds no CLIP model" in missing()
    (tmp_path / "judges" / "clip").mkdir()
    (tmp_path / "judges" / "clip" / "config.json").write_text("{}")
    planned = plan.build(spec.load("unlearning-sd14"))
    assert planned.data.notes == ("1 of 2 requests of church.csv have more than 72 tokens and are left out",)
    cells = planned.cells
    assert sum(cell.kind == "train" for cell in cells) == 4
    assert sum(cell.kind == "attack" for cell in cells) == 18
    assert spec.load("unlearning-sd14").threat.budget.count == 1 + 50  # the request as it is, and the benchmark's noise levels
