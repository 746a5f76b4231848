"""How rows and elements are spread over programs.

No GPU was there to tune these. Sizes are such that the compiler spills no registers on compute capability 9.0
(tests/integration/test_kernels_compile.py).
"""

from __future__ import annotations

import triton

TILE = 2048
"""Elements that a program holds of one array at a time; a row that is longer is held whole."""
PROGRAMS = 512
"""Most programs of a kernel that adds up over rows: each leaves one partial sum."""


def row_tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a tile of whole rows of this width, both powers of 2."""
    columns = triton.next_power_of_2(width)
    return max(1, TILE // columns), columns


def warps(elements: int) -> int:
    """Warps of 32 threads for a tile: 16 elements a thread, within what a program may have."""
    return int(min(16, max(4, triton.next_power_of_2(elements) // 512)))


def steps_and_programs(tiles: int) -> tuple[int, int]:
    """(tiles that a program takes one after the other, programs) for a sum over tiles.

    Steps are a power of 2, since each number of them is compiled once.
    """
    steps = triton.next_power_of_2(max(1, triton.cdiv(tiles, PROGRAMS)))
    return steps, triton.cdiv(tiles, steps)
