"""Bytes that a rank receives and reduces in a step: computed from what is sharded, not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srum_ds.config import Config
from srum_ds.models.costs import ModelCosts
from srum_ds.planning.work import Work

# DeepSpeed's own defaults.
DEFAULTS = {
    "sub_group_size": 10**9,
    "reduce_bucket_size": 5 * 10**8,
    "stage3_prefetch_bucket_size": 5 * 10**7,
    "stage3_max_live_parameters": 10**9,
    "stage3_max_reuse_distance": 10**9,
}
ELEMENT = {"fp32": 4, "bf16": 2}
"""Bytes of a number in the compute dtype."""


def zero_setting(ds_config: Mapping[str, Any], name: str) -> int:
    """A size of ``zero_optimization``, DeepSpeed's default where the file does not say."""
    return int(ds_config["zero_optimization"].get(name, DEFAULTS[name]))


def has_own_judge(cfg: Config, costs: ModelCosts) -> bool:
    """Whether a copy of the untrained model judges: where it is asked for, or training changes the judge."""
    return cfg.model.judge == "frozen_copy" or not costs.judge_unchanged_by(cfg.model.trains)


@dataclass(frozen=True)
class Traffic:
    """Bytes a rank of a step, by phase: what it receives of gathered weights, and what it reduces of gradients."""

    rollout: float
    judge: float
    frozen: float
    train: float
    reduced: float

    @property
    def gathered(self) -> float:
        """All that is gathered."""
        return self.rollout + self.judge + self.frozen + self.train


def traffic_of(work: Work, ds_config: Mapping[str, Any], ranks: int, draws_whole: bool = True) -> Traffic:
    """A step's traffic at a number of ranks. draws_whole: whether images are drawn with the whole model gathered.

    A training pass fetches every unit ``ModelCosts.train_gathers`` times, and drawing layer by layer every unit in each
    of its passes; once per micro-batch where the whole model may stay. Under stages 1 and 2 only what trains moves:
    copies that draw, and the updated weights once a step.
    """
    cfg, costs, counts, frozen = work.cfg, work.costs, work.parameters, work.frozen_passes
    micro_batches = cfg.rollout.prompts_per_step // ranks // cfg.rollout.micro_batch_prompts
    element = ELEMENT[cfg.train.precision]
    away = (ranks - 1) / ranks
    reduced = micro_batches * counts.trained * 4 * away
    online = cfg.train.mode != "offline"
    if ds_config["zero_optimization"]["stage"] < 3:
        moved = counts.trained * element * away
        return Traffic(moved if online and cfg.rollout.weights != "live" else 0.0, 0.0, frozen * moved, moved, reduced)
    whole = counts.total * element * away
    live = min(zero_setting(ds_config, f"stage3_max_{name}") for name in ("live_parameters", "reuse_distance"))
    stays = counts.total <= live
    trained = micro_batches * (1 if stays else costs.train_gathers(cfg.model.trains)) * whole
    judge = counts.judging * element * away if has_own_judge(cfg, costs) else 0.0
    draws, predicted = whole, frozen * whole
    if not draws_whole:
        draws = micro_batches * (1 if stays else costs.draw_passes(work.sampling)) * whole
        predicted = frozen * micro_batches * whole
        judge = judge or (counts.total - counts.trained) * element * away
    return Traffic(draws if online else 0.0, judge if online else 0.0, predicted, trained, reduced)
