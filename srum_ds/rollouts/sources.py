"""Where a step's judged samples come from: drawn now, read from shards, or drawn a round at a time.

The training loop asks its source for ``batches(step, clock)``: this rank's micro-batches of that step, the same whoever
drew them and when.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from srum_ds.common import ranks
from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.engine import Engine
from srum_ds.prompts.reader import PromptReader
from srum_ds.rollouts.collect import Collector, to_device
from srum_ds.rollouts.draw import for_drawing
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter
from srum_ds.types import Judged


class Source(Protocol):
    """What the loop asks of a source. All ranks call it for the same steps."""

    def batches(self, step: int, clock: Clock) -> list[Judged] | None:
        """This rank's micro-batches of a step, in the order of its prompts; None if asked to stop before."""
        ...

    def policy_changes_after(self, step: int) -> bool:
        """Whether other weights draw step ``step + 1`` than drew ``step``: then the average that draws moves on."""
        ...

    def staleness(self, step: int) -> int:
        """How many steps before ``step`` the weights were taken that drew its images; asked after ``batches``."""
        ...

    def settle(self) -> None:
        """Brings to the disk what a checkpoint would otherwise lack. All ranks call it."""
        ...


class OnlineSource:
    """Draws each step with the present weights (``rollout.weights``) and has it judged."""

    def __init__(self, collector: Collector, engine: Engine, reader: PromptReader) -> None:
        self.collector = collector
        self.engine = engine
        self.reader = reader

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        judged = self.begin(step, clock)
        with clock("judge"):
            return judged()

    def begin(self, step: int, clock: Clock) -> Callable[[], list[Judged]]:
        """``batches`` without waiting for a judge outside; see ``Collector.begin``."""
        cfg = self.collector.cfg
        r = cfg.rollout
        with clock("data"):
            prompts = self.reader.batch(
                step, r.prompts_per_step, cfg.run.seed, self.engine.rank, self.engine.world_size
            )
        with ExitStack() as gathered:
            gathered.enter_context(for_drawing(self.engine, r.weights, r.gather))
            if r.pool and not self.engine.holds_whole:
                raise UserError(
                    f"rollout.pool={r.pool}: its images are judged before the chosen ones are drawn, which needs the "
                    f"whole model on every rank, for which there is no room (rollout.gather={r.gather}): set "
                    f"rollout.pool=0."
                )
            return self.collector.begin(prompts, step, clock, gathered)

    def policy_changes_after(self, step: int) -> bool:
        return True

    def staleness(self, step: int) -> int:
        return 0

    def settle(self) -> None:
        return None


class RecordingSource:
    """Online, and every step's samples are kept as shards."""

    def __init__(self, online: OnlineSource, writer: RolloutWriter) -> None:
        self.online = online
        self.writer = writer

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        batches = self.online.batches(step, clock)
        with clock("data"):
            self.writer.write(step, policy=step, batches=batches)
        return batches

    def policy_changes_after(self, step: int) -> bool:
        return True

    def staleness(self, step: int) -> int:
        return 0

    def settle(self) -> None:
        return None


class OfflineSource:
    """Reads what was drawn and judged earlier, by whatever ranks."""

    def __init__(self, cfg: Config, engine: Engine, reader: RolloutReader) -> None:
        self.cfg = cfg
        self.engine = engine
        self.reader = reader

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        found: list[Judged] = []

        def read() -> None:
            size = self.cfg.rollout.micro_batch_prompts
            found.extend(self.reader.batches(step, size, self.engine.rank, self.engine.world_size))

        with clock("data"):
            ranks.run_on_all_ranks(read)
            return [to_device(judged, self.engine.device) for judged in found]

    def policy_changes_after(self, step: int) -> bool:
        return step + 1 in self.reader.index.steps and self.reader.policy(step + 1) != self.reader.policy(step)

    def staleness(self, step: int) -> int:
        return step - self.reader.policy(step)

    def settle(self) -> None:
        return None


class RoundSource:
    """Draws all steps of a round with the weights at its start, then trains from what was drawn.

    What is drawn lies in the run's folder: a run that is stopped in between goes on where it was.
    """

    def __init__(
        self,
        online: OnlineSource,
        writer: RolloutWriter,
        start: int,
        stop_asked: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        """start: the run's next step; the round it lies in must be all there unless it begins with it.
        stop_asked: whether this rank was asked to stop, looked at between two steps' drawing.
        """
        self.online = online
        self.writer = writer
        self.stop_asked = stop_asked
        self.tell = tell
        reader = RolloutReader(writer.folder, writer.index)
        cfg = online.collector.cfg
        self.offline = OfflineSource(cfg, online.engine, reader)
        self.length = round_length(cfg)
        if start % self.length:
            rest = range(start, (start // self.length + 1) * self.length)
            ranks.run_on_all_ranks(lambda: reader.check(rest))

    def batches(self, step: int, clock: Clock) -> list[Judged] | None:
        policy = step // self.length
        steps = range(policy * self.length, (policy + 1) * self.length)
        missing = [ahead for ahead in steps if ahead not in self.writer.index.steps]
        if missing:
            self.tell(f"round {policy + 1}: draws {len(missing)} steps ahead, then trains from them")
        for ahead in missing:
            self.writer.write(ahead, policy, self.online.batches(ahead, clock))
            if any(ranks.run_on_all_ranks(self.stop_asked)):
                return None
        return self.offline.batches(step, clock)

    def policy_changes_after(self, step: int) -> bool:
        return (step + 1) % self.length == 0

    def staleness(self, step: int) -> int:
        return step % self.length

    def settle(self) -> None:
        return None


def round_length(cfg: Config) -> int:
    """Steps of a round."""
    return cfg.train.steps // cfg.train.rounds
