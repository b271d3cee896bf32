"""The losses of continuous adversarial training against NumPy, on fixed logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd.defenses.text.losses import away, completion_mean, ipo, toward

LENGTHS, PROMPTS, WORDS = (7, 5, 6), (3, 2, 4), 11  # three chats of different lengths: each answer is what follows its prompt


def _chats(left: bool = False) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Log-probabilities (B, T), the answers' mask, and NumPy's mean log-probability of each answer, from the same logits."""
    draw = np.random.default_rng(0)
    logprobs, mask = torch.full((3, 8), float(np.log(0.123))), torch.zeros(3, 8, dtype=torch.bool)
    expected = np.zeros(3)
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS, strict=True)):
        logits, ids = draw.normal(size=(length, WORDS)) * 3, draw.integers(0, WORDS, length)
        shifted = logits - logits.max(1, keepdims=True)
        table = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        said = table[np.arange(length), ids]
        expected[row] = said[prompt:].mean()
        first = 8 - length if left else 0
        logprobs[row, first : first + length] = torch.tensor(said, dtype=torch.float32)
        mask[row, first + prompt : first + length] = True
    return logprobs, mask, expected


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_only_the_answers_tokens_count(left: bool) -> None:
    """Prompt, template and padding hold log-probabilities, too, and have no part in the mean, on whichever side they are."""
    logprobs, mask, expected = _chats(left)
    np.testing.assert_allclose(completion_mean(logprobs, mask), expected, rtol=1e-5)


def test_the_cut_offs_are_each_samples_own() -> None:
    """Above its floor a loss is itself, below it floor + 0.001 * loss; a sample below does not silence the others."""
    logprobs, mask, mean = _chats()
    floor = float(np.sort(-mean)[1]) + 1e-3  # between the second and the third cross entropy
    expected = np.where(-mean < floor, floor + 0.001 * -mean, -mean)
    assert (expected != -mean).sum() == 2
    np.testing.assert_allclose(toward(logprobs, mask, floor), expected, rtol=1e-5)
    low = float(np.sort(mean)[0]) + 1e-3
    expected = np.where(mean < low, low + 0.001 * mean, mean)
    assert (expected != mean).sum() == 1
    np.testing.assert_allclose(away(logprobs, mask, low), expected, rtol=1e-5)


def test_below_the_cut_off_the_slope_is_small_but_points_the_same_way() -> None:
    logprobs, mask, _ = _chats()
    logprobs.requires_grad_()
    (free,) = torch.autograd.grad(away(logprobs, mask, -100.0).sum(), logprobs)
    (cut,) = torch.autograd.grad(away(logprobs, mask, 100.0).sum(), logprobs)
    torch.testing.assert_close(cut, 0.001 * free)
    assert (free[mask] > 0).all()
    assert (free[~mask] == 0).all()


def test_ipo_against_numpy() -> None:
    """(h - 1/(2 beta))^2, zero where the preference is exactly what beta asks for."""
    draw = np.random.default_rng(1)
    safe, harmful, safe0, harmful0 = -draw.exponential(size=(4, 5))
    h = (safe - safe0) - (harmful - harmful0)
    got = ipo(*(torch.tensor(v) for v in (safe, harmful, safe0, harmful0)), beta=0.25)
    np.testing.assert_allclose(got, (h - 2.0) ** 2, rtol=1e-6)
    assert ipo(*(torch.tensor([v]) for v in (-0.5, -3.0, -1.0, -1.5)), beta=0.25).item() == pytest.approx(0.0)
