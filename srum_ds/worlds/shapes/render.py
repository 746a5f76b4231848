"""Draws scenes: a table of 16x16 coverage masks, coloured and laid out on a 4x4 grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from srum_ds.worlds.shapes.vocabulary import CELLS, COLORS, GRID, RGB, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import CELL, FLAWS, JITTERS, PICTURE, SceneObject

OBJECT_SIZE = 12.0
STRIPE = 3.0
STRIPE_DIM = 0.35
SUPERSAMPLING = 8

ARRAY_ROWS = 5
"""Rows of a scene's array: mask, colour, second mask, second colour, flaw (0: none)."""


def object_mask(shape: str, texture: str, jitter: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Brightness [16, 16] float32 in [0, 1] of one object in its cell; ``jitter`` is (dy, dx) pixels."""
    step = 1.0 / SUPERSAMPLING
    axis = (np.arange(CELL * SUPERSAMPLING) + 0.5) * step - CELL / 2
    y = axis[:, None] - jitter[0]
    x = axis[None, :] - jitter[1]
    radius = OBJECT_SIZE / 2
    if shape == "circle":
        inside = x * x + y * y <= radius * radius
    elif shape == "square":
        # A little smaller than the circle's box, so that the areas are alike.
        inside = np.maximum(np.abs(x), np.abs(y)) <= radius - 0.6
    elif shape == "triangle":
        inside = (np.abs(y) <= radius - 0.5) & (np.abs(x) <= (y + radius) / 2)
    elif shape == "cross":
        upright = (np.abs(x) <= 1.9) & (np.abs(y) <= radius)
        level = (np.abs(y) <= 1.9) & (np.abs(x) <= radius)
        inside = upright | level
    else:
        raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    brightness = inside.astype(np.float32)
    if texture == "striped":
        dim = np.floor((y + radius) / STRIPE) % 2 == 1
        brightness = np.where(dim, brightness * STRIPE_DIM, brightness)
    blocks = brightness.reshape(CELL, SUPERSAMPLING, CELL, SUPERSAMPLING)
    mean: np.ndarray = blocks.mean(axis=(1, 3)).astype(np.float32)
    return mean


def mask_index(shape: str, texture: str, jitter: tuple[int, int]) -> int:
    """Row of ``MASKS`` for an object; row 0 is an empty cell."""
    return _MASK_INDEX[(shape, texture, jitter)]


_KEYS = [(shape, texture, jitter) for shape in SHAPES for texture in TEXTURES for jitter in JITTERS]
_MASK_INDEX = {key: position + 1 for position, key in enumerate(_KEYS)}
_COLOR_INDEX = {color: position for position, color in enumerate(COLORS)}

_EMPTY = np.zeros((CELL, CELL), np.float32)
MASKS = torch.from_numpy(np.stack([_EMPTY, *(object_mask(*key) for key in _KEYS)]))
"""Coverage masks [73, 16, 16] float32: empty, then every shape, texture and jitter."""

PALETTE = torch.tensor([RGB[color] for color in COLORS])


def scene_array(scene: Sequence[SceneObject]) -> np.ndarray:
    """A scene as int8 [5, 16] (rows: mask, colour, second mask, second colour, flaw)."""
    array = np.zeros((ARRAY_ROWS, len(CELLS)), np.int8)
    for thing in scene:
        array[0, thing.cell] = mask_index(thing.shape, thing.texture, thing.jitter)
        array[1, thing.cell] = _COLOR_INDEX[thing.color]
        if thing.flaw is not None:
            array[4, thing.cell] = FLAWS.index(thing.flaw) + 1
        if thing.second is not None:
            second = thing.second
            index = mask_index(str(second.shape), str(second.texture), thing.jitter)
            array[2, thing.cell] = index
            array[3, thing.cell] = _COLOR_INDEX[str(second.color)]
    return array


def render_arrays(arrays_N516: Tensor) -> Tensor:
    """Images [N, 3, 64, 64] float32 in [0, 1] of scene arrays [N, 5, 16] (or [N, 2, 16]: no flaws)."""
    arrays = arrays_N516.long()
    cells = _paint(arrays[:, 0], arrays[:, 1])
    if arrays.shape[1] == ARRAY_ROWS and bool((arrays[:, 4] > 0).any()):
        second = _paint(arrays[:, 2], arrays[:, 3])
        flaw = arrays[:, 4, :, None, None, None]
        top = (torch.arange(CELL) < CELL // 2).float().view(CELL, 1)
        left = top.view(1, CELL)
        broken = (
            cells * top + second * (1 - top),
            cells * left + second * (1 - left),
            (cells + second) / 2,
            cells * top,
            cells * left,
        )
        for code, picture in enumerate(broken, start=1):
            cells = torch.where(flaw == code, picture, cells)
    count = arrays.shape[0]
    grid = cells.view(count, GRID, GRID, 3, CELL, CELL)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, PICTURE, PICTURE)


def _paint(mask_N16: Tensor, color_N16: Tensor) -> Tensor:
    """Cells [N, 16, 3, 16, 16]; an empty mask stays black whatever its colour."""
    return MASKS[mask_N16][:, :, None] * PALETTE[color_N16][:, :, :, None, None]


def render_scenes(scenes: Sequence[Sequence[SceneObject]]) -> Tensor:
    """Images [N, 3, 64, 64] float32 in [0, 1]."""
    if not scenes:
        return torch.zeros(0, 3, PICTURE, PICTURE)
    return render_arrays(torch.from_numpy(np.stack([scene_array(scene) for scene in scenes])))


def random_arrays(count: int, generator: torch.Generator, occupied: float = 0.45, flawed: float = 0.15) -> Tensor:
    """Arrays [count, 5, 16] of crowded random images, some objects broken: what the VAE learns from."""
    shape = (count, len(CELLS))

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    def chance(share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    present = chance(occupied)
    mask = integers(1, len(MASKS)) * present
    color = integers(0, len(COLORS))
    second_mask = integers(1, len(MASKS))
    second_color = torch.where(chance(0.5), color, integers(0, len(COLORS)))
    flaw = integers(1, len(FLAWS) + 1) * (present & chance(flawed))
    return torch.stack((mask, color, second_mask, second_color, flaw), dim=1)
