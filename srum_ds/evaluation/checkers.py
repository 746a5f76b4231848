"""Independent checkers by name: what a run may be measured by while it trains, and never steered by.

``held_out`` opens the one that ``watch.checker`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config.choices import CHECKERS
from srum_ds.types import Prompt

Checker = Callable[[Sequence[Prompt], Tensor], list[bool]]
"""(prompts, images [N, 3, H, W] float in [0, 1]) -> whether each image shows exactly what was asked for."""


def load_checker(name: str) -> Checker:
    """The checker of this name. UserError for an unknown one, and for one that cannot be called."""
    found = CHECKERS.get(name)
    if not callable(found):
        raise UserError(
            f"watch.checker={name}: is {type(found).__name__}, expected a function from prompts and images "
            f"[N, 3, H, W] to a list of booleans"
        )
    return cast(Checker, found)
