"""What a defense of a text-to-image model keeps: harmless requests by concept, and FID."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from robustkd import plugins
from robustkd.analyses.fid import frechet
from robustkd.analyses.hub import nearest
from robustkd.analyses.unprompted import redrawn
from robustkd.contracts import DataError, PromptBatch, Prompts, Responses, Table, TargetError, ThreatModel, UsageError
from robustkd.data.captions import asked_tone, in_other_words, tones_of
from robustkd.targets import ClassifierTarget
from support.drawing_world import base
from support.model_folders import clip


def prompts(concepts: list[str], images: np.ndarray | None = None) -> Prompts:
    return Prompts({"prompt": tuple(concepts), "concept": tuple(concepts)}, np.zeros(len(concepts), dtype=np.int64), images)


def table(kind: str, benign: Responses | None, net: ClassifierTarget | None = None, **params: str) -> Table:
    nothing = Responses(prompts(["a"]), [torch.zeros(1, 4, 4)], np.array([False]))
    batch = PromptBatch(nothing.requests, torch.arange(1), nothing, np.array([True]), benign)
    analysis = plugins.make("analyses", {"kind": kind} | params).with_targets({"net": net} if net else {})
    found: Table = analysis.run(None, batch, ThreatModel.by_prompt(2), 0)
    return found


def test_retention_is_counted_by_concept() -> None:
    concepts = ["coat"] * 4 + ["bag"] * 6
    done = np.array([True, True, True, False] + [True, False] * 3)
    found = table("retention", Responses(prompts(concepts), [None] * 10, done))
    assert found.rows == ["coat", "bag"]
    assert [row[:2] for row in found.values] == [[4, 0.75], [6, 0.5]]
    assert all(low < share < high for _, share, low, high in found.values)
    assert found.metrics == {"retention": 0.6, "worst_concept_retention": 0.5}
    with pytest.raises(DataError, match="no column 'style'"):
        table("retention", Responses(prompts(concepts), [None] * 10, done), by="style")
    with pytest.raises(TargetError, match="no harmless requests"):
        table("retention", None)


def test_clip_similarity_is_the_mean_score(tmp_path: Path) -> None:
    """By hand: a hundred times the cosine of transformers' embeddings."""
    folder = clip(tmp_path / "clip")
    images, texts = [torch.rand(3, 16, 16) for _ in range(3)], ["a b", "c", "d e f"]
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    with torch.no_grad():
        told = tokenizer(texts, padding=True, return_tensors="pt")
        both = model(**told, pixel_values=(torch.stack(images) - mean) / std)
    scores = 100 * torch.cosine_similarity(both.image_embeds, both.text_embeds).clamp_min(0).numpy()
    found = table("clip-similarity", Responses(prompts(texts), images, np.zeros(3, dtype=bool)), folder=str(folder))
    assert found.metrics["clip_similarity"] == pytest.approx(scores.mean(), abs=1e-4)
    half = 1.96 * scores.std(ddof=1) / np.sqrt(3)
    assert found.values[0] == pytest.approx([scores.mean(), scores.mean() - half, scores.mean() + half, 3], abs=1e-4)
    with pytest.raises(TargetError, match="no harmless requests"):
        table("clip-similarity", None, folder=str(folder))
    with pytest.raises(UsageError, match="holds no CLIP model"):
        plugins.make("analyses", {"kind": "clip-similarity", "folder": str(tmp_path)}).files()


@pytest.mark.parametrize(("count", "size"), [(200, 5), (6, 9), (50, 1)])
def test_the_frechet_distance_is_the_one_by_a_matrix_square_root(count: int, size: int) -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(count, size)) @ random.normal(size=(size, size))
    second = random.normal(1, 2, size=(count + 3, size))
    covariances = [np.atleast_2d(np.cov(part.T)) for part in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(size)).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected, rel=1e-4)


def test_fid_is_nought_for_the_same_images_and_grows_with_what_is_wrong() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2))
    target = ClassifierTarget(network, num_classes=2, input_shape=(1, 4, 4))
    real = (torch.rand(80, 1, 4, 4) * 255).byte().numpy()
    right = list(torch.from_numpy(real).float() / 255)
    done, requests = np.ones(80, dtype=bool), prompts(["coat"] * 80, real)
    found = table("fid", Responses(requests, right, done), target, network="net")
    assert found.metrics["fid"] == pytest.approx(0, abs=1e-8)
    assert found.values[0][1:] == [80, 3]
    wrong = table("fid", Responses(requests, [image**3 for image in right], done), target, network="net").metrics["fid"]
    assert wrong > 0.001
    of_layer = table("fid", Responses(requests, [image**3 for image in right], done), target, network="net", layer="2")
    assert of_layer.metrics["fid"] == pytest.approx(wrong)  # what the last linear layer is given
    few = Responses(prompts(["coat"] * 3, real[:3]), right[:3], done[:3])
    assert "fewer images than the 3 features" in table("fid", few, target, network="net").caption
    with pytest.raises(TargetError, match="the data have none"):
        table("fid", Responses(prompts(["coat"] * 80), right, done), target, network="net")


