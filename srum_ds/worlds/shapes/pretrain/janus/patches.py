"""The alphabet of the tiny Janus: the 8x8 patches that pictures of undisturbed objects are made of.

An object fills a cell of 2 x 2 patches, and without jitter there are only so many: 6 colours x 4 shapes x 2 textures
x 4 quadrants, and black. So a picture's codes are a matter of looking its patches up.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from srum_ds.worlds.shapes.render import PALETTE, object_mask
from srum_ds.worlds.shapes.vocabulary import COLORS, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import FLAWS, JITTERS, PICTURE

SIDE = 8
"""Codes along a side of a picture: a quarter of an object each."""

PATCH = PICTURE // SIDE
ALIKE = 1e-3
"""Patches that differ by less are one."""


@cache
def alphabet() -> tuple[Tensor, Tensor]:
    """(patches [K, 3, 8, 8] float32 in [0, 1], the first black; codes [kinds, 4] of the quadrants of objects)."""
    patches = [torch.zeros(3, PATCH, PATCH)]
    kinds = []
    for color in range(len(COLORS)):
        for shape in SHAPES:
            for texture in TEXTURES:
                mask = torch.from_numpy(object_mask(shape, texture))
                cell = mask * PALETTE[color][:, None, None]
                quadrants = [cell[:, y : y + PATCH, x : x + PATCH] for y in (0, PATCH) for x in (0, PATCH)]
                kinds.append([_number(patches, quadrant) for quadrant in quadrants])
    return torch.stack(patches), torch.tensor(kinds)


def _number(patches: list[Tensor], patch: Tensor) -> int:
    for number, known in enumerate(patches):
        if float((known - patch).abs().max()) < ALIKE:
            return number
    patches.append(patch)
    return len(patches) - 1


def undisturbed(arrays_N516: Tensor) -> Tensor:
    """Scene arrays without jitter and without blended objects, which become half ones: all their patches are known."""
    arrays = arrays_N516.clone()
    middle = JITTERS.index((0, 0))
    for row in (0, 2):
        mask = arrays[:, row]
        still = (mask - 1) // len(JITTERS) * len(JITTERS) + middle + 1
        arrays[:, row] = torch.where(mask > 0, still, mask)
    blend, half = (FLAWS.index(flaw) + 1 for flaw in ("blend", "left_half"))
    arrays[:, 4] = torch.where(arrays[:, 4] == blend, half, arrays[:, 4])
    return arrays


def looked_up(images_NCHW: Tensor) -> Tensor:
    """Codes [N, T] int64, row-major: the nearest patch at every place of pictures in [0, 1]."""
    patches_K3hw, _ = alphabet()
    count = len(images_NCHW)
    cut = images_NCHW.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
    distance = torch.cdist(cut.reshape(count * SIDE * SIDE, -1), patches_K3hw.flatten(1))
    return distance.argmin(-1).view(count, -1)


def painted(codes_NT: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] of codes, patch by patch."""
    patches_K3hw, _ = alphabet()
    cells = patches_K3hw[codes_NT].view(len(codes_NT), SIDE, SIDE, 3, PATCH, PATCH)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(codes_NT), 3, PICTURE, PICTURE)
