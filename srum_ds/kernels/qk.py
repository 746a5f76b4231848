"""From the projected queries or keys of two groups of rows to one grid of normed and rotated ones."""

from __future__ import annotations

from torch import Tensor

from srum_ds.kernels.dispatch import fusable
from srum_ds.kernels.norm import rms_norm
from srum_ds.kernels.rotary import rotate
from srum_ds.kernels.rows import place


@fusable
def qk_norm_rotary(
    first_UHD: Tensor,
    second_GHD: Tensor,
    first_weight_D: Tensor,
    second_weight_D: Tensor,
    eps: float,
    cos_P1D: Tensor,
    sin_P1D: Tensor,
    slot_N: Tensor | None,
    places: int,
) -> Tensor:
    """Every head of both groups normed by its group's weight, put at its row's place, rotated by the place's factors.

    slot_N: int64, all different: where row n of both groups one after the other goes in the grid [places, H, D], which
    is zero elsewhere; None: the first group is the grid already, and the second is empty. cos, sin: of
    ``rotary.rotary_factors``, so that both halves of D are equal; constants. In the dtype of the groups.
    """
    first_UHD = rms_norm(first_UHD, first_weight_D, eps)
    second_GHD = rms_norm(second_GHD, second_weight_D, eps)
    return rotate(place(first_UHD, second_GHD, slot_N, places), cos_P1D, sin_P1D)
