"""Four layers of full width at 1024 px: time and MFU of a sampler step and of training, kernels fused or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.gpu.check.measuring import Figures, Where, gigabytes
from tests.gpu.check.random_model import RandomModel, open_random

LAYERS = 4


def run(figures: Figures, where: Where) -> None:
    made = open_random(LAYERS, where)
    kernels, broken = where.working_kernels()
    figures["layers"] = made.config.llm.num_hidden_layers
    figures["latent_tokens"] = made.tokens
    figures["broken_kernels"] = broken
    for images in (1, 2):
        step = made.sampler_step(images)
        for name, fused in ("plain", {}), ("fused", kernels):
            with where.fused(fused):
                figures[f"sampler_step_{images}_{name}"] = timed(step, made.step_flops(images), where)
    seen = _attention_of(figures, made, kernels, where)
    made.train_generation()
    for checkpointing in (False, True):
        made.model.enable_checkpointing(checkpointing)
        again = "_checkpointing" if checkpointing else ""
        once = made.training_pass(1, 2)
        for name, fused in ("plain", {}), ("fused", kernels):
            with where.fused(fused):
                found = timed(once, made.training_flops(1, 2), where)
                figures[f"training_2_views_{name}{again}"] = found
    made.model.enable_checkpointing(False)
    once = made.training_pass(1, 2)
    with where.fused(kernels):
        profiled = where.profiled(once)
    figures["training_profile"] = profiled
    attending = {"drawing": seen, "training": profiled["attention_kernels"]}
    slow = [what for what, names in attending.items() if not any("flash" in name.lower() for name in names)]
    if slow:
        raise AssertionError(f"no flash attention kernel in {' and '.join(slow)}")


def timed(work: Callable[[], object], flops: float, where: Where) -> dict[str, Any]:
    """Milliseconds of a call, the share of the peak, and the bytes that it takes beside what is there."""
    ms = where.milliseconds(work, budget=1000)
    before = where.begin_peak()
    work()
    peak = where.peak_bytes()
    return {
        "ms": ms,
        "tflop": round(flops / 1e12, 4),
        "mfu": where.mfu(flops, ms),
        "gb_beside_weights": None if peak is None else gigabytes(peak - before),
    }


def _attention_of(figures: Figures, made: RandomModel, kernels: dict[str, Any], where: Where) -> list[str]:
    with where.fused(kernels):
        profiled = where.profiled(made.sampler_step(1))
    figures["sampler_step_profile"] = profiled
    names: list[str] = profiled["attention_kernels"]
    return names
