"""Attacks on text-to-image models, on one whose planted word brings an unlearnt picture back."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")

from robustkd import plugins
from robustkd.attacks.diffusion.engine.denoising import Denoising, level, levels_of, pictures
from robustkd.attacks.diffusion.engine.encoder_states import encoded, end_states
from robustkd.attacks.diffusion.engine.simplex import draw, project_to_simplex
from robustkd.attacks.diffusion.engine.slots import Slots, vocabulary
from robustkd.attacks.diffusion.mma_diffusion import MMADiffusionParams, distances, slopes, swapped
from robustkd.attacks.diffusion.p4d import P4D
from robustkd.attacks.diffusion.pez import Nearest
from robustkd.attacks.diffusion.qf import TextEncoderSimilarity
from robustkd.attacks.diffusion.ring_a_bell import RingABellParams, directions, following, genetic_search
from robustkd.attacks.diffusion.unlearndiffatk import Distributions
from robustkd.contracts import DataError, Request, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets.text_to_image import TextToImageTarget
from support.toy_text_to_image import ShowsThePicture, Summing, requests, summing, toy

JUDGES = {"picture": ShowsThePicture()}
QUICK = {
    "unlearndiffatk": {"steps": 8, "lr": 0.1},
    "pez": {"steps": 8, "lr": 1.0},
    "p4d": {"steps": 8, "lr": 1.0, "original": "original"},
}


def bisected(v: np.ndarray) -> np.ndarray:
    """The projection of one point: the shift under which its positive part sums to 1, by bisection."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - (low + high) / 2, 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_projection_is_the_one_by_bisection(scale: float) -> None:
    v = torch.randn(3, 4, 1000, generator=torch.Generator().manual_seed(1)) * scale + 5
    expected = np.apply_along_axis(bisected, -1, v.double().numpy())
    np.testing.assert_allclose(project_to_simplex(v), expected, atol=1e-6)


def test_the_projection_of_ties_corners_and_points_of_the_simplex() -> None:
    ties = torch.tensor([[2.0, 2, 2, 0, 0], [0, 0, 0, 0, 0], [-7, -7, -7, -7, -8], [0.5, 0.5, 0.25, 0.25, 0.25]])
    expected = np.apply_along_axis(bisected, -1, ties.double().numpy())
    np.testing.assert_allclose(project_to_simplex(ties), expected, atol=1e-6)
    inside = torch.tensor([[0.2, 0.3, 0.5], [0, 1, 0]])
    torch.testing.assert_close(project_to_simplex(inside), inside)
    assert project_to_simplex(torch.tensor([3.0, 1.0, 0.0])).tolist() == [1, 0, 0]


def test_a_draw_inverts_the_cumulative_distribution_and_never_takes_what_has_no_weight() -> None:
    weights = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    points = torch.tensor([0.0, 0.2, 0.25, 0.6, 0.7499, 0.75, 1 - 2**-24])
    assert draw(weights.expand(7, 6), points).tolist() == [1, 1, 3, 3, 3, 4, 4]


def test_the_error_is_the_mean_squared_one_of_the_noise() -> None:
    """Against diffusers' own noise and a loop over requests and levels."""
    target, prompts = toy("xyzzy"), ["photo of the church", "xyzzy photo", "photo"]
    aim = pictures(target, requests(3), None)
    target.unet = lambda z, t, encoder_hidden_states: SimpleNamespace(
        sample=z.tanh() * encoder_hidden_states.mean((1, 2))[:, None, None, None]
    )
    error = Denoising(target, aim, blocks=4, at_once=2)
    rows = torch.tensor([2, 0])
    hidden = target.encode(target.tokenize(prompts))[rows]
    rng = SampleRng(3, torch.tensor([11, 12, 13]))
    found = error.error(rows, hidden, 1, rng.fork("x").select(rows))
    noise = rng.fork("x").select(rows).normal((2, 1, 4, 4))
    expected = []
    for place in range(2):
        values = []
        for which, t in enumerate((15, 35)):  # the middles of the second and the last quarter of 40 levels
            noisy = target.scheduler.add_noise(aim[rows[place]][None], noise[place, which][None], torch.tensor([t]))
            seen = target.unet(noisy, torch.tensor([t]), encoder_hidden_states=hidden.tokens[place][None]).sample
            values.append(F.mse_loss(seen, noise[place, which][None]))
        expected.append(sum(values) / 2)
    torch.testing.assert_close(found, torch.stack(expected))
    assert [level(block, 50, 1000) for block in (0, 1, 49)] == [10, 30, 990]


