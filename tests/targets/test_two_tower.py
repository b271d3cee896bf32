"""Two towers answer with scaled cosines, come back from their files, and are what a CLIP folder holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import TargetError, UsageError
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget, load_target, save_target
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import Texts, TwoTowerTarget
from support.two_towers import fitted, images, towers


def saved_and_loaded(target: TwoTowerTarget, folder: Path) -> TwoTowerTarget:
    save_target(target, folder)
    found = load_target(folder)
    assert isinstance(found, TwoTowerTarget)
    return found


def test_logits_are_scaled_cosines() -> None:
    target, x = towers(scale=5.0), images()
    with torch.no_grad():
        f, v = target.module.image(x).double().numpy(), target.vectors.double().numpy()
        logits = target(x).numpy()
    cosines = (f @ v.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(v, axis=1)
    assert np.allclose(logits, 5 * cosines, atol=1e-5)


def test_other_class_vectors_permute_and_replace_the_logits() -> None:
    target, x = towers(), images()
    order = torch.tensor([3, 1, 2, 0, 9, 8, 7, 6, 5, 4])
    with torch.no_grad():
        assert torch.allclose(target.with_vectors(target.vectors[order])(x), target(x)[:, order], atol=1e-5)
        assert target.with_vectors(target.vectors[:3])(x).shape == (len(x), 3)


def test_a_classifier_becomes_two_towers_without_its_last_layer() -> None:
    plain, x = fixtures.classifier(), images()
    target = TwoTowerTarget.of(plain)
    rows = plain.module.linear.weight.detach()
    with torch.no_grad():
        features = EncoderTarget(plain, unit=False)(x)
        assert torch.allclose(target.module.image(x), features)
        assert torch.allclose(plain.module.linear(features), plain(x), atol=1e-6)
    assert torch.allclose(target.vectors, rows / rows.norm(dim=1, keepdim=True))
    assert TwoTowerTarget.of(target) is target
    short = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5), nn.ReLU())
    with pytest.raises(TargetError, match="5 outputs, the classifier 10 classes"):
        TwoTowerTarget.of(ClassifierTarget(short, num_classes=10, input_shape=(1, 8, 8)))


def test_an_encoder_gives_vectors_of_length_1_with_gradients_and_is_never_adversarial() -> None:
    for target in (towers(), fixtures.classifier(), fixtures.residual(), fixtures.pipeline()):
        encoder, x = EncoderTarget(target), images().requires_grad_()
        features = encoder(x)
        assert torch.allclose(features.norm(dim=1), torch.ones(len(x)), atol=1e-5)
        (gradient,) = torch.autograd.grad((features * torch.arange(features.shape[1])).sum(), x)
        rounded = target.kind == "pipeline"  # its stage has no slope
        assert bool(gradient.abs().flatten(1).sum(1).gt(0).all()) != rounded
        assert encoder.never_adversarial


def test_it_comes_back_from_its_files_with_its_text_tower(tmp_path: Path) -> None:
    own = towers()
    texts = Texts(words=("a", "boot"), length=4, width=16, layers=1)
    target = TwoTowerTarget(
        own.module.image,
        own.vectors,
        tower=own.tower,
        input_shape=own.input_shape,
        texts=texts,
        text=texts.build(4),
        classes=[str(number) for number in range(10)],
    )
    target.module.eval()
    again = saved_and_loaded(target, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(images()), target(images()))
    assert torch.equal(again.of_texts(["A boot", "boot-like, a"]), target.of_texts(["a boot", "anything a"]))
    assert again.classes == target.classes
    with pytest.raises(TargetError, match="no text tower"):
        own.of_texts(["a boot"])


@pytest.mark.parametrize("kind", ["pgd", "square", "apgd-ce", "cw-l2", "feature-pgd"])
def test_attacks_on_classifiers_work_on_it(kind: str) -> None:
    with torch.no_grad():
        labels = towers()(images()).argmax(1)
    norm = "l2" if kind == "cw-l2" else "linf"
    found = robustkd.attack(kind, towers(), images(), labels, norm=norm, eps=3.0 if norm == "l2" else 0.5)
    assert found.success.sum() > 5


def clip_folder(folder: Path, *, size: int = 16) -> Path:
    """A randomly initialised CLIP model of transformers, with its processor and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<unk>", "a", "photo", "of", "zero", "one", "two", ".", "<end>"]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 9)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=12
    )
    tokenizer.save_pretrained(folder)
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 10, "max_position_embeddings": 12, "eos_token_id": 9, "bos_token_id": 2, "pad_token_id": 0, **shared}
    vision = {"image_size": size, "patch_size": 8, **shared}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def of_folder(folder: Path, input_shape: tuple[int, ...] = (3, 16, 16), **given: object) -> TwoTowerTarget:
    from robustkd import plugins
    from robustkd.contracts import FitContext

    with fixtures.context() as made:
        context = FitContext(**{**vars(made), "train": None, "input_shape": input_shape, "num_classes": 3})
        found: TwoTowerTarget = plugins.make("defenses", {"kind": "clip-folder", "folder": str(folder), **given}).fit(context)
    return found


NAMES = ["zero", "one", "two"]


def test_a_clip_folder_answers_as_its_own_package_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    target = of_folder(clip_folder(tmp_path), names=NAMES, templates=["a photo of a {}."])
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        [f"a photo of a {name}." for name in NAMES], padding=True, return_tensors="pt"
    )
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    with torch.no_grad():
        theirs = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=(x - mean) / std
        ).logits_per_image
        assert torch.allclose(target(x), theirs, atol=1e-4)
    found = robustkd.attack("pgd", target, x, target(x).argmax(1), eps=0.3)
    assert found.success.any()


def test_a_clip_folder_s_target_needs_the_folder_no_more(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "saved").mkdir()
    target = of_folder(clip_folder(tmp_path / "clip"), names=NAMES)
    (tmp_path / "clip").rename(tmp_path / "elsewhere")
    again, x = saved_and_loaded(target, tmp_path / "saved"), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), target(x))


def test_what_is_wrong_with_a_clip_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no config\.json"):
        of_folder(tmp_path, names=NAMES)
    clip_folder(tmp_path)
    with pytest.raises(UsageError, match="2 names of classes, the data have 3"):
        of_folder(tmp_path, names=["zero", "one"])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(TargetError, match=r"no preprocessor_config\.json"):
        of_folder(tmp_path, names=NAMES)


def test_images_of_other_channels_and_damaged_weights_are_refused_at_once(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    with pytest.raises(TargetError, match="images of 3 channels, the data's have 1"):
        of_folder(tmp_path, names=NAMES, input_shape=(1, 16, 16))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(TargetError, match=r"model\.safetensors is damaged"):
        of_folder(tmp_path, names=NAMES)


def test_a_network_of_two_towers_can_be_trained_on_and_stays_one(tmp_path: Path) -> None:
    """Copies for training keep the kind of target, so that what is made of them can be saved."""
    members = fitted("adp", {"start": ["one", "two"], "model": None}, targets={"one": towers(1), "two": towers(2)})
    save_target(members, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_target(tmp_path)(images()), members(images()))  # type: ignore[operator]
