"""The proposers that need no model, in one call."""

from __future__ import annotations

import difflib
from typing import Literal, get_args

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.rewards.regions.boxes import no_regions, select
from srum_ds.rewards.regions.components import Components, Grid
from srum_ds.types import Regions

RegionKind = Literal["components", "grid", "none"]
REGION_KINDS: tuple[str, ...] = get_args(RegionKind)


def propose(
    images_NCHW: Tensor,
    kind: str = "components",
    *,
    max_count: int = 10,
    min_area: float = 0.004,
    pad: float = 0.03,
    threshold: float = 0.2,
    grid_side: int = 2,
) -> Regions:
    """Proposes boxes for a batch of pictures, without any model: see ``Components`` and ``Grid``.

    ``none`` proposes nothing, which leaves the global reward alone.

    Args:
        images_NCHW: pictures [N, 3, H, W] in [0, 1].
        kind: one of ``REGION_KINDS``.
        max_count, min_area, pad: see ``select``. The default margin suits the shapes world: 12 px
            objects in a 64 px picture get 16 px boxes.
        threshold: see ``Components``.
        grid_side: see ``Grid``.

    Returns:
        Regions on the CPU: owners ascending, boxes [R, 4] float32 clipped to [0, 1].

    Raises:
        UserError: unknown ``kind``, a setting out of range, or a grid that breaks ``max_count``.
    """
    if kind not in REGION_KINDS:
        near = difflib.get_close_matches(kind, REGION_KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"region kind {kind!r} is not known: use one of {', '.join(REGION_KINDS)}{hint}")
    components = Components(threshold)
    grid = Grid(grid_side)
    if kind == "none":
        return no_regions()
    if kind == "grid" and grid_side * grid_side > max_count:
        raise UserError(
            f"regions: a {grid_side} x {grid_side} grid has {grid_side * grid_side} boxes, more than "
            f"max_count {max_count}: raise max_count or lower grid_side"
        )
    proposer = grid if kind == "grid" else components
    found = proposer(images_NCHW, (), None)
    return select(found, max_count=max_count, min_area=min_area, pad=pad)