def test_a_model_that_says_velocities_is_compared_with_velocities() -> None:
    """Against diffusers' own velocity."""
    target = toy("xyzzy")
    target.scheduler = type(target.scheduler).from_config(target.scheduler.config, prediction_type="v_prediction")
    aim = pictures(target, requests(2), None)
    target.unet = lambda z, t, encoder_hidden_states: SimpleNamespace(sample=z.tanh())
    hidden, rows, rng = target.encode(target.tokenize(["photo"] * 2)), torch.arange(2), SampleRng(3, torch.arange(2))
    found = Denoising(target, aim, blocks=4).error(rows, hidden, 2, rng.fork("x"))
    noise, t = rng.fork("x").normal((1, 1, 4, 4))[:, 0], torch.tensor([25, 25])  # the middle of the third quarter of 40 levels
    seen = target.scheduler.add_noise(aim, noise, t).tanh()
    wanted = target.scheduler.get_velocity(aim, noise, t)
    torch.testing.assert_close(found, (wanted - seen).square().mean((1, 2, 3)))


def test_what_the_original_predicts_is_wanted_in_the_place_of_the_noise() -> None:
    unlearned, original = toy("xyzzy"), toy("church")
    aim = pictures(unlearned, requests(2), None)
    asked = original.encode(original.tokenize(requests(2)["prompt"]))
    error = Denoising(unlearned, aim, 5, original=(original, asked))
    rows, rng = torch.arange(2), SampleRng(0, torch.arange(2))
    with_it, without = (unlearned.encode(unlearned.tokenize([text] * 2)) for text in ("xyzzy photo", "photo"))
    torch.testing.assert_close(error.error(rows, with_it, 0, rng), torch.zeros(2), atol=1e-6, rtol=0)
    assert (error.error(rows, without, 0, rng) > 0.01).all()
    assert (error.forwards, error.backwards) == (2, 1)


def test_the_gradient_goes_straight_through_the_draw() -> None:
    """Against autograd through a dense one-hot whose own gradient is clipped."""

    class Clipped(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, weights: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
            return one_hot

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            return F.hardtanh(gradient), None

    torch.manual_seed(0)
    table, x = torch.randn(50, 6) * 3, project_to_simplex(torch.randn(2, 3, 50)).requires_grad_()
    chosen = torch.randint(0, 50, (2, 3))

    def loss(embedded: torch.Tensor) -> torch.Tensor:
        return (embedded.sin() * torch.arange(6.0)).sum()

    (expected,) = torch.autograd.grad(loss(Clipped.apply(x, F.one_hot(chosen, 50).float()) @ table), x)
    embedded = table[chosen].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(embedded), embedded)
    assert expected.abs().max() == 1  # some are clipped
    assert expected.abs().min() < 1
    found = Distributions(table, lr=0.1, weight_decay=0.5).vjp(x.detach(), gradient)
    torch.testing.assert_close(found, expected + 0.5 * x.detach())


