"""Has an independent checker look at held-out prompts while a run trains. The job calls it after steps."""

from __future__ import annotations

from pathlib import Path

import torch

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.engine import Engine
from srum_ds.evaluation.checkers import load_checker
from srum_ds.models.protocol import UnifiedModel
from srum_ds.prompts.reader import PromptReader
from srum_ds.rollouts.collect import sampling_of
from srum_ds.rollouts.draw import for_drawing, micro_batches, roll_out, share

SPLIT = "validation"


class HeldOut:
    """The first ``watch.prompts`` prompts of the split ``validation``, one image each, always of the same seed.

    Raises UserError for an unknown checker and for a split that cannot be read.
    """

    def __init__(self, cfg: Config, engine: Engine, model: UnifiedModel) -> None:
        self.cfg = cfg
        self.engine = engine
        self.model = model
        self.every = 0 if cfg.watch.checker == "none" else cfg.watch.every
        if self.every:
            self.checker = load_checker(cfg.watch.checker)
            reader = PromptReader(Path(cfg.data.shards), SPLIT)
            self.prompts = [reader[i] for i in range(min(cfg.watch.prompts, len(reader)))]
            if len(self.prompts) < engine.world_size:
                raise UserError(
                    f"watch.prompts={cfg.watch.prompts}, but {engine.world_size} ranks need one prompt each of the "
                    f"split {SPLIT!r}, which has {len(reader)}: raise it, or set watch.checker=none."
                )

    def due(self, step: int) -> bool:
        """Whether the checker looks after this step (from 0); the same on all ranks."""
        last = step + 1 == self.cfg.train.steps
        return self.every > 0 and (last or (step + 1) % self.every == 0)

    def share(self) -> float:
        """Share of exact images, drawn with the weights that are exported; all ranks call it and get the same."""
        cfg, engine, model = self.cfg, self.engine, self.model
        r = cfg.rollout
        mine, count = share(self.prompts, engine.rank, engine.world_size)
        with for_drawing(engine, cfg.eval.weights, r.gather):
            drawn = [
                roll_out(model, group, 1, r.image_size, sampling_of(cfg), cfg.run.seed, 0)
                for group in micro_batches(mine, r.micro_batch_prompts * r.images_per_prompt)
            ]
        exact = [good for samples in drawn for good in self.checker(samples.prompts, samples.images_NCHW)][:count]
        sums = torch.tensor([float(sum(exact)), float(len(exact))], dtype=torch.float64, device=engine.device)
        good, count = engine.all_reduce(sums)
        return float(good / count)
