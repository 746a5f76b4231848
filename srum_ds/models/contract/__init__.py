"""Tests a design against the protocols of models/protocol.py: ``srum-ds check-adapter`` and the tests call it.

``check_adapter`` loads a checkpoint folder (a tiny one is enough; it is never written to), draws a few images with it,
takes one training step in each of its modes, and says of every promise whether it is kept. Everything is computed in
float32 on the CPU. What may not change is compared bit for bit; where only the batch differs, sums are taken in another
order, and numbers may differ by rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from srum_ds.models.contract import drawing, training
from srum_ds.models.contract.subject import Broken, Subject
from srum_ds.models.protocol import ModelFamily
from srum_ds.models.registry import AUTO, family_of

__all__ = ["Check", "check_adapter", "check_family"]

Promise = Callable[[Subject], str]


@dataclass(frozen=True)
class Check:
    """One promise: its name, whether it is kept, and what was found."""

    name: str
    ok: bool
    detail: str


def check_adapter(kind: str, folder: Path | str, sampling: Any = None) -> list[Check]:
    """Checks the design called ``kind`` (``auto``: what the folder holds) with a checkpoint folder of it.

    sampling: the sampler's settings, of the family's ``sampling_type``; None: its defaults. UserError for an unknown
    design and for a folder that holds none. Whatever an adapter raises beyond that is a failed check.
    """
    return check_family(family_of(folder, kind or AUTO), Path(folder), sampling)


def check_family(family: ModelFamily, folder: Path, sampling: Any = None) -> list[Check]:
    """``check_adapter`` for a family that need not be registered."""
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(family, folder, sampling, Path(scratch))
        return [_checked(name, partial(promise, subject)) for name, promise in _promises(family)]


def _promises(family: ModelFamily) -> list[tuple[str, Promise]]:
    promises: list[tuple[str, Promise]] = [
        ("the family describes itself", drawing.describes_itself),
        ("the model has every method", drawing.has_every_method),
        ("tokens and images have their shapes", drawing.draws_shapes),
        ("views and predictions have their shapes", drawing.trains_shapes),
        ("answers have their shapes", drawing.judges_shapes),
        ("wrong input is refused", drawing.refuses),
        ("the same image in any batch", drawing.same_image),
        ("the same views in any batch", drawing.same_views),
        ("the same answers in any batch", drawing.same_answers),
        ("a box in the corner weighs the corner's tokens", drawing.corner),
        ("the folder's tensors are the module's", training.stored_tensors),
    ]
    for mode in family.modes:
        promises += [
            (f"mode {mode}: a step moves what it trains and nothing else", partial(training.moves, mode=mode)),
            (f"mode {mode}: the gradient is the energy's slope", partial(training.slope, mode=mode)),
            (f"mode {mode}: the judge changes where it is said to", partial(training.judge_after_step, mode=mode)),
            (f"mode {mode}: what is exported is what is loaded", partial(training.exported, mode=mode)),
        ]
    return promises


def _checked(name: str, promise: Callable[[], str]) -> Check:
    try:
        return Check(name, True, promise())
    except Broken as broken:
        return Check(name, False, str(broken))
    except Exception as error:
        # An adapter of somebody else's may raise anything; the other checks are still worth running.
        return Check(name, False, f"{type(error).__name__}: {error}")
