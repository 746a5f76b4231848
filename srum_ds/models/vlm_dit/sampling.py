"""The sampler of flow-matching pipelines as pure functions: guidance, Euler updates, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from srum_ds.models.vlm_dit.settings import PipelineSampling as PipelineSampling

Guide = Callable[[Tensor, Tensor, float], Tensor]
"""Velocities [B, T, C] with the prompt and without, and the scale -> the guided velocity [B, T, C]."""


def plain(conditional_BTC: Tensor, empty_BTC: Tensor, scale: float) -> Tensor:
    """e + s (c - e): classifier-free guidance (arXiv 2207.12598)."""
    return empty_BTC + scale * (conditional_BTC - empty_BTC)


def rescaled(conditional_BTC: Tensor, empty_BTC: Tensor, scale: float) -> Tensor:
    """``plain``, each token scaled to the length of c: Qwen-Image's (the released pipeline's code)."""
    guided_BTC = plain(conditional_BTC, empty_BTC, scale)
    return guided_BTC * (_length(conditional_BTC) / _length(guided_BTC))


def shortened(conditional_BTC: Tensor, empty_BTC: Tensor, scale: float) -> Tensor:
    """``plain``, each token longer than c scaled to the length of c: LongCat-Image's (the released pipeline's code)."""
    guided_BTC = plain(conditional_BTC, empty_BTC, scale)
    return guided_BTC * (_length(conditional_BTC) / (_length(guided_BTC) + 1e-8)).clamp(max=1.0)


def _length(v_BTC: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v_BTC, dim=-1, keepdim=True)
    return length


GUIDES: Mapping[str, Guide] = {"plain": plain, "rescaled": rescaled, "shortened": shortened}
"""The ways of guiding that are known, by name."""


def euler(velocity: Callable[[Tensor, float], Tensor], noise_BTC: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates x <- x + (sigma' - sigma) v from noise to data, in float32 on the noise's device.

    velocity: (x [B, T, C], sigma) -> v [B, T, C] = noise - data. sigmas: [N + 1], descending, the last 0.
    """
    x_BTC = noise_BTC.float()
    for now, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x_BTC = x_BTC + (following - now) * velocity(x_BTC, now).float()
    return x_BTC
