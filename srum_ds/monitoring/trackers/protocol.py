"""What a tracker is given, and what it offers. One of your own is a class or function from a ``TrackerRun`` to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from srum_ds.common.errors import UserError


@dataclass(frozen=True)
class TrackerRun:
    """The run that is tracked.

    name: of its folder. project: ``log.project``. folder: where it lives; a tracker that keeps files keeps them in a
    folder of its own there. settings: ``section.name`` -> value, as written: what reads the environment stands as its
    expression. start: steps done before this call; above 0, the run goes on.
    """

    name: str
    project: str
    folder: Path
    settings: Mapping[str, Any]
    start: int = 0


class Tracker(Protocol):
    """Takes what a run shows. Called from one thread of rank 0, in order; whatever it raises is told once."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A step's figures, or a look's at the held-out prompts; finite ones alone. step: steps done."""
        ...

    def image(self, step: int, name: str, path: Path) -> None:
        """A picture, as a PNG in the run's folder."""
        ...

    def close(self) -> None:
        """The call ends; nothing more comes."""
        ...


def need(package: str, extra: str) -> UserError:
    """The error of a tracker whose package is not installed."""
    return UserError(
        f"log.trackers={extra}: the package {package} is not installed; run `pip install 'srum-ds[{extra}]'` (or `pip "
        f"install {package}`), or leave it out of log.trackers"
    )
