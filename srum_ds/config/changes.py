"""Which settings of a run may change between two calls: nothing here makes another weight, but by rounding."""

from __future__ import annotations

from dataclasses import fields

from srum_ds.config.schema import EvalConfig
from srum_ds.config.tree import Config

STEPS = "train.steps"
# ``eval.weights`` says which weights are exported.
_EVAL = tuple(f"eval.{field.name}" for field in fields(EvalConfig) if field.name != "weights")
FREE = (
    "log",
    "kernels",
    "limits",
    "watch",
    "deepspeed.ranks",
    "run.dir",
    "run.accept_changed_inputs",
    "train.save_every",
    "train.keep_checkpoints",
    "train.save_in_background",
    # What is done with a step that nothing can be learnt from: skipped or not, it changes no weight.
    "train.on_bad_step",
    *_EVAL,
)
"""Keys, and whole sections, that may change freely."""


def is_free(key: str) -> bool:
    """Whether a setting may change freely."""
    return key in FREE or key.split(".")[0] in FREE


def steps_decide(cfg: Config) -> str:
    """Why the steps that are taken depend on how many there will be, in words; empty where they do not."""
    if cfg.train.schedule == "cosine":
        return "with train.schedule=cosine the learning rate of every step depends on it"
    if cfg.train.mode == "rounds":
        return "with train.mode=rounds it is divided into rounds, whose length would change"
    return ""
