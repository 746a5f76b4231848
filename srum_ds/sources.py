"""Where a step's judged pictures come from.

Every source answers ``batches(step, clock)`` with this rank's micro-batches of that step, and
``redrawn_after(step)`` with whether the next step's pictures come from newer weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

from srum_ds.config import Config
from srum_ds.data.reader import PromptReader
from srum_ds.engine import Engine
from srum_ds.figures import Clock
from srum_ds.judges import Seat
from srum_ds.judging import Questions
from srum_ds.models.base import Judge, Judged, Prompt, Rollout, Sampling
from srum_ds.steps import generate


class Source(Protocol):
    """What the loop asks of a source. All ranks call it for the same steps."""

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        """This rank's micro-batches of a step, in the order of its prompts."""
        ...

    def redrawn_after(self, step: int) -> bool:
        """Whether other weights draw step ``step + 1``: then the average that draws moves on."""
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


def judged(judge: Judge, ask: Questions, rollout: Rollout) -> Judged:
    """A rollout, its prompts with their object phrases, its regions, and what the judge says of all."""
    rollout = replace(rollout, prompts=ask.look.phrases(judge, rollout.prompts))
    regions = ask.look.regions(judge, rollout)
    return Judged(rollout, regions, ask.about(judge, rollout, regions))


def sampling_of(cfg: Config) -> Sampling:
    """The sampler that rollouts use."""
    r = cfg.rollout
    return Sampling(
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
