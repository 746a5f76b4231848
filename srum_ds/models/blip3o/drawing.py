"""Draws CLIP features with the transformer alone: from noise and conditions, with nothing of a language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.models.blip3o.denoiser import Denoiser
from srum_ds.models.blip3o.sampling import euler, guide, to_map, to_tokens


@dataclass(frozen=True)
class DrawingStep:
    """One step: x before it, the time as it was passed, the velocities [B, T, C] (empty: None where not computed)."""

    timestep: int
    x_BTC: Tensor
    conditional_BTC: Tensor
    empty_BTC: Tensor | None


def velocity(denoiser: Denoiser, x_BTC: Tensor, timestep_B: Tensor, z_BQD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Velocities noise - data [B, T, C] (float32) of noised tokens, row-major over ``grid``; see ``Denoiser``."""
    return to_tokens(denoiser(to_map(x_BTC, grid), timestep_B, z_BQD))


@torch.no_grad()
def draw_features(
    denoiser: Denoiser,
    noise_BTC: Tensor,
    z_BQD: Tensor,
    grid: tuple[int, int],
    sigmas: Tensor,
    scale: float,
    trace: list[DrawingStep] | None = None,
) -> Tensor:
    """Features [B, T, C] (float32) that the guided velocity leads to from noise.

    z_BQD: the conditions; those of the unguided half are zeros. Both run as one batch, as released. sigmas: as
    ``noise_levels``. scale: of guidance; at 1 the conditions alone are looked at. ``trace`` receives one
    ``DrawingStep`` a step.
    """
    guided = scale != 1
    both_BQD = torch.cat([z_BQD, torch.zeros_like(z_BQD)]) if guided else z_BQD

    def along(x_BTC: Tensor, timestep: int) -> Tensor:
        passed_B = torch.full((len(both_BQD),), timestep, device=both_BQD.device)
        input_BTC = torch.cat([x_BTC, x_BTC]) if guided else x_BTC
        parts = velocity(denoiser, input_BTC, passed_B, both_BQD, grid).split(len(x_BTC))
        conditional_BTC, empty_BTC = parts[0], parts[1] if guided else None
        if trace is not None:
            trace.append(DrawingStep(timestep, x_BTC, conditional_BTC, empty_BTC))
        return conditional_BTC if empty_BTC is None else guide(conditional_BTC, empty_BTC, scale)

    return euler(along, noise_BTC.to(z_BQD.device), sigmas)
