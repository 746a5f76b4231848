"""Objectives: ``losses`` holds each loss as a pure function, ``registry`` what it needs and its constraint."""

from srum_ds.objectives.losses import awm, dpo, group, nft, sft, signed, square_error, weighted
from srum_ds.objectives.registry import (
    CONSTRAINTS,
    OBJECTIVES,
    Constraint,
    Objective,
    WeightKind,
    compute_losses,
    get_objective,
)

__all__ = [
    "CONSTRAINTS",
    "OBJECTIVES",
    "Constraint",
    "Objective",
    "WeightKind",
    "awm",
    "compute_losses",
    "dpo",
    "get_objective",
    "group",
    "nft",
    "sft",
    "signed",
    "square_error",
    "weighted",
]
