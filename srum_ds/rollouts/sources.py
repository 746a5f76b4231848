"""Where a step's judged pictures come from: drawn now, read from shards, or drawn a round at a time.

Every source answers ``batches(step, clock)`` with this rank's micro-batches of that step, the same whoever
drew them and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from srum_ds.common import ranks
from srum_ds.common.clock import Clock
from srum_ds.config import Config, find_path, save_config
from srum_ds.engine import Engine
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import Judge
from srum_ds.monitoring import run_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.host import Seat
from srum_ds.rewards.judge.pipeline import Questions
from srum_ds.rollouts.collect import generate
from srum_ds.rollouts.header import check_rollouts, rollout_header
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter
from srum_ds.types import Judged, Prompt, Samples


class Source(Protocol):
    """What the loop asks of a source. All ranks call it for the same steps."""

    def batches(self, step: int, clock: Clock) -> list[Judged] | None:
        """This rank's micro-batches of a step, in the order of its prompts; None if asked to stop before."""
        ...

    def redrawn_after(self, step: int) -> bool:
        """Whether other weights drew, or will draw, step ``step + 1``: then the average that draws moves on."""
        ...


class Drawn:
    """Online: draws each step with the present weights (``rollout.weights``) and has it judged."""

    def __init__(self, cfg: Config, engine: Engine, model: Any, seat: Seat, ask: Questions, reader: PromptReader):
        self.cfg = cfg
        self.engine = engine
        self.model = model
        self.seat = seat
        self.ask = ask
        self.reader = reader

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        r = self.cfg.rollout
        with clock("data"):
            prompts = self.reader.batch(
                step, r.prompts_per_step, self.cfg.run.seed, self.engine.rank, self.engine.world_size
            )
        with ExitStack() as gathered:
            gathered.enter_context(self.engine.gathered(r.weights))
            return draw(self.cfg, self.model, self.seat, self.ask, prompts, step, clock, gathered)

    def redrawn_after(self, step: int) -> bool:
        return True


class Kept:
    """Online, and every step's pictures are kept as shards."""

    def __init__(self, drawn: Drawn, writer: RolloutWriter) -> None:
        self.drawn = drawn
        self.writer = writer

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        batches = self.drawn.batches(step, clock)
        with clock("data"):
            self.writer.write(step, policy=step, batches=batches)
        return batches

    def redrawn_after(self, step: int) -> bool:
        return True


class Read:
    """Offline: reads what was drawn and judged earlier, by whatever ranks."""

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
            ranks.together(read)
            return [to_device(judged, self.engine.device) for judged in found]

    def redrawn_after(self, step: int) -> bool:
        return step + 1 in self.reader.index.steps and self.reader.policy(step + 1) != self.reader.policy(step)


