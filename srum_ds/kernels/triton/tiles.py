"""How rows are spread over programs."""

from __future__ import annotations

import triton

TILE = 4096
"""Elements that a program holds of one array at a time."""
PROGRAMS = 512
"""Most programs of a kernel that adds up over rows: each leaves one partial sum."""


def row_tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a tile of whole rows of this width, both powers of 2."""
    columns = triton.next_power_of_2(width)
    return max(1, TILE // columns), columns


def steps_and_programs(tiles: int) -> tuple[int, int]:
    """(tiles that a program takes one after the other, programs) for a sum over tiles.

    Steps are a power of 2, since each number of them is compiled once.
    """
    steps = triton.next_power_of_2(max(1, triton.cdiv(tiles, PROGRAMS)))
    return steps, triton.cdiv(tiles, steps)
