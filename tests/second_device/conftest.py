"""The second device for the tests of this folder, which run what they test in processes of their own that have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from second_device.build import build


@pytest.fixture(scope="session")
def second_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled device; the tests are skipped where there is no compiler."""
    try:
        return build(tmp_path_factory.mktemp("second-device"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
