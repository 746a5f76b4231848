"""``train.compile``: time of a sampler step and of training with compiled blocks, and what compiling costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from tests.gpu.check.measuring import Figures, Where
from tests.gpu.check.part_layers import LAYERS, timed
from tests.gpu.check.random_model import RandomModel, open_random


def run(figures: Figures, where: Where) -> None:
    made = open_random(LAYERS, where)
    made.train_generation()
    kernels, _ = where.working_kernels()
    variants: list[tuple[str, dict[str, Callable[..., Any]]]] = [("plain", {})]
    # Interpreted kernels are no graph's.
    variants += [] if where.rehearse else [("fused", kernels)]
    for name, fused in variants:
        with where.fused(fused):
            figures[f"eager_{name}"] = _measured(made, where)
    problems: list[str] = []
    _compile_blocks(made, where)
    for name, fused in variants:
        torch._dynamo.reset()
        with where.fused(fused):
            try:
                figures[f"compiled_{name}"] = _measured(made, where)
            except Exception as error:
                problems.append(f"{name}: {type(error).__name__}: {error}"[:600])
                figures[f"compiled_{name}"] = {"problem": problems[-1]}
    if problems:
        raise AssertionError(f"blocks that do not compile: {problems}")


def _compile_blocks(made: RandomModel, where: Where) -> None:
    """As setting ``train.compile`` does; a rehearsal takes the compiler's front half alone."""
    with patch("torch.compile", partial(torch.compile, backend="aot_eager")) if where.rehearse else nullcontext():
        made.model.compile_blocks()


def _measured(made: RandomModel, where: Where) -> dict[str, Any]:
    """The first call's seconds, and times once all is warm."""
    step, once = made.sampler_step(1), made.training_pass(1, 2)
    begin = time.perf_counter()
    step()
    where.synchronize()
    drawn = time.perf_counter()
    once()
    where.synchronize()
    return {
        "first_sampler_step_seconds": round(drawn - begin, 2),
        "first_training_seconds": round(time.perf_counter() - drawn, 2),
        "sampler_step": timed(step, made.step_flops(1), where),
        "training_2_views": timed(once, made.training_flops(1, 2), where),
    }
