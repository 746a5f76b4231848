"""A fault: what is done to which job, when, and what may come of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.doors import RANKS, Job
from tests.chaos.moments import Moment
from tests.chaos.verdict import Expected
from tests.chaos.workshop import BEGUN

ERRNO = {name: getattr(errno, name) for name in ("EIO", "ESTALE", "EACCES", "ENOSPC", "EDQUOT", "ETIMEDOUT")}


@dataclass
class Fault:
    """One fault of a campaign, as its seed and number have drawn it.

    door, ranks: how the job starts. source: what run its folder holds. moment: when ``strike`` is called; None where
    the fault is there from the start. role: whose processes ``strike`` is about. before: damages the folder; returns
    what was done. undo: puts that right. variables: of the call that the fault hits alone. again: how often a refused
    call is repeated before ``undo``. mount: options of a tmpfs that holds the run's folder.
    """

    kind: str
    what: str
    expected: Expected
    door: str = RANKS
    ranks: int = 1
    source: str = BEGUN
    moment: Moment | None = None
    role: str = "front"
    strike: Callable[[Job, str], str] | None = None
    before: Callable[[Path], str] | None = None
    undo: Callable[[Path], None] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    again: int = 0
    mount: str | None = None
    extra_limit: float = 0.0
