"""Marks every test with the tier whose folder it stands in, so that `-m integration` means tests/integration."""

from __future__ import annotations

import pytest

from tests.support.paths import TESTS

TIERS = ("integration", "numerics", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds the marker of the tier; tests of tests/unit carry none."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
