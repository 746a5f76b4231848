"""Independent checkers by name: what a run may be measured by while it trains, and never steered by.

``held_out`` opens the one that ``watch.checker`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from srum_ds.common import foreign
from srum_ds.common.errors import UserError
from srum_ds.config.choices import CHECKERS
from srum_ds.types import Prompt

Checker = Callable[[Sequence[Prompt], Tensor], list[bool]]
"""(prompts, images [N, 3, H, W] float in [0, 1]) -> whether each image shows exactly what was asked for."""


def load_checker(name: str) -> Checker:
    """The checker of this name, which sees copies. UserError for an unknown one, and for one that cannot be called.

    One that is not built in raises UserError, when it is called, for whatever its code raises or should not give.
    """
    found = CHECKERS.get(name)
    if not callable(found):
        raise UserError(
            f"watch.checker={name}: is {type(found).__name__}, expected a function from prompts and images "
            f"[N, 3, H, W] to a list of booleans"
        )
    if name in CHECKERS.builtin:
        return cast(Checker, found)
    what = f"watch.checker={name}"

    def check(prompts: Sequence[Prompt], images_NCHW: Tensor) -> list[bool]:
        count = len(prompts)
        said = foreign.run(what, lambda: found(foreign.copied(prompts), images_NCHW.clone()))
        return foreign.truths(what, said, count, f"a list of {count} truth values, one for each image")

    return check
