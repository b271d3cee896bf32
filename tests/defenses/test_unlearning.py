"""Erasing concepts from a text-to-image model: each method's own equation, which weights it moves, and that it can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkd.contracts import BaseTarget, DataError, Request, UsageError
from robustkd.data import Splits
from robustkd.defenses.diffusion.advunlearn import attacked_prefix, prefixed, random_prefix
from robustkd.defenses.diffusion.erasing import ErasingParams, begin, partially_denoised, split
from robustkd.defenses.diffusion.one_step.sfd import identity_loss
from robustkd.defenses.diffusion.rece import returning
from robustkd.defenses.diffusion.salun import salient
from robustkd.defenses.diffusion.stereo import composed_target, laid
from robustkd.defenses.diffusion.uce import edited, encoded_tokens, projections
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.steps import train_steps
from robustkd.targets import ClassifierTarget
from robustkd.targets.text_to_image import TextToImageTarget
from support.drawing_world import SMALL, captions, context, fitted
from support.drawing_world import base as hardly_trained


@pytest.fixture(scope="module")
def data() -> Splits:
    return captions()


@pytest.fixture(scope="module")
def fit() -> Callable[..., Any]:
    def trained(spec: Mapping[str, Any], base: BaseTarget | None = None, *, folder: Path | None = None, log: Any = None) -> Any:
        return fitted(spec, folder, log, **({} if base is None else {"base": base}))

    return trained


@pytest.fixture(scope="module")
def base() -> TextToImageTarget:
    return hardly_trained()


@pytest.mark.parametrize(("wording", "kinds"), [("direct", {"direct"}), ("captions", {"direct", "indirect"})])
def test_what_is_erased_are_the_captions_of_the_wording(data: Splits, wording: Any, kinds: set[str]) -> None:
    forget, retain = split(data.train, ErasingParams(base="base", wording=wording))
    forbidden = data.train.where("role", "forbidden").where("kind", *kinds)
    assert set(forget.every()) == set(forbidden["prompt"])
    assert set(retain.every()) == {*data.train.where("role", "benign")["prompt"], ""}
    named, _ = split(data.train, ErasingParams(base="base"))
    assert set(named.every()) == set(forget.concepts)


def test_training_lowers_both_losses(fit: Callable[..., Any]) -> None:
    seen: dict[str, list[float]] = {}

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            seen.setdefault(name, []).append(value)

    text = {"steps": 20, "batch_size": 32, "lr": 5e-3}
    fit({"kind": "text-to-image-pretrain", "steps": 20, "batch_size": 16, "lr": 5e-3, "text": text, **SMALL}, log=log)
    for name in ("text_loss", "unet_loss"):
        assert np.mean(seen[name][-5:]) < 0.95 * seen[name][0], name


def test_a_training_that_is_interrupted_ends_with_the_same_bits(
    fit: Callable[..., Any], base: TextToImageTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"kind": "esd", "base": "base", "layers": "text-encoder", "steps": 8, "batch_size": 2, "lr": 1e-3, "retain": 1.0}
    whole = fit(spec, base)
    monkeypatch.setattr("robustkd.defenses.diffusion.esd.train_steps", partial(train_steps, checkpoint_seconds=0.0))

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(spec, base, folder=tmp_path, log=stop)
    again = fit(spec, base, folder=tmp_path)
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("spec", "moved"),
    [
        ({"kind": "esd", "layers": "cross-attention"}, "attn2"),
        ({"kind": "esd", "layers": "text-encoder", "retain": 1.0}, "text_encoder"),
        ({"kind": "advunlearn", "attack_steps": 2}, "text_encoder"),
        ({"kind": "stereo", "rounds": 1, "search_steps": 2, "inversion_steps": 2}, "attn2"),
        ({"kind": "salun", "share": 0.3}, "unet"),
        ({"kind": "uce"}, "attn2.to_"),
        ({"kind": "rece", "rounds": 1}, "attn2.to_"),
    ],
)
def test_only_what_is_tuned_moves(fit: Callable[..., Any], base: TextToImageTarget, spec: dict[str, Any], moved: str) -> None:
    steps = {} if spec["kind"] in ("uce", "rece") else {"steps": 2, "batch_size": 2, "lr": 1e-2}
    before = {name: weight.clone() for name, weight in base.module.state_dict().items()}
    tuned = fit({**spec, **steps, "base": "base"}, base).module.state_dict()
    changed = [name for name, weight in tuned.items() if not torch.equal(weight, before[name])]
    assert changed
    assert all(moved in name for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in base.module.state_dict().items())
    if spec["kind"] == "salun":
        same = sum(int((tuned[name] == before[name]).sum()) for name in before if name.startswith("unet"))
        total = sum(weight.numel() for name, weight in before.items() if name.startswith("unet"))
        assert same / total == pytest.approx(0.7, abs=0.02)


def test_esd_minimises_its_equation(fit: Callable[..., Any], base: TextToImageTarget, data: Splits) -> None:
    """The first step's loss, with the noise predictions asked one at a time."""
    said: list[float] = []
    spec = {"kind": "esd", "base": "base", "steps": 1, "batch_size": 3, "eta": 2.0}
    fit(spec, base, log=lambda step, metrics: said.append(metrics["erase_loss"]))
    generator = torch.Generator().manual_seed(derived_seed(0, "erase/0"))
    forbidden = dict.fromkeys(data.train.where("role", "forbidden")["concept"])
    erasure = begin(context(base=base), ErasingParams(base="base"))
    prompts = erasure.forget.draw(3, generator)
    assert set(prompts) <= set(forbidden)
    z, t = partially_denoised(base, base.encode(base.tokenize(prompts)), 3.0, generator)
    total = 0.0
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            given, without = (
                base.unet(z[row : row + 1], t[row], base.encode(base.tokenize([text])).tokens).sample for text in (prompt, "")
            )
            total += float((given - (without - 2.0 * (given - without))).square().mean())
    assert said == [pytest.approx(total / 3, rel=1e-4)]


