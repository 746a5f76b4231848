"""All 28 layers in bf16 (29.2 GB): sampler steps at 1024 px, the autoencoder, and peak memory against the plan's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srum_ds.models.costs import Device
from srum_ds.types import Prompt
from tests.gpu.check.measuring import Figures, Where, gigabytes
from tests.gpu.check.random_model import GUIDED, PROMPT, RandomModel, open_random

LAYERS = 28
IMAGES = 2


def run(figures: Figures, where: Where) -> None:
    before = where.begin_peak()
    made = open_random(LAYERS, where)
    kernels, _ = where.working_kernels()
    held = where.begin_peak()
    figures["layers"] = made.config.llm.num_hidden_layers
    counts = made.costs.parameters("generation")
    element = 4 if where.rehearse else 2
    figures["weights"] = _against(held - before, counts.total * element + 4 * counts.frozen_outside, where)
    for images in (1, IMAGES):
        for name, fused in ("plain", {}), ("fused", kernels):
            with where.fused(fused):
                figures[f"four_steps_{images}_{name}"] = _drawn(made, images, where)
    _autoencoder(figures, made, where)


def _drawn(made: RandomModel, images: int, where: Where) -> dict[str, Any]:
    """Four guided steps with the reading of the prompt, as the sampler runs them."""
    generator = made.model.generator
    ids = generator.prompt_ids([Prompt("a", PROMPT)] * images)
    noise_NTC = made.random(images, made.tokens, made.config.token_channels)

    def draw() -> None:
        generator.sample(noise_NTC, made.grid, GUIDED, generator.contexts(ids))

    ms = where.milliseconds(draw, budget=1.0)
    before = where.begin_peak()
    draw()
    peak = where.peak_bytes()
    steps = GUIDED.num_timesteps - 1
    device = Device(4 if where.rehearse else 2, where.rehearse)
    planned = made.costs.draw_bytes(images, made.size, GUIDED, len(ids[0]), device)
    flops = made.step_flops(images)
    return {
        "ms_a_step": round(ms / steps, 3),
        "mfu": where.mfu(flops * steps, ms),
        "beside_weights": _against(None if peak is None else peak - before, sum(planned.values()), where),
        "whole": _against(peak, before + sum(planned.values()), where),
    }


def _autoencoder(figures: Figures, made: RandomModel, where: Where) -> None:
    """Decoding two images: in fp32, in bf16, and in bf16 one by one, as the code does and a plan has it."""
    kl: Any = made.model.reader.autoencoder.kl
    config = made.config.vae
    side = made.size[0] // config.downsample
    for name, dtype, one_by_one in (
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, False),
        ("bf16_sliced", torch.bfloat16, True),
    ):
        kl.to(dtype)
        kl.enable_slicing() if one_by_one else kl.disable_slicing()
        latent = made.random(IMAGES, config.z_channels, side, side).to(dtype)
        planned = made.costs.decode_bytes(1, made.size, Device(latent.element_size()))
        work = partial(_sample, kl, latent)
        figures[f"decode_{name}"] = _decoded(work, planned if one_by_one else None, where)
    kl.disable_slicing()
    kl.to(torch.float32)
    # As images are drawn, whatever the code at hand makes of it.
    tokens_NTC = made.random(IMAGES, made.tokens, made.config.token_channels)
    planned = made.costs.decode_bytes(IMAGES, made.size, Device(4 if where.rehearse else 2, where.rehearse))
    figures["decode_as_drawn"] = _decoded(lambda: made.model.generator.decode(tokens_NTC, made.grid), planned, where)


def _sample(kl: Any, latent_NCHW: Tensor) -> Tensor:
    image_NCHW: Tensor = kl.decode(latent_NCHW).sample
    return image_NCHW


@torch.no_grad()
def _decoded(work: Callable[[], Any], planned: int | None, where: Where) -> dict[str, Any]:
    ms = where.milliseconds(work, budget=1.0)
    before = where.begin_peak()
    image = work()
    peak = where.peak_bytes()
    found = {"ms": ms, "finite": bool(image.isfinite().all())}
    return found | _against(None if peak is None else peak - before, planned, where)


def _against(measured: int | None, planned: int | None, where: Where) -> dict[str, Any]:
    """GB measured and planned, and the one over the other."""
    found: dict[str, Any] = {
        "gb": None if where.rehearse else gigabytes(measured),
        "planned_gb": gigabytes(planned),
    }
    if measured and planned and not where.rehearse:
        found["measured_over_planned"] = round(measured / planned, 3)
    return found