def test_free_embeddings_stand_for_the_tokens_nearest_by_angle() -> None:
    table = torch.tensor([[1.0, 0], [0, 5], [-1, 0]])
    relaxed = Nearest(table, lr=0.1, weight_decay=0.1)
    x = torch.tensor([[[9.0, 1], [0.1, 0.2], [-3, 2]]])
    assert relaxed.likeliest(x).tolist() == [[0, 1, 2]]
    torch.testing.assert_close(relaxed.update(x, torch.ones_like(x)), x - 0.1 * (1 + 0.1 * x))
    starts = relaxed.start(SampleRng(0, torch.arange(4)), 3)
    assert all(any(torch.equal(point, row) for row in table) for point in starts.reshape(-1, 2))


def test_what_the_text_encoder_means_is_compared_at_all_positions() -> None:
    target = summing()
    slots = Slots(target, ["photo of", "church"], "prefix", 2)
    tokens = target.tokenize(["xyzzy a"])[:, 1:3].expand(2, 2)
    rows = torch.tensor([1, 0])
    filled = slots.filled(rows, tokens)
    assert [target.decode(ids) for ids in filled] == ["xyzzy a church", "xyzzy a photo of"]
    meant = torch.randn(2, 12, 4)
    found = TextEncoderSimilarity(target, meant, sign=-1)(rows, target.embed(filled), 0, SampleRng(0, rows))
    states = target.embed(filled).cumsum(1).flatten(1)
    torch.testing.assert_close(found, -(F.normalize(states) * F.normalize(meant[rows].flatten(1))).sum(1))


@pytest.mark.parametrize(("original", "nearer"), [("original", True), (None, False)])
def test_the_query_free_search_moves_the_meaning(original: str | None, nearer: bool) -> None:
    target = summing()
    found = attacked("qf", target, attempts=2, steps=30, lr=0.3, tokens=3, original=original)
    now, meant = (
        _states(target, prompts(found)),
        _states(summing("church") if original else target, ["photo of the church"] * 5),
    )
    random = _states(target, prompts(attacked("random-tokens", target, attempts=2, tokens=3)))
    ahead = F.cosine_similarity(now, meant) - F.cosine_similarity(random, meant)
    assert (ahead > 0).all() if nearer else (ahead < 0).all()


def _states(target: TextToImageTarget, texts: Sequence[str]) -> torch.Tensor:
    return encoded(target, list(texts)).detach().flatten(1)


def prompts(found: Evaluation) -> list[str]:
    return [said.prompt for said in found.transcripts]


def attacked(
    name: str, target: TextToImageTarget, count: int = 5, attempts: int = 4, images: bool = True, **params: Any
) -> Evaluation:
    original = summing("church") if isinstance(target, Summing) else toy("church")
    attack = plugins.make("attacks", {"kind": name} | QUICK.get(name, {}) | params).with_targets({"original": original})
    batch = prepare(target, requests(count, images), np.arange(count) + 40, JUDGES)
    threat = attack.threat_for(ThreatModel.by_prompt(attempts))
    return evaluate_prompt_attack(target, attack, batch, threat, JUDGES, seed=1)


def test_models_that_predict_different_things_are_not_compared() -> None:
    target = toy("xyzzy")
    target.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(TargetError, match="'original' predicts its epsilon, the model under attack its v_prediction"):
        attacked("p4d", target)


@pytest.mark.parametrize("name", ["unlearndiffatk", "pez", "p4d"])
@pytest.mark.parametrize("place", ["prefix", "suffix", "insert"])
def test_a_search_finds_the_word_that_was_not_unlearnt(name: str, place: str) -> None:
    found = attacked(name, toy("xyzzy"), tokens=2, place=place)
    assert found.outcome.success.all()
    used = np.array([said.attempts for said in found.transcripts])
    assert ((used > 1) & (used <= 4)).all()
    prompts = [said.prompt.split(" ") for said in found.transcripts]
    at = {"prefix": slice(0, 2), "suffix": slice(-2, None), "insert": slice(2, 4)}[place]
    assert all("xyzzy" in words[at] for words in prompts)
    rest = [[word for place, word in enumerate(words) if place not in range(len(words))[at]] for words in prompts]
    assert rest == [["photo", "of", "the", "church"]] * 5
    passes = 8 * (2 if name == "p4d" else 1)
    np.testing.assert_array_equal(
        found.outcome.forwards, used + passes * (used - 1)
    )  # the answers, and the search for all but the first
    np.testing.assert_array_equal(found.outcome.backwards, 8 * (used - 1))


