"""How rows and elements are spread over programs.

Programs and stages of sums over rows were chosen among a hundred settings on an H100 (benchmarks/gpu.md); sizes are
such that the compiler spills no registers on compute capability 9.0 (tests/integration/test_kernels_compile.py).
"""

from __future__ import annotations

import triton

TILE = 2048
"""Elements that a program holds of one array at a time; a row that is longer is held whole."""
PROGRAMS = 256
"""Most programs of a kernel that adds up over rows: each leaves one partial sum."""
STAGES = 3
"""Most turns of its loop that such a program has in hand or on their way; more than one pass through shared memory."""
STAGED_BYTES = 65536
"""Most shared memory for the turns that are on their way; GPUs of compute capability 8.0 and above have more."""


def row_tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a tile of whole rows of this width, both powers of 2."""
    columns = triton.next_power_of_2(width)
    return max(1, TILE // columns), columns


def warps(elements: int) -> int:
    """Warps of 32 threads for a tile: 16 elements a thread, within what a program may have."""
    return int(min(16, max(4, triton.next_power_of_2(elements) // 512)))


def steps_and_programs(tiles: int, finer: int = 1) -> tuple[int, int]:
    """(tiles that a program takes one after the other, programs) for a sum over tiles.

    finer: times as many programs as are usual, where a partial sum is short. Steps are a power of 2, since each number
    of them is compiled once.
    """
    steps = triton.next_power_of_2(max(1, triton.cdiv(tiles, PROGRAMS * finer)))
    return steps, triton.cdiv(tiles, steps)


def stages(turn_bytes: int) -> int:
    """Stages of a loop that loads so many bytes a turn."""
    return min(STAGES, 1 + STAGED_BYTES // turn_bytes)
