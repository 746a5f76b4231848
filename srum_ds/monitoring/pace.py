"""How fast a run goes: seconds of its steps by the wall clock, what is left, and what a step's record says of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

_STEPS = 20
TOKENS = "speed_tokens_per_second"


class Pace:
    """Told of every step's end. images: of a step, over all ranks. total: steps of the run, None where nobody knows.

    elapsed: seconds that earlier calls of the run have trained, so that a resumed run goes on counting.
    """

    def __init__(
        self, images: int, total: int | None, elapsed: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.images = images
        self.total = total
        self._clock = clock
        self._elapsed = elapsed
        self._began: float | None = None
        self._last = 0.0
        self._recent: deque[float] = deque(maxlen=_STEPS)
        self._steps = 0

    def begin(self) -> None:
        """The first step begins now."""
        self._began = self._last = self._clock()

    def step(self) -> float:
        """A step has ended, with whatever was looked at or saved since the one before; returns its seconds."""
        if self._began is None:
            self.begin()
        now = self._clock()
        took = now - self._last
        self._last = now
        # The first step warms everything up: it tells little of the others once these are known.
        if self._steps == 1:
            self._recent.clear()
        self._recent.append(took)
        self._steps += 1
        return took

    def told(self, rate: float, tokens: int, known: Mapping[str, Any]) -> dict[str, float]:
        """A step has ended: what its record gains on the time, beside its learning rate.

        tokens: that count in its loss. known: its record; one without a rate of tokens gains that.
        """
        took = self.step()
        gained = {
            "learning_rate": rate,
            "elapsed_seconds": round(self.elapsed, 3),
            "wall_time": round(time.time(), 3),
        }
        if took > 0:
            gained["speed_images_per_second"] = self.images / took
            if TOKENS not in known:
                gained[TOKENS] = tokens / took
        return gained

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those of earlier calls included."""
        own = 0.0 if self._began is None else self._last - self._began
        return self._elapsed + own

    @property
    def seconds(self) -> float | None:
        """Seconds of a step, the mean of the newest; None before the first has ended."""
        return fmean(self._recent) if self._recent else None

    def eta(self, done: int) -> float | None:
        """Seconds that the steps after the first ``done`` take, if they go on like this."""
        if self.total is None or self.seconds is None:
            return None
        return max(0, self.total - done) * self.seconds

    @property
    def images_per_second(self) -> float | None:
        """Images drawn, judged and trained on, per second of the wall clock."""
        return None if not self.seconds else self.images / self.seconds


def duration(seconds: float) -> str:
    """A time in at most six letters: 0:07, 12:34, 3h05m, 2d04h."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}:{rest:02d}"
