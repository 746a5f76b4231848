"""What a user sees while a run runs: messages above one status line on a terminal, plain lines elsewhere; and run.log.

``Monitor`` shows a run by a ``Screen``; so does the process that started the ranks, by ``monitoring.relay``.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console, RenderableType

LOG = "run.log"
"""In a run's folder: every line that its user saw, and the launcher's; a call that goes on appends to it."""
CONSOLE = "SRUM_DS_CONSOLE"
"""Set for ranks whose printing another process shows and logs: ``terminal`` or ``lines``."""
LOG_ONLY = "\x1f"
"""Begins a line that such a process logs and does not show: the terminal's status line says it already."""
_REDRAW = 0.5


class RunLog:
    """Appends lines to ``run.log``, each with the time of day; a disk that refuses ends nothing."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Says that a call begins."""
        self.line(f"---- {time.strftime('%Y-%m-%d %H:%M:%S %z')} ----")

    def line(self, text: str) -> None:
        """One line, or several."""
        now = time.strftime("%H:%M:%S")
        with self._lock, suppress(OSError):
            # Opened anew: who moves the folder, or rotates the log, is not written into.
            if self.path.parent.is_dir():
                with open(self.path, "a", encoding="utf-8", errors="replace") as stream:
                    stream.write("".join(f"{now} {part}\n" for part in text.rstrip("\n").split("\n")))


class Screen:
    """Messages and, on a terminal, one status line below them, redrawn twice a second.

    status: gives the line for a width, None for none. log: also takes every message. A stream whose reader went away
    ends nothing.
    """

    def __init__(
        self, console: Console, status: Callable[[int], str | None] | None = None, log: RunLog | None = None
    ) -> None:
        self.console = console
        self.log = log
        self._status = status if console.is_terminal else None
        self._lock = threading.RLock()
        self._drawn = False
        self._shown = ""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> bool:
        """Whether there is a status line."""
        return self._status is not None

    def message(self, text: str) -> None:
        """One line, or several, above the status line."""
        if self.log is not None:
            self.log.line(text)
        self._above(self._rendered(lambda to: to.print(text, highlight=False, markup=False, soft_wrap=True)))

    def show(self, what: RenderableType) -> None:
        """Something of rich's, such as a table, above the status line."""
        if self.log is not None:
            self.log.line(self._rendered(lambda to: to.print(what), styled=False))
        self._above(self._rendered(lambda to: to.print(what)))

    def beside(self, stream: IO[str], text: str) -> None:
        """A line on another stream, such as stderr, which may be the same terminal."""
        with self._lock:
            drawn = self._drawn
            self._clear()
            with suppress(OSError, ValueError):
                stream.write(text + "\n")
                stream.flush()
            if drawn and not self._done.is_set():
                self._draw()

    def redraw(self) -> None:
        """Draws the status line anew; begins to do so by itself."""
        if self._status is None or self._done.is_set():
            return
        with self._lock:
            self._draw()
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="screen", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Takes the status line away; messages may follow."""
        self._done.set()
        with self._lock:
            self._clear()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2 * _REDRAW)
        self._thread = None

    def _go_on(self) -> None:
        while not self._done.wait(_REDRAW):
            with self._lock:
                if not self._done.is_set():
                    self._draw()

    def _rendered(self, work: Callable[[Console], None], styled: bool = True) -> str:
        """What ``work`` prints. Not to the stream itself: rich ends the process where its reader went away."""
        written = io.StringIO()
        of = self.console
        work(
            Console(
                file=written,
                width=of.width,
                force_terminal=of.is_terminal and styled,
                color_system="standard" if of.color_system and styled else None,
            )
        )
        return written.getvalue()

    def _above(self, text: str) -> None:
        with self._lock:
            drawn = self._drawn
            self._clear()
            self._raw(text)
            if drawn and not self._done.is_set():
                self._draw()

    def _clear(self) -> None:
        if self._drawn:
            self._drawn = False
            self._raw("\r\x1b[2K")

    def _draw(self) -> None:
        line = None if self._status is None else self._status(self.console.width)
        if line is None:
            self._clear()
        elif not (self._drawn and line == self._shown):
            self._raw(f"\r\x1b[2K{line}")
            self._drawn, self._shown = True, line

    def _raw(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self.console.file.write(text)
            self.console.file.flush()
