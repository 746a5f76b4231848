"""Tiers of the tests, for one process and for several (`make test`).

A test's tier is the folder that it stands in, and its marker, so that `-m integration` means tests/integration.
Several processes take files whole, each of which then makes its fixtures once.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.paths import TESTS

# Started by nohup or in a shell's background, this process ignores them, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before torch is imported: the models are tiny, and the processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

# Before triton is imported: without a GPU its kernels run under its interpreter, where a test asks for them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TIERS = ("integration", "numerics", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with its tier; tests of tests/unit have none."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