class Noting(TextToImageTarget):
    """Notes what it is asked."""

    def respond(self, asked: Sequence[Request]) -> list[torch.Tensor]:
        self.noted = [*getattr(self, "noted", []), *asked]
        return super().respond(asked)


def noting(*asking: str) -> Noting:
    made = toy(*asking)
    return Noting(made.module, made.tokenizer, made.special, made.scheduler, guidance=1.0, steps=2)


@pytest.mark.parametrize(("name", "params"), [("unlearndiffatk", {"steps": 6}), ("pez", {"steps": 6}), ("random-tokens", {})])
def test_what_is_asked_of_a_request_does_not_depend_on_the_others_and_is_not_asked_twice(name: str, params: dict) -> None:
    def asked_of_the_first(count: int, **more: int) -> list[str]:
        attacked(name, target := noting(), count=count, tokens=2, **params, **more)  # no word does anything: all is chance
        return [question.prompt for question in target.noted[count:][::count]]

    alone = asked_of_the_first(1)
    assert asked_of_the_first(5) == alone
    if name != "random-tokens":
        assert asked_of_the_first(5, batch_size=2) == alone
    assert len(set(alone)) == len(alone)
    assert len(alone) == {"pez": 2}.get(name, 4)  # what does not move has nothing new to ask


@pytest.mark.parametrize(("name", "attempts"), [("no-attack", 1), ("random-tokens", 4), ("seed-search", 4)])
def test_a_control_finds_nothing_within_its_attempts(name: str, attempts: int) -> None:
    found = attacked(name, toy("xyzzy"))
    assert not found.outcome.success.any()
    assert found.outcome.forwards.tolist() == [attempts] * 5
    assert not found.outcome.backwards.any()


def test_random_tokens_are_as_many_in_the_same_place() -> None:
    found = attacked("random-tokens", toy(), tokens=3, place="suffix")
    words = [said.prompt.split(" ") for said in found.transcripts]
    assert all(prompt[:4] == ["photo", "of", "the", "church"] and len(prompt) == 7 for prompt in words)
    assert len({tuple(prompt) for prompt in words}) == 5


def test_a_request_that_nothing_was_unlearnt_of_is_its_own_first_attempt() -> None:
    for name in ("unlearndiffatk", "random-tokens", "seed-search", "no-attack"):
        found = attacked(name, toy("church"))
        assert [said.attempts for said in found.transcripts] == [1] * 5
        assert found.transcripts[0].prompt == "photo of the church"


def test_seeds_are_searched_each_once() -> None:
    attacked("seed-search", target := noting(), count=2, attempts=6)
    seeds = [question.seed for question in target.noted]
    assert seeds[:4] == [7, 8, 7, 8]  # what they are without an attack, and the first attempt
    assert len(set(seeds[4:])) == len(seeds[4:]) == 10


def test_only_tokens_that_survive_as_a_text_are_taken() -> None:
    target = toy("xyzzy")
    grown = target.tokenizer
    grown.add_tokens(["two words"])  # which another rule splits before it could be found
    known = {target.tokenizer.id_to_token(int(token)) for token in vocabulary(target)}
    assert "xyzzy" in known
    assert "word7" in known
    assert not known & {"<|startoftext|>", "<|endoftext|>", "<|unknown|>"}
    slots = Slots(target, ["photo of the church"], "prefix", 1)
    token = torch.tensor([target.tokenizer.token_to_id("xyzzy")])
    assert slots.text(0, token) == "xyzzy photo of the church"
    assert slots.roundtrips(0, token, "xyzzy photo of the church")
    assert not slots.roundtrips(0, token, "xyzzy xyzzy photo of the church")
    assert not slots.roundtrips(0, token, "word1 " * 40)


