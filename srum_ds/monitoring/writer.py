"""Writes what a run shows while it runs: metrics.jsonl, TensorBoard, sample grids and one live line. Rank 0 alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from srum_ds.common.errors import UserError
from srum_ds.common.files import replacing, write_atomic
from srum_ds.monitoring.images import Shown, annotated, grid, to_array

METRICS = "metrics.jsonl"
# What the live line says of a step, where the step has it: key, name, format.
SHOWN = (
    ("loss", "loss", ".4f"),
    ("reward_global", "global", "+.3f"),
    ("reward_local", "local", "+.3f"),
    ("grad_norm", "grad", ".3f"),
)
# Keys of these beginnings are groups of their own in TensorBoard.
TAGS = ("reward", "time", "flops", "speed", "memory", "bytes")
# Without a terminal, so many lines over the whole run.
PLAIN_LINES = 20


class Monitor:
    """Writes on rank 0; on every other rank all methods do nothing.

    A new process first calls ``truncate(step)`` with the step it starts from. ``total_steps`` is
    what the progress counts to.
    """

    def __init__(
        self,
        run_dir: Path | str,
        rank: int = 0,
        tensorboard: bool = True,
        progress: bool = True,
        total_steps: int | None = None,
        console: Console | None = None,
    ):
        self.run_dir = Path(run_dir)
        self.active = rank == 0
        self._tensorboard = tensorboard
        self._show = progress
        self._total = total_steps
        self._console = console or Console()
        self._metrics: TextIO | None = None
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._progress: Progress | None = None
        self._task: Any = None

    def truncate(self, step: int) -> None:
        """Forgets everything from ``step`` on: cuts metrics.jsonl to the steps before it, hides the rest
        of TensorBoard's.

        A last line torn by a kill goes too. Raises UserError for any other line that is not a step.
        """
        if not self.active:
            return
        self._close_writers()
        self._purge_step = step
        path = self.run_dir / METRICS
        if path.exists():
            kept = metrics_before(path.read_bytes(), step, path)
            if kept != path.read_bytes():
                write_atomic(path, kept)

    def step(self, record: Mapping[str, Any]) -> None:
        """Appends a step's figures, ``record["step"]`` among them, and moves the live line on.

        Figures are numbers, texts or one-element tensors; one that is not finite is null in the file.
        """
        if not self.active:
            return
        plain = {key: _plain(value) for key, value in record.items()}
        if type(plain.get("step")) is not int:
            raise ValueError(f"a step's record needs a whole number as 'step', got {plain.get('step')!r}")
        finite = {key: None if _is_nan(value) else value for key, value in plain.items()}
        try:
            stream = self._open_metrics()
            stream.write(json.dumps(finite, allow_nan=False) + "\n")
            # Handed to the system at once: it outlives a kill of this process.
            stream.flush()
        except OSError as error:
            raise UserError(f"{self.run_dir / METRICS}: could not be written ({error.strerror})") from error
        if self._tensorboard:
            writer = self._open_writer()
            for key, value in plain.items():
                if key != "step" and isinstance(value, int | float):
                    writer.add_scalar(_tag(key), value, plain["step"])
        if self._show:
            self._tell(plain)

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
        [0, 1]) and one score a box (see ``srum_ds.monitoring.images.boxes_by_picture``). Written to
        TensorBoard and ``samples/<tag>_<step>.png``, whose path is returned (None on other ranks).
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
        if self._tensorboard:
            self._open_writer().add_image(f"samples/{tag}", to_array(picture), step, dataformats="HWC")
        return path

    def sync(self) -> None:
        """Brings all that was written to the disk: to be called with each checkpoint."""
        if self._metrics is not None:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        if self._writer is not None:
            self._writer.flush()

    def message(self, text: str) -> None:
        """One line for the user, above the live line."""
        if self.active:
            console = self._progress.console if self._progress is not None else self._console
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, what: RenderableType | None) -> None:
        """Something of rich's, such as a table, above the live line; nothing for None."""
        if self.active and what is not None:
            console = self._progress.console if self._progress is not None else self._console
            console.print(what)

    def close(self) -> None:
        """Syncs and closes everything; a later ``step`` opens it again."""
        self.sync()
        self._close_writers()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_metrics(self) -> TextIO:
        if self._metrics is None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._metrics = open(self.run_dir / METRICS, "a", encoding="utf-8")
        return self._metrics

    def _open_writer(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self._purge_step)
            # Only once: another writer of this process goes on after what this one wrote.
            self._purge_step = None
        return self._writer

    def _close_writers(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tell(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        figures = "  ".join(
            f"{name} {record[key]:{form}}" for key, name, form in SHOWN if isinstance(record.get(key), int | float)
        )
        if self._console.is_terminal:
            if self._progress is None:
                self._progress = _progress(self._console)
                self._task = self._progress.add_task("", total=self._total, completed=step)
                self._progress.start()
            self._progress.update(self._task, completed=step + 1, description=figures)
            return
        every = max(1, (self._total or PLAIN_LINES) // PLAIN_LINES)
        last = self._total is not None and step + 1 == self._total
        if step % every == 0 or last:
            of = f"/{self._total}" if self._total is not None else ""
            seconds = sum(v for k, v in record.items() if k.startswith("time_") and isinstance(v, int | float))
            took = f"  {seconds:.1f} s" if seconds else ""
            line = f"step {step + 1}{of}  {figures}{took}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def metrics_before(data: bytes, step: int, path: Path | str = METRICS) -> bytes:
    """The lines of a metrics file whose step is below ``step``; a torn last line is dropped.

    Raises UserError naming any other line that is not a JSON object with a whole number as "step".
    """
    whole, _, _ = data.rpartition(b"\n")
    kept = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            found = json.loads(line)["step"]
            if type(found) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a step's record; remove that line and repeat") from error
        if found < step:
            kept.append(line + b"\n")
    return b"".join(kept)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("train"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        console=console,
    )


def _tag(key: str) -> str:
    """TensorBoard groups by what precedes a slash: reward_global -> reward/global."""
    group, _, rest = key.partition("_")
    return f"{group}/{rest}" if group in TAGS and rest else f"train/{key}"


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return value.item()
    return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _rows(values: Any) -> Any:
    return values.tolist() if isinstance(values, torch.Tensor) else values