def test_uce_solves_its_least_squares() -> None:
    random = np.random.default_rng(0)
    weight, erased, instead, kept = (random.normal(size=shape) for shape in ((5, 8), (6, 8), (6, 8), (20, 8)))
    preserve, ridge = 0.7, 0.3
    inputs = np.concatenate([erased, np.sqrt(preserve) * kept, np.sqrt(ridge) * np.eye(8)])
    outputs = np.concatenate([instead @ weight.T, np.sqrt(preserve) * kept @ weight.T, np.sqrt(ridge) * weight.T])
    expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    found = edited(*(torch.from_numpy(array) for array in (weight, erased, instead, kept)), preserve, ridge)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_rece_derives_the_embeddings_that_bring_a_concept_back_by_least_squares() -> None:
    random = np.random.default_rng(0)
    old, new, tokens = random.normal(size=(3, 5, 8)), random.normal(size=(3, 5, 8)), random.normal(size=(6, 8))
    inputs = np.concatenate([*new, np.sqrt(0.1) * np.eye(8)])
    outputs = np.concatenate([*(weight @ tokens.T for weight in old), np.zeros((8, 6))])
    expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    found = returning(list(torch.from_numpy(old)), list(torch.from_numpy(new)), torch.from_numpy(tokens), 0.1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_rece_goes_on_where_uce_ends(fit: Callable[..., Any], base: TextToImageTarget) -> None:
    """Without a round it is UCE; each round leaves less for the embedding that the edit before has left."""
    spec = {"base": "base", "concepts": ["7"], "preserve": 0.1, "ridge": 0.01}
    plain, edits = fit({"kind": "uce", **spec}, base), [fit({"kind": "rece", **spec, "rounds": n}, base) for n in (0, 1, 3)]
    assert all(
        torch.equal(one.weight, other.weight) for one, other in zip(projections(plain), projections(edits[0]), strict=True)
    )
    originals = [layer.weight.detach().double() for layer in projections(base)]
    seven, nothing = (encoded_tokens(base, [text]) for text in ("7", ""))

    def left(target: TextToImageTarget) -> float:
        weights = [layer.weight.detach().double() for layer in projections(target)]
        back = returning(originals, weights, seven, 0.1)
        pairs = zip(weights, originals, strict=True)
        return sum(float((new @ back.T - old @ seven.T).square().sum()) for new, old in pairs)

    assert left(edits[0]) < left(edits[1]) < left(edits[2])
    assert left(edits[0]) < sum(float((old @ (seven - nothing).T).square().sum()) for old in originals)


def test_stereo_leads_away_from_the_mean_of_all_prompts_and_towards_the_anchor(base: TextToImageTarget) -> None:
    """With diffusers' UNet, one prompt at a time."""
    z, t = torch.randn((2, *base.latent_shape)), torch.tensor([30, 7])
    told = {text: base.encode(base.tokenize([text])).expand(2) for text in ("7", "8", "a pair", "")}
    found = composed_target(base, z, t, [told["7"], told["8"]], 1.5, told["a pair"], 0.5)
    with torch.no_grad():
        said = {text: base.unet(z, t, hidden.tokens).sample for text, hidden in told.items()}
    away = (said["7"] + said["8"]) / 2 - said[""]
    torch.testing.assert_close(found, said[""] - 1.5 * away + 0.5 * (said["a pair"] - said[""]))


def test_stereo_without_a_search_and_an_anchor_is_esd(fit: Callable[..., Any], base: TextToImageTarget) -> None:
    common = {"base": "base", "steps": 4, "batch_size": 2, "lr": 1e-3, "retain": 1.0}
    plain = fit({"kind": "esd", **common}, base).module.state_dict()
    control = fit({"kind": "stereo", **common, "rounds": 0, "anchor": 0.0}, base).module.state_dict()
    for name, weight in plain.items():
        torch.testing.assert_close(control[name], weight, atol=1e-5, rtol=1e-3)
    searching = fit(
        {"kind": "stereo", **common, "rounds": 1, "search_steps": 2, "inversion_steps": 2}, base
    ).module.state_dict()
    assert any(not torch.allclose(searching[name], weight, atol=1e-4) for name, weight in plain.items())


def test_stereos_vectors_bring_back_what_the_original_draws(fit: Callable[..., Any], base: TextToImageTarget) -> None:
    """Their loss falls while the erased copy stands still; a prompt of vectors has them in the place of its words."""
    seen: list[float] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        seen.extend(value for name, value in metrics.items() if name == "invert-0_loss")

    spec = {"kind": "stereo", "base": "base", "steps": 1, "batch_size": 16, "rounds": 1, "search_steps": 1}
    fit({**spec, "inversion_steps": 60, "inversion_lr": 0.1}, base, log=log)
    assert np.mean(seen[-5:]) < np.mean(seen[:5])
    vectors = torch.randn(2, 3, 16)
    found = laid(base, vectors)
    ids = base.tokenize(["7 7 7", "8 8 8"])
    assert torch.equal(found[:, 1:4], vectors)
    assert torch.equal(found[:, 0], base.embed(ids)[:, 0])
    assert torch.equal(found[:, 4:], base.embed(ids)[:, 4:])


def test_uce_takes_an_erased_concept_for_nothing(fit: Callable[..., Any], base: TextToImageTarget) -> None:
    edit = fit({"kind": "uce", "base": "base", "preserve": 0.0, "ridge": 1e-6, "concepts": ["7"]}, base)
    with torch.no_grad():
        seven, nothing, eight = (base.encode(base.tokenize([text])).tokens[0, 1:] for text in ("7", "", "8"))
        for old, new in zip(projections(base), projections(edit), strict=True):
            assert (new(seven) - old(nothing)).norm() < 0.3 * (old(seven) - old(nothing)).norm()
            assert (new(eight) - old(nothing)).norm() > 0.5 * (old(eight) - old(nothing)).norm()


def test_the_attack_on_the_prefix_brings_the_prediction_nearer(base: TextToImageTarget, data: Splits) -> None:
    erasure = begin(context(base=base), ErasingParams(base="base"))
    with torch.no_grad():
        erasure.target.embedding.weight.mul_(3)
    generator = torch.Generator().manual_seed(0)
    ids = base.tokenize(["7", "a pair"])
    z, t = partially_denoised(base, base.encode(ids), 1.0, generator)
    start = random_prefix(erasure.target, 2, 2, generator)
    found = attacked_prefix(erasure, z, t, ids, start, steps=20, lr=0.02)
    assert (found - start).abs().max() <= 20 * 0.02 + 1e-6
    with torch.no_grad():
        wanted = base.unet_output(z, t, base.encode(ids))
        before, after = (
            (erasure.target.unet_output(z, t, erasure.target.encode(embeddings=prefixed(erasure.target, ids, prefix))) - wanted)
            .square()
            .sum((1, 2, 3))
            for prefix in (start, found)
        )
    assert (after < before).all()
    longer = prefixed(base, ids, start)
    assert torch.equal(longer[:, 3:], base.embed(ids)[:, 1:-2])


def test_the_salient_weights_are_those_with_the_largest_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    bias = torch.nn.Parameter(torch.ones(2))
    slopes, offsets = torch.tensor([1.0, -5.0, 0.5, 3.0]), torch.tensor([-4.0, 0.1])
    masks = salient({"weight": weight, "bias": bias}, [lambda: slopes @ weight + offsets @ bias] * 2, 0.5)
    assert masks["weight"].tolist() == [0, 1, 0, 1]
    assert masks["bias"].tolist() == [1, 0]


def test_a_distilled_generator_draws_in_one_step_what_its_network_sees_in_noise(
    fit: Callable[..., Any], base: TextToImageTarget
) -> None:
    seen: list[float] = []
    spec = {"kind": "sfd", "base": "base", "steps": 3, "batch_size": 4, "lr": 1e-3}
    made = fit(spec, base, log=lambda step, metrics: seen.append(metrics["distil_loss"]))
    assert (made.steps, made.guidance) == (1, 1.0)
    assert np.isfinite(seen).all()
    noise = torch.randn((1, *made.latent_shape), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        drawn = made.decode_latents(
            made.predict_x0(noise, torch.tensor([made.timesteps - 1]), made.encode(made.tokenize(["8"])))
        )
    torch.testing.assert_close(made.respond([Request("8", seed=3)])[0], drawn[0], atol=1e-5, rtol=0)
    moved = [
        name for name, weight in made.module.state_dict().items() if not torch.equal(weight, base.module.state_dict()[name])
    ]
    assert moved
    assert all(name.startswith("unet") for name in moved)


def test_the_identity_loss_is_sids(base: TextToImageTarget) -> None:
    random = np.random.default_rng(0)
    drawn, real, fake = random.normal(size=(3, 2, 1, 3, 3))
    found = identity_loss(*(torch.from_numpy(array) for array in (drawn, real, fake)), alpha=1.2).numpy()
    for row in range(2):
        x, phi, psi = (array[row].ravel() for array in (drawn, real, fake))
        expected = (-0.2 * np.dot(phi - psi, phi - psi) + np.dot(phi - psi, psi - x)) / np.abs(x - phi).sum()
        assert found[row] == pytest.approx(expected)


def test_the_concept_classifier_has_an_answer_for_none_of_them(fit: Callable[..., Any], data: Splits) -> None:
    spec = {"kind": "concept-classifier", "model": "tiny-cnn", "epochs": 12, "batch_size": 16, "optimiser": "adam"}
    judge = fit({**spec, "lr": 1e-2, "schedule": "constant"})
    assert isinstance(judge, ClassifierTarget)
    assert judge.num_classes == data.num_classes + 1
    assert ClassifierTarget.from_card(judge.card()).classes == (*data.classes, "none of them")
    with torch.no_grad():
        noise = judge(torch.rand(20, 1, 8, 8)).argmax(1)
        real = judge(torch.from_numpy(data.benign.images)).argmax(1) if data.benign else noise
    assert (noise == data.num_classes).float().mean() > 0.8
    assert (real.numpy() == data.benign.labels).mean() > 0.6


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (("seven",), "no concept 'seven' to erase"),
        (tuple("0123456789"), "10 of 10 concepts are to be erased"),
    ],
)
def test_what_cannot_be_erased_is_named(
    fit: Callable[..., Any], base: TextToImageTarget, concepts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit({"kind": "uce", "base": "base", "concepts": concepts}, base)


def test_nothing_is_erased_from_a_classifier(fit: Callable[..., Any]) -> None:
    network = ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=10)
    with pytest.raises(UsageError, match="is a classifier, where a text-to-image is needed"):
        fit({"kind": "esd", "base": "base"}, network)