def test_without_pictures_the_original_draws_them_or_the_error_says_so() -> None:
    unlearned, original = toy("xyzzy"), toy("church")
    drawn = pictures(unlearned, requests(2, images=False), original)
    torch.testing.assert_close(drawn, pictures(unlearned, requests(2), None), atol=1e-4, rtol=0)
    assert attacked("unlearndiffatk", unlearned, count=2, images=False, tokens=2, original="original").outcome.success.all()
    with pytest.raises(DataError, match="have no images"):
        attacked("unlearndiffatk", unlearned, images=False)
    wrong = requests(1)
    big = type(wrong)(wrong.columns, wrong.labels, np.zeros((1, 1, 8, 8), dtype=np.float32))
    with pytest.raises(DataError, match=r"latents of \(1, 8, 8\); the model draws from \(1, 4, 4\)"):
        pictures(unlearned, big, None)


@pytest.mark.parametrize("name", ["random-tokens", "unlearndiffatk", "pez", "p4d", "qf"])
def test_a_request_without_room_is_not_judged_and_the_others_are_attacked(name: str) -> None:
    target, some = toy("xyzzy"), requests(3)
    texts = list(some["prompt"])
    texts[1] = " ".join(["photo"] * 9)
    judged = prepare(
        target, type(some)(some.columns | {"prompt": tuple(texts)}, some.labels, some.images), np.arange(3), JUDGES
    )
    attack = plugins.make("attacks", {"kind": name} | QUICK.get(name, {}) | {"tokens": 2})
    attack = attack.with_targets({"original": toy("church")})
    found = evaluate_prompt_attack(target, attack, judged, attack.threat_for(ThreatModel.by_prompt(2)), JUDGES)
    assert found.outcome.attempts is not None
    assert (found.outcome.attempts > 0).tolist() == [True, False, True]
    assert found.outcome.unjudged[1]
    assert "leaves no room for 2 more of 10 tokens" in found.transcripts[1].output
    assert len(found.adversarial) == 3


def test_targets_without_tokens_or_room_are_refused() -> None:
    with pytest.raises(UsageError, match="the model reads 10 tokens"):
        attacked("random-tokens", toy(), tokens=11)
    attack = P4D(P4D.Params(original="original")).with_targets(
        {"original": plugins.load("targets", "classifier").__new__(plugins.load("targets", "classifier"))}
    )
    batch = prepare(target := toy(), requests(1), np.arange(1), JUDGES)
    with pytest.raises(UsageError, match="'original' is a classifier, where a text-to-image is needed"):
        evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(2), JUDGES)


def test_vectors_bring_back_what_no_token_says() -> None:
    """A model none of whose words asks for the picture: a search for tokens finds nothing, and trained vectors do."""
    assert not attacked("unlearndiffatk", toy(), tokens=2).outcome.success.any()
    quick = {"steps": 40, "lr": 0.3, "tokens": 2, "batch_size": 2}
    found = attacked("concept-inversion", toy(), attempts=2, **quick)
    assert found.outcome.success.all()
    assert [said.attempts for said in found.transcripts] == [2] * 5
    np.testing.assert_array_equal(found.outcome.forwards, 2 + 40 * 2)
    np.testing.assert_array_equal(found.outcome.backwards, 40 * 2)
    control = attacked("concept-inversion", toy(), attempts=2, **quick | {"steps": 0})
    assert not control.outcome.success.any()
    near = attacked("concept-inversion", toy(), attempts=2, **quick | {"radius": 0.05})
    assert not near.outcome.success.any()


