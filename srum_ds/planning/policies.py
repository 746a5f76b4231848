"""Which named copies of the trained weights a run keeps: those that something reads."""

from __future__ import annotations

from srum_ds.config import Config
from srum_ds.objectives import Objective


def holds_to_reference(cfg: Config, objective: Objective) -> bool:
    """Whether the untrained model's predictions are needed, by the constraint or by the objective."""
    settings = cfg.objective
    held = settings.constraint == "reference" and settings.constraint_weight > 0
    return held or objective.needs_reference


def policies_of(cfg: Config, objective: Objective) -> tuple[str, ...]:
    """The named copies of the trained weights that something reads: each costs a rank its share of the masters.

    old: the average that draws; ema: the one that is exported; reference: the untrained weights.
    """
    draws = "" if cfg.train.mode == "offline" else cfg.rollout.weights
    read = {
        "old": objective.needs_old or draws == "old",
        "ema": cfg.eval.weights == "ema",
        "reference": holds_to_reference(cfg, objective) or draws == "reference",
    }
    return tuple(name for name, needed in read.items() if needed)