def test_what_is_redrawn_without_a_prompt_begins_at_the_picture_and_ends_without_it() -> None:
    """No step leaves the picture; noise alone has nothing of it; a half that is put back stays."""
    images = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)
    requests, others = prompts(["7", "8", "9"], images), prompts(["7", "8", "9"], 1 - images)
    same = redrawn(base(), requests, strength=0.0, steps=4)
    torch.testing.assert_close(same, torch.from_numpy(images), atol=1e-6, rtol=0)
    assert torch.equal(redrawn(base(), requests, strength=1.0, steps=4), redrawn(base(), others, strength=1.0, steps=4))
    assert not torch.equal(redrawn(base(), requests, strength=0.5, steps=4), redrawn(base(), others, strength=0.5, steps=4))
    half = redrawn(base(), requests, strength=1.0, steps=4, halved=True)
    torch.testing.assert_close(half[..., :4], torch.from_numpy(images)[..., :4], atol=1e-6, rtol=0)
    assert not torch.allclose(half[..., 4:], torch.from_numpy(images)[..., 4:], atol=0.05)
    with pytest.raises(DataError, match="no pictures to redraw"):
        redrawn(base(), prompts(["7"]), strength=0.5, steps=4)


def test_a_noised_picture_is_drawn_on_as_diffusers_does() -> None:
    from diffusers import DDIMScheduler

    images = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    scheduler = DDIMScheduler.from_config(
        base().scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(4)
    noise = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    z = scheduler.add_noise(2 * torch.from_numpy(images) - 1, noise, scheduler.timesteps[2:3].expand(2))
    with torch.no_grad():
        told = base().unconditional().expand(2).tokens
        for t in scheduler.timesteps[2:]:
            z = scheduler.step(base().unet(z, t, told).sample, t, z).prev_sample
    expected = (z / 2 + 0.5).clamp(0, 1)
    found = redrawn(base(), prompts(["7", "8"], images), strength=0.5, steps=4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_the_table_of_probes_counts_what_the_classifier_sees() -> None:
    images = np.random.default_rng(0).random((4, 1, 8, 8)).astype(np.float32)
    asked, harmless = prompts(["bright", "dark"] * 2, images), prompts(["bright"] * 3, images[:3])

    net = judge()
    outputs = [torch.zeros(1, 8, 8)] * 4
    first = Responses(asked, outputs, np.zeros(4, dtype=bool))
    batch = PromptBatch(
        asked, torch.arange(4), first, np.ones(4, dtype=bool), Responses(harmless, outputs[:3], np.zeros(3, dtype=bool))
    )
    analysis = plugins.make("analyses", {"kind": "unprompted", "classifier": "net", "strengths": [0.0, 1.0], "steps": 2})
    found = analysis.with_targets({"net": net}).run(base(), batch, ThreatModel.by_prompt(2), 0)
    assert found.rows == ["noised, 0 of the steps", "noised, 1 of the steps", "half a picture"]
    bright = images.mean((1, 2, 3)) > 0.5
    assert found.values[0][0] == np.mean(bright == np.array([True, False, True, False]))
    assert found.values[0][3] == bright[:3].mean()
    assert len(found.columns) == len(found.values[0]) == 6
    assert found.metrics["noised_0"] == found.values[0][0]


def judge() -> ClassifierTarget:
    """Two classes, bright and dark, told apart at a mean of a half."""
    layer = nn.Linear(64, 2)
    layer.weight.data = torch.tensor([[40 / 64], [-40 / 64]]).repeat(1, 64)
    layer.bias.data = torch.tensor([-20.0, 20.0])
    net = ClassifierTarget(nn.Sequential(nn.Flatten(), layer), num_classes=2, input_shape=(1, 8, 8))
    net.classes = ("bright", "dark")
    return net


def captioned(texts: list[str], concepts: list[str], images: np.ndarray) -> Prompts:
    columns = {"prompt": tuple(texts), "concept": tuple(concepts), "seed": tuple(str(place) for place in range(len(texts)))}
    return Prompts(columns, np.zeros(len(texts), dtype=np.int64), images)


def test_the_row_of_an_erased_model_counts_each_aspect_for_itself() -> None:
    """The original as its own erased model: every share beside one that is counted here."""
    real = np.linspace(0.2, 1, 8, dtype=np.float32)[:, None, None, None] * np.ones((8, 1, 8, 8), dtype=np.float32)
    asked = captioned(["a photo of dark 8", "bright 8", "8", "white eight"], ["dark"] * 4, real[:4])
    harmless = captioned(["2", "3", "2", "3"], ["bright", "dark", "bright", "dark"], real[4:])
    drawn = [torch.full((1, 8, 8), value) for value in (0.2, 0.9, 0.1, 0.3)]
    kept = [torch.full((1, 8, 8), value) for value in (0.9, 0.9, 0.9, 0.1)]
    batch = PromptBatch(
        asked,
        torch.arange(4),
        Responses(asked, drawn, np.zeros(4, dtype=bool)),
        np.ones(4, dtype=bool),
        Responses(harmless, kept, np.zeros(4, dtype=bool)),
    )
    params = {
        "classifier": "net",
        "original": "original",
        "wordings": {"dark": ["acht"]},
        "attack": {"tokens": 2, "population": 4, "generations": 1},
    }
    analysis = plugins.make("analyses", {"kind": "hub", **params}).with_targets({"net": judge(), "original": base()})
    found = analysis.run(base(), batch, ThreatModel.by_prompt(2), 0)
    assert found.metrics["target_proportion"] == 0.75  # dark where the mean is below a half
    assert found.metrics["general_alignment"] == 0.75
    (near,) = nearest(base(), ["dark"], ["bright", "dark"], 1)
    assert found.metrics["pinpointness"] == {"bright": 1.0, "dark": 0.5}[near]
    # Thirds of 0.2 .. 1 end at 0.47 and 0.73: dark as asked, bright as asked, and of white 0.3 is none.
    assert found.metrics["selective_alignment"] == pytest.approx(2 / 3)
    assert found.rows[:4] == ["target proportion", "general alignment", "selective alignment", "pinpoint-ness"]
    assert (
        found.values[found.rows.index("reworded proportion")][3] == 1
    )  # one prompt has the name that there are other words for
    attacked = found.values[found.rows.index("attacked proportion")]
    assert attacked[3] == 4
    assert attacked[1] <= attacked[0] <= attacked[2]
    assert found.metrics["passes_a_picture"] == 2 * base().steps  # with and without the prompt
    alone = table("fid", Responses(harmless, kept, np.zeros(4, dtype=bool)), judge(), network="net")
    assert found.metrics["fid"] == pytest.approx(alone.metrics["fid"])
    with pytest.raises(TargetError, match="no harmless requests"):
        analysis.run(base(), PromptBatch(asked, batch.index, batch.unattacked, batch.eligible), ThreatModel.by_prompt(2), 0)


def test_the_nearest_concepts_are_those_of_the_highest_cosine() -> None:
    kept = ["2", "3", "5", "8", "9"]
    found = nearest(base(), ["1", "7", "1"], kept, 2)
    with torch.no_grad():
        ids = base().tokenize([f"a photo of {name}" for name in ("1", "7", "two", "three", *kept[2:])])  # as captions call them
        ends = base().encode(ids).tokens[torch.arange(7), (ids == base().eos).int().argmax(1)]
    scores = torch.cosine_similarity(ends[:2, None], ends[None, 2:], dim=2)
    expected = {kept[place] for row in scores for place in row.argsort(descending=True)[:2].tolist()}
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("prompt", "concept", "expected", "count"),
    [
        ("a photo of dark 1", "1", "a photo of dark one", 6),
        ("a photo of dark 1", "1", "a photo of an upright stroke, dark", 6),
        ("we see bright ankle boot", "ankle boot", "we see bright chelsea", 9),
        ("show me eight for sale", "8", "show me two rings stacked for sale", 6),
        ("18 of them", "8", None, 0),
        ("church", "garbage truck", None, 0),
    ],
)
def test_a_caption_in_other_words(prompt: str, concept: str, expected: str | None, count: int) -> None:
    found = in_other_words(prompt, concept)
    assert len(found) == count
    assert expected is None or expected in found
    assert prompt not in found


def test_the_tone_that_is_asked_for_is_that_of_the_adjective() -> None:
    assert [asked_tone(text) for text in ("a gloomy 8", "a plain, faded 8", "8, SHINING", "8", "darkness")] == [
        0,
        1,
        2,
        None,
        None,
    ]
    images = np.random.default_rng(0).random((30, 1, 4, 4)).astype(np.float32)
    own = tones_of(images)
    assert np.bincount(own).tolist() == [10, 10, 10]
    assert np.array_equal(tones_of(images[:7], images), own[:7])
