"""The emulated device, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.emulated import emulation


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """``emulated`` is a device."""
    with emulation():
        yield
