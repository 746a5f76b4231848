"""Keeps the unit tests what they are: none starts a process, but for what Triton compiles kernels with on a GPU."""

from __future__ import annotations

import multiprocessing.process
import subprocess
import sys
from typing import Any

import pytest

ENVIRONMENT = ("git", "uname")
"""What a run's environment.json is made with."""


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that starts one; it belongs to tests/integration."""
    start = subprocess.Popen.__init__

    def refuse_others(self: Any, args: Any, *others: Any, **options: Any) -> None:
        assert args[0] in ENVIRONMENT or started_by_triton(), f"a unit test starts {args}"
        start(self, args, *others, **options)

    def refuse(self: Any) -> None:
        raise AssertionError("a unit test starts a process")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse_others)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


def started_by_triton() -> bool:
    """Whether Triton asks: for ptxas, the C compiler of its launchers, ldconfig, the interpreter's format."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in ("subprocess", "platform"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).split(".")[0] == "triton"
