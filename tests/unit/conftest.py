"""Keeps the unit tests what they are: none starts a process."""

from __future__ import annotations

import multiprocessing.process
import subprocess
from typing import Any

import pytest

ENVIRONMENT = ("git", "uname")
"""What a run's environment.json is made with."""


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that starts one; it belongs to tests/integration."""
    start = subprocess.Popen.__init__

    def refuse_others(self: Any, args: Any, *others: Any, **options: Any) -> None:
        assert args[0] in ENVIRONMENT, f"a unit test starts {args}"
        start(self, args, *others, **options)

    def refuse(self: Any) -> None:
        raise AssertionError("a unit test starts a process")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse_others)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
