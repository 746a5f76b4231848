"""Independent checkers by name: what a run may be measured by while it trains, and never steered by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.types import Prompt

Checker = Callable[[Sequence[Prompt], Tensor], list[bool]]
"""(prompts, pictures [N, 3, H, W] float in [0, 1]) -> whether each picture shows exactly what was asked for."""


def load_checker(name: str) -> Checker:
    """The checker of this name. UserError for an unknown one."""
    if name == "shapes":
        return _shapes
    raise UserError(f"watch.checker={name}: no such checker; the embedded world's is 'shapes'.")


def _shapes(prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[bool]:
    # The embedded world is only loaded where it is asked for.
    from srum_ds.worlds.shapes.checker import check

    return [check(prompt, image).exact for prompt, image in zip(prompts, images_NCHW.cpu().float(), strict=True)]