def test_embeddings_are_as_far_as_from_the_nearest_token() -> None:
    target = toy()
    laid = target.embed(target.tokenize(["photo"]))[0]
    assert target.embedding_distance(Request("photo", embeddings=laid)) == pytest.approx(0, abs=1e-5)
    table = target.embedding.weight
    away = laid.clone()
    away[1] += (step := torch.tensor([0.0, 30.0, 0.0, 0.0]))
    nearest = min(float((away[1] - row).norm()) for row in table)
    assert target.embedding_distance(Request("photo", embeddings=away)) == pytest.approx(
        nearest / float(table.norm(dim=1).mean()), rel=1e-4
    )
    assert nearest < float(step.norm())


def test_an_attack_at_the_levels_of_drawing_looks_at_those_alone() -> None:
    target = toy("xyzzy")
    times = sorted(target.sampling_times().tolist())
    assert levels_of(target, "all") is None
    assert levels_of(target, "drawing") == times
    aim = pictures(target, requests(1), None)
    asked: list[int] = []

    def noting(z: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        asked.extend(t.tolist())
        return SimpleNamespace(sample=z)

    target.unet = noting
    hidden, rows = target.encode(target.tokenize(["photo"])), torch.arange(1)
    error = Denoising(target, aim, blocks=8, visited=times)
    for block in range(8):
        error.error(rows, hidden, block, SampleRng(0, rows))
    assert asked == [time for time in times for _ in range(2)]
    assert attacked("unlearndiffatk", toy("xyzzy"), tokens=2, levels="drawing").outcome.success.all()
    assert "levels" not in plugins.make("attacks", {"kind": "unlearndiffatk"}).params.model_dump()  # stored cells stay valid


def ring(**params: Any) -> RingABellParams:
    return RingABellParams(**{"tokens": 1, "population": 40, "generations": 25, "strength": 2.0} | params)


def test_the_genetic_search_finds_the_nearest_token_of_all() -> None:
    """Against all of them, one by one."""
    target, words = toy(), vocabulary(toy())
    slots = Slots(target, ["photo of the church"], "replace", 1)
    with torch.no_grad():
        wanted = encoded(target, ["word7"]) + 0.01
        rows, rng = torch.tensor([0]), SampleRng(3, torch.tensor([5]))
        found = genetic_search(target, slots, words, wanted, ring(generations=100), rng, rows)
        told = [encoded(target, [target.decode([int(token)])])[0] for token in words]
    distances = torch.stack([(one - wanted[0]).square().sum() for one in told])
    assert int(found[0, 0, 0]) == int(words[distances.argmin()])
    assert target.decode(found[0, 0]) == "word7"
    first = genetic_search(target, slots, words, wanted, ring(generations=0), rng, rows)
    assert found.shape == first.shape == (1, 40, 1)


def test_the_next_population_has_the_better_half_and_both_children_of_its_pairs() -> None:
    population = torch.tensor([[[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]])
    cost, words = torch.tensor([[4.0, 1.0, 3.0, 2.0]]), torch.tensor([7, 8, 9])
    draws = {
        "first": torch.tensor([[0]]),
        "second": torch.tensor([[1]]),
        "cut": torch.tensor([[1]]),
        "place": torch.tensor([[0, 1, 2, 0]]),
        "token": torch.tensor([[0, 1, 2, 2]]),
    }
    none, always, p = torch.full((1, 4), 0.99), torch.zeros(1, 4), ring(population=4, mutation=0.5)
    assert following(population, cost, draws, none, words, p).tolist() == [[[2, 2, 2], [4, 4, 4], [2, 4, 4], [4, 2, 2]]]
    assert following(population, cost, draws, always, words, p).tolist() == [[[7, 2, 2], [4, 8, 4], [2, 4, 9], [9, 2, 2]]]


def test_where_no_survivor_mates_the_genetic_search_goes_on_by_mutation() -> None:
    target, words = toy(), vocabulary(toy())
    slots, p = Slots(target, ["photo of the church"], "replace", 1), ring(population=4, crossover=0.2, generations=3)
    assert p.encodings == 4 + 3 * 2
    with torch.no_grad():
        found = genetic_search(
            target, slots, words, encoded(target, ["word7"]), p, SampleRng(3, torch.tensor([5])), torch.tensor([0])
        )
    assert found.shape == (1, 2, 1)


def test_a_concepts_direction_is_what_its_name_adds_to_the_frames() -> None:
    target = toy("church")
    with torch.no_grad():
        found = directions(target, ("church", "word7", "church"), ("{}", "photo of {}"), "")
        one, two = (encoded(target, [text])[0] for text in ("church", "photo of church"))
        bare = [encoded(target, [text])[0] for text in ("", "photo of")]
    torch.testing.assert_close(found[0], ((one - bare[0]) + (two - bare[1])) / 2)
    assert torch.equal(found[0], found[2])
    asked: list[str] = []
    target.tokenize = lambda texts: asked.extend(texts) or toy().tokenize(texts)
    directions(target, ("4",), ("a photo of {}",), "")
    assert asked == ["a photo of", "a photo of four"]  # no caption of that digit has a 4
    with pytest.raises(ValueError, match="where the concept stands"):
        RingABellParams(frames=("a photo",))


def test_ring_a_bell_asks_the_encoder_that_still_knows_the_concept() -> None:
    quick = {"tokens": 3, "population": 20, "generations": 30, "strength": 0.0, "batch_size": 2, "original": "original"}
    found = attacked("ring-a-bell", noting("xyzzy"), attempts=3, **quick)
    assert [len(said.prompt.split()) for said in found.transcripts] == [3] * 5
    np.testing.assert_array_equal(found.outcome.forwards, [said.attempts + 31 * 20 for said in found.transcripts])
    assert not found.outcome.backwards.any()
    original = toy("church")
    with torch.no_grad():
        wanted = encoded(original, ["photo of the church"] * 5)

        def costs(texts: list[str]) -> torch.Tensor:
            return (encoded(original, texts) - wanted).square().sum((1, 2))

        control = attacked("ring-a-bell", noting("xyzzy"), attempts=3, **quick | {"generations": 0})
        assert costs(prompts(found)).mean() < costs(prompts(control)).mean()


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("photo of the church", 2, "photo of the xyzzy church word7"),
        ("photo of the church , a photo", 2, "photo of the xyzzy church , a word7 photo"),
        ("photo", 2, "photo xyzzy word7"),
        ("photo of the", 1, "photo of the xyzzy"),
        ("photo of the church", 1, "photo of the xyzzy church"),
    ],
)
def test_a_token_after_every_three_words(text: str, count: int, expected: str) -> None:
    target = toy()
    slots = Slots(target, [text], "every-three-words", count)
    tokens = torch.tensor([target.tokenizer.token_to_id(word) for word in ("xyzzy", "word7")])[:count]
    assert slots.text(0, tokens) == expected
    assert torch.equal(slots.filled(torch.tensor([0]), tokens.unsqueeze(0))[0], target.tokenize([expected])[0])
    assert slots.roundtrips(0, tokens, expected)
    assert int(slots.ids[0, slots.end[0]]) == target.eos


