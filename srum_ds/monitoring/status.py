"""Where a run stands, in one line: of at most a terminal's width there, a line a minute elsewhere.

Rank 0 writes it into ``status.json`` in the run's folder, so that the process that started the ranks, or anybody else,
can show it. Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from srum_ds.common.texts import is_number, parse_json
from srum_ds.monitoring.pace import Pace, duration

STATUS = "status.json"
WINDOW = 10
"""Steps over which the console averages rewards: a single step depends on its prompts."""
PHASES_IN_WORDS = {
    "init": "loading",
    "data": "reading",
    "rollout": "drawing",
    "judge": "judging",
    "train": "training",
    "ahead": "drawing",
    "watch": "held-out",
    "show": "samples",
    "save": "saving",
    "export": "exporting",
}


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    step: steps done. total: of the run. activity: what takes long now, in words; empty inside a step. share: how much
    of it is done, in [0, 1]. figures: running means by name, each with the base's value where that is known, else None.
    time: Unix time of its writing. over: nothing more comes of this call.
    """

    step: int = 0
    total: int | None = None
    activity: str = ""
    share: float | None = None
    eta: float | None = None
    images_per_second: float | None = None
    figures: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    time: float = 0.0
    over: bool = False


class Figures:
    """Running means of a run's rewards over ``WINDOW`` steps beside the base's values, and the newest held-out look.

    The base's rewards are those of the first step, whose images the untrained model draws; from_base: whether it does.
    """

    SHOWN = (("reward_global", "reward"), ("reward_local", "local"))

    def __init__(self, from_base: bool = True) -> None:
        self.from_base = from_base
        self._recent: dict[str, deque[float]] = {key: deque(maxlen=WINDOW) for key, _ in self.SHOWN}
        self._base: dict[str, float] = {}
        self._held_out: tuple[float, float | None] | None = None

    def see(self, record: Mapping[str, Any]) -> None:
        """Takes in a step's record."""
        for key, _ in self.SHOWN:
            value = record.get(key)
            if is_number(value):
                self._recent[key].append(float(value))
                if record["step"] == 1 and self.from_base:
                    self._base[key] = float(value)

    def look(self, record: Mapping[str, Any]) -> None:
        """Takes in a look at the held-out prompts."""
        value, gained = record.get("reward"), record.get("difference")
        if is_number(value):
            self._held_out = (float(value), float(value) - float(gained) if is_number(gained) else None)

    def means(self) -> dict[str, tuple[float, float | None]]:
        """Name -> (running mean, the base's value)."""
        found: dict[str, tuple[float, float | None]] = {}
        for key, name in self.SHOWN:
            if self._recent[key]:
                found[name] = (fmean(self._recent[key]), self._base.get(key))
        if self._held_out is not None:
            found["held-out"] = self._held_out
        return found


def standing(step: int, pace: Pace, figures: Figures) -> Status:
    """The status after ``step`` steps."""
    return Status(step, pace.total, "", None, pace.eta(step), pace.images_per_second, figures.means())


def write_status(run_dir: Path, status: Status) -> None:
    """Replaces ``status.json``; a disk that refuses is left to those whose files matter."""
    path = run_dir / STATUS
    temporary = path.with_name(f".{STATUS}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.write_text(json.dumps(asdict(replace(status, time=time.time()))) + "\n")
        os.replace(temporary, path)


def read_status(run_dir: Path) -> Status | None:
    """What ``write_status`` wrote; None where there is nothing, or nothing that can be read."""
    try:
        found = parse_json((run_dir / STATUS).read_bytes())
        found["figures"] = {str(name): (pair[0], pair[1]) for name, pair in found["figures"].items()}
        return Status(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, LookupError):
        return None


def status_line(status: Status, phase: str, seconds: float, width: int) -> str:
    """The line on a terminal of ``width`` columns, at most one less; what is least missed goes first.

    phase: where rank 0 is (``common.phases``), for so many seconds.
    """
    doing = _doing(status, phase, seconds)
    of = "" if status.total is None else f"/{status.total}"
    counts = f"{status.step}{of}"
    eta = [] if status.eta is None or status.step == 0 else [f"ETA {duration(status.eta)}"]
    speed = status.images_per_second
    fast = [] if speed is None else [f"{speed:.3g} images/s"]
    short = [] if speed is None else [f"{speed:.3g} img/s"]
    full = [_pair(name, *pair, digits=3) for name, pair in status.figures.items()]
    rounded = [_pair(name, *pair, digits=2) for name, pair in status.figures.items()]
    main = {name: pair for name, pair in status.figures.items() if name != "local"}
    tight = [_pair(name, *pair, digits=2) for name, pair in main.items()]
    listed = [_together(main)] if main else []
    variants: list[list[str]] = [
        [f"step {counts}", doing, *eta, *fast, *full],
        [f"step {counts}", doing, *eta, *short, *rounded],
        [f"step {counts}", doing, *eta, *short, *tight],
        [counts, doing, *eta, *short, *tight],
        [counts, doing, *eta, *short, *listed],
        [counts, doing, *eta, *listed],
        [counts, doing, *listed],
        [counts, doing, *eta],
        [counts, doing],
    ]
    for number, parts in enumerate(variants):
        line = ("  " if number < 3 else " ").join(parts)
        if len(line) < width:
            return line
    return f"{counts} {doing}"[: max(0, width - 1)]


def plain_line(status: Status, loss: float | None = None, seconds: float | None = None) -> str:
    """The line off a terminal. loss: the step's. seconds: that it took."""
    of = "" if status.total is None else f"/{status.total}"
    parts = [f"step {status.step}{of}"]
    if status.eta is not None:
        parts.append(f"ETA {duration(status.eta)}")
    if status.images_per_second is not None:
        parts.append(f"{status.images_per_second:.3g} images/s")
    parts += [_pair(name, *pair, digits=3) for name, pair in status.figures.items()]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    return "  ".join(parts)


def _doing(status: Status, phase: str, seconds: float) -> str:
    if not status.activity:
        words = PHASES_IN_WORDS.get(phase, phase)
        # A phase of a step passes before anybody reads its seconds.
        return words if seconds < 10 else f"{words} {duration(seconds)}"
    done = "" if status.share is None else f" {status.share:.0%}"
    return f"{status.activity}{done} {duration(seconds)}"


def _pair(name: str, value: float, base: float | None, digits: int) -> str:
    beside = "" if base is None else f" (base {_short(base, digits)})"
    return f"{name} {_short(value, digits)}{beside}"


def _together(pairs: Mapping[str, tuple[float, float | None]]) -> str:
    """All figures, then all of the base's."""
    said = " ".join(f"{name} {_short(value, 2)}" for name, (value, _) in pairs.items())
    bases = [base for _, base in pairs.values() if base is not None]
    return f"{said} (base {' '.join(_short(base, 2) for base in bases)})" if bases else said


def _short(value: float, digits: int) -> str:
    """A signed figure; with two digits without the zero before the point."""
    text = f"{value:+.{digits}f}"
    return text.replace("0.", ".", 1) if digits == 2 and text[1:3] == "0." else text
