"""Measures the seconds of a step by phase (data, rollout, judge, train)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from srum_ds.common.phases import PHASES


class Clock:
    """Seconds of a step by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("data", "rollout", "judge", "train"), 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        PHASES.enter(phase)
        begin = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - begin
