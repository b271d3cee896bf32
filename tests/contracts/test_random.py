import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkd.contracts.random import SampleRng

KNOWN = (-5513848665109824211, -9111339611943454847, 3338374543726672557, 9033162453322179884)


def test_known_bits_stay_the_same():
    # A change here changes every campaign's numbers: raise the attacks' versions if it is meant.
    bits = SampleRng(7, torch.tensor([0, 123]), "start").bits((2,))
    assert bits.tolist() == [[KNOWN[0], KNOWN[1]], [KNOWN[2], KNOWN[3]]]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True), st.integers(0, 2**31), st.randoms())
def test_a_sample_s_numbers_do_not_depend_on_its_batch(index, seed, shuffler):
    whole = SampleRng(seed, torch.tensor(index))
    order = list(range(len(index)))
    shuffler.shuffle(order)
    other = SampleRng(seed, torch.tensor([index[i] for i in order]))
    for _ in range(2):
        assert torch.equal(whole.uniform((3,))[order], other.uniform((3,)))
    rows = torch.tensor(order[: len(order) // 2 + 1])
    assert torch.equal(whole.select(rows).normal((2,)), whole.normal((2,))[rows])


def test_the_distributions_are_right():
    rng = SampleRng(0, torch.arange(2000))
    uniform, normal, integers = rng.uniform((50,)), rng.normal((50,)), rng.integers((50,), 7)
    assert abs(uniform.mean() - 0.5) < 0.005
    assert abs(uniform.var() - 1 / 12) < 0.002
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.01
    assert (torch.bincount(integers.flatten(), minlength=7) / 1e5 - 1 / 7).abs().max() < 0.005


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_have_the_same_distributions(dtype: torch.dtype) -> None:
    index = torch.arange(2000)
    uniform, normal = (getattr(SampleRng(0, index), name)((50,), dtype=dtype) for name in ("uniform", "normal"))
    shifted = SampleRng(1, index).uniform((50,), -3.0, 2.0, dtype=dtype)
    assert uniform.dtype == normal.dtype == shifted.dtype == dtype
    assert (uniform < 1).all()
    assert (shifted < 2).all()
    assert normal.isfinite().all()
    assert torch.equal(normal, SampleRng(0, index).normal((50,)).to(dtype))
    assert abs(uniform.float().mean() - 0.5) < 0.005
    assert abs(shifted.float().mean() + 0.5) < 0.02


def test_streams_draws_and_neighbours_are_independent():
    index = torch.arange(2000)
    rng = SampleRng(0, index)
    first, second = rng.uniform((1,)), rng.uniform((1,))
    other = rng.fork("other").uniform((1,))
    seed = SampleRng(1, index).uniform((1,))
    for a, b in ((first, second), (first, other), (first, seed), (first[1:], first[:-1])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.08


def test_integers_without_a_shape_give_one_a_sample():
    assert SampleRng(0, torch.arange(5)).integers((), 3).shape == (5,)


def test_many_forks_drawn_at_once_have_the_numbers_of_each() -> None:
    rng = SampleRng(3, torch.tensor([5, 9, 11, 1000]), "square").select(torch.tensor([0, 3]))
    at_once = rng.bits_of_forks(range(30, 34), (2, 3))
    assert at_once.shape == (2, 4, 2, 3)
    for place, name in enumerate(range(30, 34)):
        assert torch.equal(at_once[:, place], rng.fork(name).bits((2, 3)))
