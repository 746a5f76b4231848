"""Where a step's judged pictures come from.

Every source answers ``batches(step, clock)`` with this rank's micro-batches of that step, and
``redrawn_after(step)`` with whether the next step's pictures come from newer weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from srum_ds.config import Config
from srum_ds.data.reader import PromptReader
from srum_ds.engine import Engine
from srum_ds.figures import Clock
from srum_ds.judging import Questions
from srum_ds.models.base import Judged, Prompt, Sampling
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

    def __init__(self, cfg: Config, engine: Engine, model: Any, judge: Any, ask: Questions, reader: PromptReader):
        self.cfg = cfg
        self.engine = engine
        self.model = model
        self.judge = judge
        self.ask = ask
        self.reader = reader

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        r = self.cfg.rollout
        with clock("data"):
            prompts = self.reader.batch(
                step, r.prompts_per_step, self.cfg.run.seed, self.engine.rank, self.engine.world_size
            )
        with self.engine.gathered(r.weights):
            return draw(self.cfg, self.model, self.judge, self.ask, prompts, step, clock)

    def redrawn_after(self, step: int) -> bool:
        return True


def draw(
    cfg: Config, model: Any, judge: Any, ask: Questions, prompts: Sequence[Prompt], step: int, clock: Clock
) -> list[Judged]:
    """Draws K pictures of each prompt and has them judged, a micro-batch at a time."""
    sampling = sampling_of(cfg)
    batches = []
    for group in micro_batches(prompts, cfg.rollout.micro_batch_prompts):
        with clock("judge"), model.judging():
            group = ask.look.phrases(judge, group)
        with clock("rollout"):
            rollout = generate(cfg, model, group, sampling, step)
        with clock("judge"), model.judging():
            regions = ask.look.regions(judge, rollout)
            scores = ask.about(judge, rollout, regions)
        batches.append(Judged(rollout, regions, scores))
    return batches


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
