import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustkd.scoring.intervals import wilson


@given(st.integers(1, 5000), st.data())
def test_wilson_equals_scipy(n, data):
    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_samples_tell_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
