"""Moving the rows of two groups into one grid and back; each move is the other's gradient.

Indexing would do, but its gradient adds into zeros, row by row, as if rows could meet; here every row has a
place of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def place_reference(first_U: Tensor, second_G: Tensor, slot_N: Tensor, places: int) -> Tensor:
    """``place`` by plain indexing."""
    rows_N = torch.cat([first_U, second_G])
    return rows_N.new_zeros(places, *rows_N.shape[1:]).index_copy(0, slot_N, rows_N)


def place(first_U: Tensor, second_G: Tensor, slot_N: Tensor | None, places: int) -> Tensor:
    """A grid [places, ...] whose row slot_N[n] is row n of both groups one after the other; zeros elsewhere.

    slot_N: int64, all different; None: the first group is the grid already.
    """
    if slot_N is None:
        return first_U
    done: Tensor = _Place.apply(first_U, second_G, slot_N, places)  # type: ignore[no-untyped-call]
    return done


def collect(grid_P: Tensor, slot_N: Tensor | None, split: int) -> tuple[Tensor, Tensor]:
    """Rows slot_N of a grid, as groups of ``split`` and of the other rows: the inverse of ``place``."""
    if slot_N is None:
        return grid_P, grid_P[:0]
    groups: tuple[Tensor, Tensor] = _Collect.apply(grid_P, slot_N, split)  # type: ignore[no-untyped-call]
    return groups


def _place(first_U: Tensor, second_G: Tensor, slot_N: Tensor, places: int) -> Tensor:
    shape = (places, *first_U.shape[1:])
    grid = first_U.new_empty(shape) if places == len(slot_N) else first_U.new_zeros(shape)
    split = len(first_U)
    return grid.index_copy_(0, slot_N[:split], first_U).index_copy_(0, slot_N[split:], second_G)


def _collect(grid_P: Tensor, slot_N: Tensor, split: int) -> tuple[Tensor, Tensor]:
    return grid_P.index_select(0, slot_N[:split]), grid_P.index_select(0, slot_N[split:])


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first_U: Tensor, second_G: Tensor, slot_N: Tensor, places: int) -> Tensor:
        ctx.save_for_backward(slot_N)
        ctx.split = len(first_U)
        return _place(first_U, second_G, slot_N, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (slot_N,) = ctx.saved_tensors
        return *_collect(gradients[0], slot_N, ctx.split), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid_P: Tensor, slot_N: Tensor, split: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(slot_N)
        ctx.places = len(grid_P)
        return _collect(grid_P, slot_N, split)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slot_N,) = ctx.saved_tensors
        return _place(gradients[0], gradients[1], slot_N, ctx.places), None, None
