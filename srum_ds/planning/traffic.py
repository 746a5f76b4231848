"""Bytes that a rank receives and reduces in a step: computed from what is sharded, not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srum_ds.config import Config
from srum_ds.models.costs import ModelCosts, ParameterCounts

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


def traffic_of(
    cfg: Config,
    costs: ModelCosts,
    parameters: ParameterCounts,
    ds_config: Mapping[str, Any],
    ranks: int,
    micro_batches: int,
    frozen_passes: int,
) -> Traffic:
    """A step's traffic at a number of ranks. micro_batches: of a rank.

    A training pass fetches every unit ``ModelCosts.train_gathers`` times, or once where the whole model may stay.
    Under stages 1 and 2 only what trains moves: copies that draw, and the updated weights once a step.
    """
    element = ELEMENT[cfg.train.precision]
    away = (ranks - 1) / ranks
    sharded = ds_config["zero_optimization"]["stage"] == 3
    whole = (parameters.total if sharded else parameters.trained) * element * away
    draws = 0.0 if cfg.train.mode == "offline" else whole
    if not sharded and cfg.rollout.weights == "live":
        draws = 0.0
    judge = parameters.judging * element * away if has_own_judge(cfg, costs) and sharded and draws else 0.0
    live = min(zero_setting(ds_config, f"stage3_max_{name}") for name in ("live_parameters", "reuse_distance"))
    times = micro_batches * costs.train_gathers(cfg.model.trains)
    if parameters.total <= live:
        times = micro_batches
    trained = times * whole if sharded else whole
    return Traffic(draws, judge, frozen_passes * whole, trained, micro_batches * parameters.trained * 4 * away)
