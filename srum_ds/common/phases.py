"""Where a rank is in its run: phase and step, since when, and the longest that it was in a phase and came out again.

``Clock`` and the training loop say it; ``monitoring.watchdog`` looks at it from a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stand:
    """Where a rank is: its ``entered``-th phase of the step, where it came at the monotonic time ``began``.

    step: counted from 1, as the console does; 0 before the first.
    """

    phase: str
    step: int
    began: float
    entered: int = 0


class Phases:
    """One rank's way through its phases."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Starts in phase init of step 0, with nothing known of any phase."""
        self.stand = Stand("init", 0, self._clock())
        self.longest: dict[str, float] = {}
        self.on_change: Callable[[Stand], None] | None = None

    def enter(self, phase: str, step: int | None = None) -> None:
        """Leaves the present phase for ``phase``; without ``step`` it is the same step's."""
        before = self.stand
        now = self._clock()
        self.longest[before.phase] = max(self.longest.get(before.phase, 0.0), now - before.began)
        same = step is None or step == before.step
        self.stand = Stand(phase, before.step if step is None else step, now, before.entered + 1 if same else 0)
        if self.on_change is not None:
            self.on_change(self.stand)


PHASES = Phases()
"""Those of this process."""


def limit(longest: float | None, own: float | None, grace: float, first: float) -> float:
    """Seconds that a rank may be in a phase: ``own`` where set, else ``grace`` past the ``longest`` it was there.

    first: where it was never there before (``longest`` is None).
    """
    if own is not None:
        return own
    return first if longest is None else longest + grace