def test_p4d_k_finds_the_word_between_the_words() -> None:
    found = attacked("p4d", toy("xyzzy"), tokens=2, place="every-three-words")
    assert found.outcome.success.all()
    assert all("xyzzy" in said.prompt.split()[3::2] for said in found.transcripts)


def mma(**params: Any) -> MMADiffusionParams:
    return MMADiffusionParams(**{"tokens": 2, "steps": 12, "width": 40, "top_k": 40} | params)


def test_each_candidate_of_mma_has_one_of_the_best_tokens_at_its_place() -> None:
    now, top = torch.tensor([[5, 6]]), 3
    slope = torch.arange(20.0).reshape(1, 2, 10).clone()
    slope[0, 1] = -slope[0, 1]
    slope[0, 0, 0], slope[0, 1, 9] = torch.inf, torch.inf
    found = swapped(now, slope, torch.tensor([[0.0, 0.34, 0.99, 0.0, 0.34, 0.99]]), top)[0]
    assert found.tolist() == [[1, 6], [2, 6], [3, 6], [5, 8], [5, 7], [5, 6]]
    only = slope.masked_fill(torch.arange(10) != 4, torch.inf)
    assert set(map(tuple, swapped(now, only, torch.rand(1, 6), top)[0].tolist())) == {(4, 6), (5, 4)}


