"""Tiers and order of the tests, for one process and for several (`make test`).

A test's tier is the folder that it stands in, and its marker, so that `-m integration` means tests/integration.
Several processes take files whole, and one of them takes all tests that start two ranks: those fill two cores.
"""

from __future__ import annotations

import os

import pytest

from tests.support.paths import TESTS

# Before torch is imported: the models are tiny, and the processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

# Before triton is imported: without a GPU its kernels run under its interpreter, where a test asks for them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TIERS = ("integration", "numerics", "gpu")
RANKS = "ranks"
"""The group of the tests that start two ranks (``pytest.mark.xdist_group``)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with its tier and its group, and puts the long ones first; tests of tests/unit have no tier."""
    groups = {}
    for item in items:
        file = item.path.relative_to(TESTS)
        if file.parts[0] in TIERS:
            item.add_marker(file.parts[0])
        group = item.get_closest_marker("xdist_group")
        groups[item] = group.args[0] if group else str(file)
        if group is None:
            item.add_marker(pytest.mark.xdist_group(str(file)))
    items.sort(key=lambda item: groups[item] != RANKS)