class Rounds:
    """Draws all steps of a round with the weights at its start, then trains from what was drawn.

    What is drawn lies in the run's folder: a run that is stopped in between goes on where it was.
    """

    def __init__(
        self, drawn: Drawn, writer: RolloutWriter, start: int, stop: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        """start: the run's next step; the round it lies in must be all there unless it begins with it.
        stop: whether this rank was asked to stop, looked at between two steps' drawing.
        """
        self.drawn = drawn
        self.writer = writer
        self.stop = stop
        self.tell = tell
        reader = RolloutReader(writer.folder, writer.index)
        self.read = Read(drawn.cfg, drawn.engine, reader)
        self.length = round_length(drawn.cfg)
        if start % self.length:
            rest = range(start, (start // self.length + 1) * self.length)
            ranks.together(lambda: reader.check(rest))

    def batches(self, step: int, clock: Clock) -> list[Judged] | None:
        policy = step // self.length
        steps = range(policy * self.length, (policy + 1) * self.length)
        missing = [ahead for ahead in steps if ahead not in self.writer.index.steps]
        if missing:
            self.tell(f"round {policy + 1}: draws {len(missing)} steps ahead, then trains from them")
        for ahead in missing:
            self.writer.write(ahead, policy, self.drawn.batches(ahead, clock))
            if any(ranks.together(self.stop)):
                return None
        return self.read.batches(step, clock)

    def redrawn_after(self, step: int) -> bool:
        return (step + 1) % self.length == 0


def round_length(cfg: Config) -> int:
    """Steps of a round."""
    return cfg.train.steps // cfg.train.rounds


def open_data(cfg: Config) -> PromptReader | RolloutReader:
    """The prompts to draw, or offline the rollouts to read. UserError where the folder is not whole."""
    if cfg.train.mode == "offline":
        return RolloutReader(find_path(cfg.data.rollouts or ""))
    return PromptReader(find_path(cfg.data.shards), cfg.data.split)


def choose_source(
    cfg: Config,
    run_dir: Path,
    data: PromptReader | RolloutReader,
    engine: Engine,
    model: Any,
    seat: Seat,
    ask: Questions,
    start: int,
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> Source:
    """The source that ``train.mode`` names, for a run that goes on at step ``start``; all ranks call it.

    stop: whether this rank was asked to stop. tell: shows a line to the user.
    Raises UserError for rollouts that do not fit the settings.
    """
    if isinstance(data, RolloutReader):
        reader = data
        other = ranks.together(lambda: check_rollouts(cfg, model, ask, reader), rank_zero=True)[0]
        tell(f"pictures and scores are those of {reader.folder}")
        for difference in other:
            tell(f"there, unlike in these settings: {difference}")
        return Read(cfg, engine, reader)
    drawn = Drawn(cfg, engine, model, seat, ask, data)
    if cfg.train.mode == "online" and not cfg.rollout.keep:
        return drawn
    # What later steps drew came from weights that this process will compute anew.
    kept = start if cfg.train.mode == "online" else (start // round_length(cfg) + 1) * round_length(cfg)
    folder = run_dir / run_folder.ROLLOUTS
    header = ranks.together(lambda: rollout_header(cfg, model, ask), rank_zero=True)[0]
    writer = RolloutWriter(folder, header, range(kept))
    ranks.together(lambda: save_config(cfg, folder / run_folder.CONFIG), rank_zero=True)
    return Kept(drawn, writer) if cfg.train.mode == "online" else Rounds(drawn, writer, start, stop, tell)


def to_device(judged: Judged, device: torch.device) -> Judged:
    """The same pictures with their tensors where a model on ``device`` would have drawn them."""
    rollout = judged.samples
    moved = replace(rollout, images_NCHW=rollout.images_NCHW.to(device), tokens=rollout.tokens.to(device))
    return replace(judged, samples=moved)


def draw(
    cfg: Config,
    model: Any,
    seat: Seat,
    ask: Questions,
    prompts: Sequence[Prompt],
    step: int,
    clock: Clock,
    gathered: ExitStack,
) -> list[Judged]:
    """Draws K pictures of each prompt, a micro-batch at a time, and then has them all judged.

    gathered: holds the model whole; a judge of its own is gathered there in its turn (``Seat.take``).
    """
    sampling = sampling_of(cfg)
    with clock("rollout"):
        groups = micro_batches(prompts, cfg.rollout.micro_batch_prompts)
        rollouts = [generate(cfg, model, group, sampling, step) for group in groups]
    with clock("judge"):
        judge = seat.take(gathered)
        return [judged(judge, ask, rollout) for rollout in rollouts]


def judged(judge: Judge, ask: Questions, rollout: Samples) -> Judged:
    """A rollout, its prompts with their object phrases, its regions, and what the judge says of all."""
    rollout = replace(rollout, prompts=ask.look.phrases(judge, rollout.prompts))
    regions = ask.look.regions(judge, rollout)
    return Judged(rollout, regions, ask.about(judge, rollout, regions))


def sampling_of(cfg: Config) -> FlowSampling:
    """The sampler that rollouts use."""
    r = cfg.rollout
    return FlowSampling(
        num_timesteps=r.num_timesteps,
        timestep_shift=r.timestep_shift,
        text_scale=r.text_scale,
        interval=r.interval,
        renorm=r.renorm,
        renorm_min=r.renorm_min,
    )


def micro_batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """Consecutive groups of ``size`` prompts."""
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]
