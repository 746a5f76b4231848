"""BAGEL's sampler as pure functions: time points, guidance, Euler updates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srum_ds.models.flow import FlowSampling


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """t -> shift * t / (1 + (shift - 1) * t), moving time towards noise (SD3, arXiv 2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def time_points(sampling: FlowSampling) -> Tensor:
    """The N shifted time points from 1 down to 0, float32 [N]."""
    return shift_timesteps(torch.linspace(1, 0, sampling.num_timesteps), sampling.timestep_shift)


def _norm(v_BTC: Tensor, scope: str) -> Tensor:
    """L2 norms, kept broadcastable: ``token``, ``sample`` or ``batch``."""
    dims = {"token": (2,), "sample": (1, 2), "batch": (0, 1, 2)}[scope]
    norm: Tensor = torch.linalg.vector_norm(v_BTC, dim=dims, keepdim=True)
    return norm


def _rescale(guided_BTC: Tensor, conditional_BTC: Tensor, scope: str, minimum: float) -> Tensor:
    ratio = _norm(conditional_BTC, scope) / (_norm(guided_BTC, scope) + 1e-8)
    return guided_BTC * ratio.clamp(min=minimum, max=1.0)


def guide(
    conditional_BTC: Tensor,
    no_text_BTC: Tensor,
    no_image_BTC: Tensor | None,
    *,
    text_scale: float,
    image_scale: float,
    renorm: str,
    renorm_min: float,
    scope: str = "sample",
) -> Tensor:
    """Classifier-free guidance with BAGEL's renormalisation (arXiv 2505.14683, released code).

    g = u + s (c - u); with image guidance r > 1, g = i + r (g - i). ``global`` and ``channel``
    rescale the result by clamp(|c| / |g|, renorm_min, 1), over a whole picture or by token;
    ``text_channel`` rescales by token before the image step. ``scope`` says what ``global`` norms
    over: ``sample``, or ``batch`` as the released code does for packed pictures.
    """
    guided = no_text_BTC + text_scale * (conditional_BTC - no_text_BTC)
    if renorm == "text_channel":
        guided = _rescale(guided, conditional_BTC, "token", renorm_min)
    if no_image_BTC is not None and image_scale > 1:
        guided = no_image_BTC + image_scale * (guided - no_image_BTC)
    if renorm == "global":
        return _rescale(guided, conditional_BTC, scope, renorm_min)
    if renorm == "channel":
        return _rescale(guided, conditional_BTC, "token", renorm_min)
    if renorm == "text_channel":
        return guided
    raise ValueError(f"renorm {renorm!r} is none of global, channel, text_channel")


def guided_at(t: float, sampling: FlowSampling) -> bool:
    """Whether guidance applies at time t: interval[0] < t <= interval[1] and a text scale above 1.

    The bounds are rounded to float32, as the time points are: 0.3 is not above a bound of 0.3.
    """
    low, high = torch.tensor(sampling.interval, dtype=torch.float32).tolist()
    return sampling.text_scale > 1 and low < t <= high


def euler(
    velocity: Callable[[Tensor, float, bool], Tensor],
    noise_BTC: Tensor,
    sampling: FlowSampling,
) -> tuple[Tensor, list[Tensor]]:
    """Integrates x <- x - v dt from noise (t = 1) to data (t = 0), in float32.

    ``velocity(x, t, guided)`` gives v [B, T, C]. Returns the final x and every step's v. The number
    of steps is fixed, so ranks stay in lockstep.
    """
    points = time_points(sampling)
    x = noise_BTC.float()
    velocities: list[Tensor] = []
    for now, following in zip(points[:-1], points[1:], strict=True):
        v = velocity(x, float(now), guided_at(float(now), sampling)).float()
        x = x - v * (now - following)
        velocities.append(v)
    return x, velocities
