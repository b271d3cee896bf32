"""scikit-learn's handwritten digits: small enough for examples and tests, and installed with scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robustkd.contracts import Dataset, RawData
from robustkd.data.arrays import as_arrays
from robustkd.data.order import stratified_order

_TEST_FRACTION = 0.3


class Digits(Dataset):
    """1,797 grey images of 8x8 pixels in 17 levels, ten classes; a fixed 30 %, stratified by class, is the test part."""

    source: ClassVar[str] = "Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository, 1998"

    def load(self) -> RawData:
        """1,258 training and 539 test images, float32 (N, 1, 8, 8)."""
        from sklearn.datasets import load_digits  # seconds to import: only who loads the digits waits for it

        digits = load_digits()
        data = as_arrays(digits.images[:, None] / 16, digits.target, "digits")
        order = stratified_order(data.labels, 0)
        cut = round(_TEST_FRACTION * len(data))
        test, train = np.sort(order[:cut]), np.sort(order[cut:])
        return RawData(data.select(train), data.select(test), tuple(str(digit) for digit in range(10)))
