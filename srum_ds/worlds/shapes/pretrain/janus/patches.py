"""The alphabet of the tiny Janus: the 16x16 patches that pictures of undisturbed objects are made of.

A patch is a cell of the world, and without jitter there are only so many: 6 colours x 4 shapes x 2 textures, and
black. So a picture's codes are a matter of looking its patches up. The library's own ``generate`` draws as many codes
as a picture that is looked at has patches, and it is one patch a cell that a small model learns to look at.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from srum_ds.worlds.shapes.render import PALETTE, object_mask
from srum_ds.worlds.shapes.vocabulary import COLORS, SHAPES, TEXTURES
from srum_ds.worlds.shapes.world import JITTERS, PICTURE

SIDE = 4
"""Codes along a side of a picture: an object each, or nothing."""

PATCH = PICTURE // SIDE


@cache
def alphabet() -> Tensor:
    """Patches [K, 3, 16, 16] float32 in [0, 1]: black, then objects by colour, shape and texture."""
    patches = [torch.zeros(3, PATCH, PATCH)]
    for color in range(len(COLORS)):
        for shape in SHAPES:
            for texture in TEXTURES:
                mask = torch.from_numpy(object_mask(shape, texture))
                patches.append(mask * PALETTE[color][:, None, None])
    return torch.stack(patches)


def undisturbed(arrays_N516: Tensor) -> Tensor:
    """Scene arrays without jitter."""
    arrays = arrays_N516.clone()
    middle = JITTERS.index((0, 0))
    for row in (0, 2):
        mask = arrays[:, row]
        still = (mask - 1) // len(JITTERS) * len(JITTERS) + middle + 1
        arrays[:, row] = torch.where(mask > 0, still, mask)
    return arrays


def looked_up(images_NCHW: Tensor) -> Tensor:
    """Codes [N, T] int64, row-major: the nearest patch at every place of pictures in [0, 1]."""
    patches_K3hw = alphabet()
    count = len(images_NCHW)
    cut = images_NCHW.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
    distance = torch.cdist(cut.reshape(count * SIDE * SIDE, -1), patches_K3hw.flatten(1))
    return distance.argmin(-1).view(count, -1)


def painted(codes_NT: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] of codes, patch by patch."""
    patches_K3hw = alphabet()
    cells = patches_K3hw[codes_NT].view(len(codes_NT), SIDE, SIDE, 3, PATCH, PATCH)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(codes_NT), 3, PICTURE, PICTURE)