def test_the_slopes_of_mma_are_those_of_the_cosine() -> None:
    """Against differences, in a model whose state at the end is a sum over the prompt."""
    target = summing()
    words, slots, rows = vocabulary(target), Slots(target, ["photo of the church"], "replace", 2), torch.tensor([0])
    table, wanted = target.embed(words.unsqueeze(1)).squeeze(1).detach(), torch.randn(1, 4)
    tokens = words[torch.tensor([[3, 7]])]
    found = slopes(target, slots, rows, tokens, wanted, table)
    with torch.no_grad():
        laid = target.embed(slots.filled(rows, tokens))

        def distance(shift: torch.Tensor) -> float:
            moved = laid.clone()
            moved[0, 2] += shift
            end = moved.cumsum(1)[0, int(slots.end[0])]
            return 1 - float(torch.cosine_similarity(end.double(), wanted[0].double(), dim=0))

        for place in (0, 11, 200):
            expected = (distance(1e-2 * table[place]) - distance(-1e-2 * table[place])) / 2e-2
            assert float(found[0, 1, place]) == pytest.approx(expected, rel=0.02, abs=1e-4)
        assert float(distances(target, slots, rows, tokens.unsqueeze(1), wanted)) == pytest.approx(
            distance(torch.zeros(4)), abs=1e-6
        )


def test_mma_finds_a_prompt_that_reads_alike_and_has_no_word_of_the_concept() -> None:
    target = summing("xyzzy")
    found = attacked("mma-diffusion", target, attempts=2, **mma().model_dump())
    said = prompts(found)
    assert all(len(prompt.split()) == 2 and "church" not in prompt for prompt in said)
    np.testing.assert_array_equal(found.outcome.forwards, [one.attempts + 12 * 41 + 1 for one in found.transcripts])
    np.testing.assert_array_equal(found.outcome.backwards, 12)
    with torch.no_grad():
        wanted = end_states(target, ["photo of the church"])

        def apart(texts: list[str]) -> float:
            return float((1 - torch.cosine_similarity(end_states(target, texts), wanted)).mean())

        assert apart(said) < 0.5 * apart(prompts(attacked("mma-diffusion", target, attempts=2, **mma(steps=0).model_dump())))
    with pytest.raises(UsageError, match="every token of the vocabulary has a banned word"):
        attacked("mma-diffusion", target, attempts=2, **mma(banned=("",)).model_dump())


def test_the_union_of_p4d_has_half_of_the_attempts_for_each() -> None:
    """A word that is found in either place breaks the request; one that is found nowhere leaves both halves used up."""
    quick = {"steps": 4, "lr": 1.0, "original": "original", "tokens": 2}
    found = attacked("p4d-union", toy("xyzzy"), attempts=9, **quick)
    assert found.outcome.success.all()
    target = noting()
    stands = attacked("p4d-union", target, attempts=6, **quick)
    assert (stands.outcome.attempts >= 3).all()  # pez has nothing new to ask where nothing moves
    seen = [question.prompt for question in target.noted if question.prompt != "photo of the church"]
    short, between = ([text for text in seen if len(text.split()) == words] for words in (2, 6))
    assert len(short) + len(between) == len(seen)
    assert 5 <= len(short) <= 5 * 2
    assert 5 <= len(between) <= 5 * 3
    assert all(text.split()[:3] == ["photo", "of", "the"] for text in between)
