"""Model adapters. ``load_model`` is the only door: nothing outside imports a concrete model."""

from __future__ import annotations

from pathlib import Path

import torch

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.protocol import Materialise

__all__ = ["BagelAdapter", "load_model"]


def load_model(
    path: Path | str,
    kind: str = "bagel",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    materialise: Materialise | None = None,
    only_looks: bool = False,
) -> BagelAdapter:
    """Loads a checkpoint folder of the given design. UserError for an unknown design or a bad folder.

    materialise: what gives the module its memory and values instead of a plain load, e.g. an engine's
    shards. only_looks: for a judge, whose drawing half may be left out.
    """
    if kind != "bagel":
        raise UserError(f"model.kind is {kind!r}; known designs: bagel.")
    return load_bagel(path, dtype, device, materialise, only_looks)
