"""One step off: each step trains on images that were drawn a step earlier, while those of the next are judged.

A judge outside (a function that asks a server, say) then has a whole training step for its answers. What is drawn lies
in the run's folder, so that a run that is stopped goes on from the same images.
"""

from __future__ import annotations

from collections.abc import Callable

from srum_ds.common.clock import Clock
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter
from srum_ds.rollouts.sources import OfflineSource, OnlineSource
from srum_ds.types import Judged


class AheadSource:
    """Draws step s + 1 with the weights before step s is trained; the first step's images are drawn for it."""

    def __init__(self, online: OnlineSource, writer: RolloutWriter) -> None:
        self.online = online
        self.writer = writer
        self.steps = online.collector.cfg.train.steps
        self.offline = OfflineSource(online.collector.cfg, online.engine, RolloutReader(writer.folder, writer.index))
        self._pending: tuple[int, int, Callable[[], list[Judged]]] | None = None

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        with clock("judge"):
            self.settle()
        if step not in self.writer.index.steps:
            self._begin(step, step, clock)
            with clock("judge"):
                self.settle()
        if step + 1 < self.steps and step + 1 not in self.writer.index.steps:
            self._begin(step + 1, step, clock)
        return self.offline.batches(step, clock)

    def policy_changes_after(self, step: int) -> bool:
        return True

    def staleness(self, step: int) -> int:
        return step - self.writer.index.steps[step].policy

    def settle(self) -> None:
        if self._pending is not None:
            step, policy, judged = self._pending
            self._pending = None
            self.writer.write(step, policy, judged())

    def _begin(self, step: int, policy: int, clock: Clock) -> None:
        self._pending = (step, policy, self.online.begin(step, clock))
