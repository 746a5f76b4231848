"""Masks as run lengths, COCO's uncompressed form: {"size": [H, W], "counts": [...]}, down columns, 0s first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from srum_ds.common.errors import UserError


def encode_mask(mask_HW: Tensor) -> dict[str, object]:
    """Run lengths of a bool mask [H, W]."""
    height, width = mask_HW.shape
    flat = mask_HW.cpu().bool().t().reshape(-1)
    values, runs = torch.unique_consecutive(flat, return_counts=True)
    counts = runs.tolist()
    if len(values) and bool(values[0]):
        counts = [0, *counts]
    return {"size": [height, width], "counts": counts}


def decode_mask(mask: Mapping[str, object], height: int, width: int) -> Tensor:
    """The bool mask [H, W]. UserError for other forms, and for another size than the picture's."""
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width]:
        raise UserError(f"a mask has size {size!r}, its picture is [{height}, {width}] (rows, columns)")
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise UserError("a mask's counts are no list of run lengths; expected COCO's uncompressed form")
    if sum(counts) != height * width:
        raise UserError(f"a mask's counts sum to {sum(counts)}, its picture has {height * width} pixels")
    values = torch.arange(len(counts)) % 2 == 1
    return values.repeat_interleave(torch.tensor(counts, dtype=torch.int64)).reshape(width, height).t().contiguous()
