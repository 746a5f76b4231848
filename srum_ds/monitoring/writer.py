"""Writes what a run shows while it runs: its records, TensorBoard, trackers, samples, and the console. Rank 0 alone."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console, RenderableType
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import replacing
from srum_ds.common.phases import PHASES
from srum_ds.monitoring.console import CONSOLE, LOG_ONLY, RunLog, Screen
from srum_ds.monitoring.images import Shown, annotated, grid
from srum_ds.monitoring.judge_failures import FAILURES
from srum_ds.monitoring.pace import Pace
from srum_ds.monitoring.records import HELD_OUT, METRICS, cut, read_metrics, take_up
from srum_ds.monitoring.status import Figures, Status, plain_line, standing, status_line, write_status
from srum_ds.monitoring.tensorboard import TensorBoard
from srum_ds.monitoring.trackers import Trackers

# Off a terminal, seconds between two lines on the steps, once so many have passed; the last always has one.
_EVERY_SECONDS = 60.0


class Monitor:
    """Writes on rank 0; on every other rank all methods do nothing.

    A new process first calls ``truncate(done)`` with the steps that are done. ``total_steps`` is what the progress
    counts to. images: of a step, over all ranks. from_base: whether the first step's images are the untrained model's.
    """

    def __init__(
        self,
        run_dir: Path | str,
        rank: int = 0,
        tensorboard: bool = True,
        progress: bool = True,
        total_steps: int | None = None,
        console: Console | None = None,
        images: int = 0,
        from_base: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.run_dir = Path(run_dir)
        self.active = rank == 0
        self.pace = Pace(images, total_steps, clock=clock)
        self.figures = Figures(from_base)
        self._tensorboard = TensorBoard(self.run_dir) if tensorboard else None
        self._trackers = Trackers([], self.message)
        self._show = progress
        self._clock = clock
        self._relayed = os.environ.get(CONSOLE, "")
        self._log = None if self._relayed else RunLog(self.run_dir)
        status = self._line if progress and self.active and not self._relayed else None
        self._screen = Screen(console or Console(), status, self._log)
        self._status = Status(total=total_steps)
        self._first: float | None = None
        self._told = 0.0
        self._files: dict[str, TextIO] = {}

    # ---- taking up, ending

    def truncate(self, done: int) -> list[dict[str, Any]]:
        """Forgets everything after the first ``done`` steps; returns the looks at held-out prompts that are left.

        Cuts metrics.jsonl and held_out.jsonl, whose last line may be torn, and hides the rest of TensorBoard's. A
        former version's steps are counted anew. Raises UserError for any other line that is not a step's.
        """
        if not self.active:
            return []
        self._close_files()
        path = self.run_dir / METRICS
        former = take_up(path, done, self.run_dir / FAILURES)
        looks = cut(self.run_dir / HELD_OUT, done)
        if self._tensorboard is not None:
            # A former version's step ``done``, counted from 0, is the one after.
            self._tensorboard.purge(done if former else done + 1)
        elapsed = 0.0
        for record in read_metrics(path):
            self.figures.see(record)
            elapsed = float(record.get("elapsed_seconds") or elapsed + _seconds(record))
        for look in looks:
            self.figures.look(look)
        self.pace = Pace(self.pace.images, self.pace.total, elapsed, self._clock)
        self._status = replace(standing(done, self.pace, self.figures), activity=self._status.activity)
        return looks

    def track(self, trackers: Trackers) -> None:
        """Hands everything on to these trackers too."""
        self._trackers = trackers

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Says what run it is. settings: ``section.name`` -> value, as written."""
        if not self.active:
            return
        if self._log is not None:
            self._log.begin()
        if self._tensorboard is not None:
            self._tensorboard.begin(settings)

    def sync(self) -> None:
        """Brings all that was written to the disk: to be called with each checkpoint."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Syncs and closes everything; a later ``step`` opens it again."""
        self.sync()
        self._close_files()
        self._trackers.close()
        self._screen.close()
        if self.active and self._show:
            write_status(self.run_dir, replace(self._status, over=True))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- figures

    def step(self, record: Mapping[str, Any]) -> None:
        """Appends a step's figures, and shows where the run stands. ``record["step"]``: steps done, from 1.

        Figures are numbers, texts or one-element tensors; one that is not finite is null in the file.
        """
        if not self.active:
            return
        plain = {key: _plain(value) for key, value in record.items()}
        if type(plain.get("step")) is not int:
            raise ValueError(f"a step's record needs a whole number as 'step', got {plain.get('step')!r}")
        self._append(METRICS, plain)
        self.figures.see(plain)
        self._status = standing(plain["step"], self.pace, self.figures)
        if self._tensorboard is not None:
            self._tensorboard.step(plain["step"], plain, self._status.figures)
        self._trackers.log(plain["step"], plain)
        if self._show:
            self._tell(plain)

    def held_out(self, look: Mapping[str, Any]) -> None:
        """Appends a look at the held-out prompts; its ``step`` is 0 for the base."""
        if not self.active:
            return
        self._append(HELD_OUT, look)
        self.figures.look(look)
        self._status = replace(self._status, figures=self.figures.means())
        if self._tensorboard is not None:
            self._tensorboard.held_out(look)
        judges = {f"judge_{name}": said for name, said in look.get("judges", {}).items()}
        self._trackers.log(int(look["step"]), {**look, **judges}, "held_out_")

    def result(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """What came of the run, for TensorBoard's comparison of runs; figures: by tag."""
        if self.active and self._tensorboard is not None:
            self._tensorboard.end(settings, figures)

    def images(
        self,
        tag: str,
        images: Tensor,
        boxes: Sequence[Sequence[Sequence[float]] | Tensor],
        scores: Sequence[Sequence[float] | Tensor],
        captions: Sequence[str],
        step: int,
    ) -> Path | None:
        """Shows images with their boxes coloured by score (red -1, amber 0, green +1, grey failed).

        images: [N, 3, H, W] in [0, 1]. boxes, scores: for each image its boxes (x0, y0, x1, y1 in
        [0, 1]) and one score a box (see ``srum_ds.monitoring.images.boxes_by_picture``). step: steps done. Written to
        TensorBoard, the trackers and ``samples/<tag>_<step>.png``, whose path is returned (None on other ranks).
        """
        if not self.active:
            return None
        shown = [
            Shown(image, _rows(own_boxes), _rows(own_scores))
            for image, own_boxes, own_scores in zip(images, boxes, scores, strict=True)
        ]
        picture = grid([annotated(item) for item in shown], captions)
        path = self.run_dir / "samples" / f"{tag}_{step:06d}.png"
        with replacing(path) as stream:
            picture.save(stream, "PNG")
        if self._tensorboard is not None:
            self._tensorboard.image(tag, picture, step)
        self._trackers.image(step, tag, path)
        return path

    # ---- the console

    def message(self, text: str) -> None:
        """One line for the user, above the status line."""
        if self.active:
            self._screen.message(text)

    def show(self, what: RenderableType | None) -> None:
        """Something of rich's, such as a table, above the status line; nothing for None."""
        if self.active and what is not None:
            self._screen.show(what)

    def activity(self, words: str, share: float | None = None, say: bool = False) -> None:
        """What takes long now, for the status line; share: how much of it is done. Empty: it is over.

        say: off a terminal there is a line on it too.
        """
        if not self.active or not self._show:
            return
        began = words != self._status.activity
        self._status = replace(self._status, activity=words, share=share)
        write_status(self.run_dir, self._status)
        self._screen.redraw()
        if say and began and words and not self._screen.live and self._relayed != "terminal":
            self._screen.message(words)

    def _tell(self, record: Mapping[str, Any]) -> None:
        write_status(self.run_dir, self._status)
        self._screen.redraw()
        now = self._clock()
        last = record["step"] == self.pace.total
        if self._first is None:
            self._first = now
        # In a call's first minute every step is told, so that whoever started it sees that it moves.
        if not last and now - self._first >= _EVERY_SECONDS > now - self._told:
            return
        self._told = now
        loss = record.get("loss")
        line = plain_line(self._status, loss if isinstance(loss, int | float) else None, _seconds(record) or None)
        if self._relayed == "terminal":
            self._screen.message(LOG_ONLY + line)
        elif not self._screen.live:
            self._screen.message(line)
        elif self._log is not None:
            self._log.line(line)

    def _line(self, width: int) -> str:
        stand = PHASES.stand
        return status_line(self._status, stand.phase, time.monotonic() - stand.began, width)

    # ---- files

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        finite = {key: None if _is_nan(value) else value for key, value in record.items()}
        try:
            if name not in self._files:
                self.run_dir.mkdir(parents=True, exist_ok=True)
                self._files[name] = open(self.run_dir / name, "a", encoding="utf-8")
            self._files[name].write(json.dumps(finite, allow_nan=False) + "\n")
            # Handed to the system at once: it outlives a kill of this process.
            self._files[name].flush()
        except OSError as error:
            raise UserError(f"{self.run_dir / name}: could not be written ({error.strerror})") from error

    def _close_files(self) -> None:
        for stream in self._files.values():
            stream.close()
        self._files = {}
        if self._tensorboard is not None:
            self._tensorboard.close()


def _seconds(record: Mapping[str, Any]) -> float:
    return sum(v for k, v in record.items() if k.startswith("time_") and isinstance(v, int | float))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return value.item()
    return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _rows(values: Any) -> Any:
    return values.tolist() if isinstance(values, torch.Tensor) else values
