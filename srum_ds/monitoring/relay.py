"""Shows and logs what the processes of a run print: all of it into ``run.log``, the launcher's own lines only there.

`srum-ds train` starts the ranks with pipes for both streams and follows them from threads. On a terminal it draws the
status line, from what rank 0 writes into the run's folder.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console

from srum_ds.common import heartbeats
from srum_ds.common.stopping import LOG_FILE
from srum_ds.monitoring.console import CONSOLE, LOG_ONLY, RunLog, Screen
from srum_ds.monitoring.pace import duration
from srum_ds.monitoring.status import read_status, status_line

# Statuses that the ranks have explained themselves: done, wrong input, stopped, stopped by the watch, hung.
_EXPLAINED = ("0", "2", "75", "76", "77")
_LEVEL = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+\] \[(INFO|WARNING|DEBUG)\] \[")
_ENDED = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+\] \[ERROR\] \[launch\.py:.*exits with return code = -?(\d+)\s*$")
_NATIVE = re.compile(r"^(\[rank\d+\]:)?\[[WI]\d{3,4} [\d:.]+ [\w./]+:\d+\]|^\[Gloo\] |^[WI]\d{4} [\d:.]+ +\d+ ")
_LIBRARIES = re.compile(
    r"^(Setting ds_accelerator to|Loading extension module|Time to load|ninja: |Using .* as PyTorch extensions root"
    r"|DeepSpeed deepspeed\.ops\.\S+ built successfully)"
)
_WARNED = re.compile(r"^\S+\.py:\d+: (Future|User|Deprecation|PendingDeprecation|Runtime)Warning: ")


class LauncherLines:
    """Tells the launcher's and the libraries' own lines of one stream from those that a user is to read."""

    def __init__(self) -> None:
        self._quoted = False

    def hides(self, line: str) -> bool:
        """Whether the next line of the stream is one of theirs: no error, and nothing of the run's."""
        quoted, self._quoted = self._quoted, False
        if quoted and line.startswith("  "):
            # The line of source code that Python quotes below a warning.
            return True
        if _WARNED.match(line) and "srum_ds" not in line.split(":")[0]:
            self._quoted = True
            return True
        ended = _ENDED.match(line)
        if ended is not None:
            return ended.group(1) in _EXPLAINED
        return any(pattern.match(line) for pattern in (_LEVEL, _NATIVE, _LIBRARIES))


class Relay:
    """Follows the two streams of a run's processes.

    verbose: show the launcher's lines too. out, err: where to.
    """

    def __init__(
        self,
        run_dir: Path,
        verbose: bool = False,
        out: Console | None = None,
        err: IO[str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.verbose = verbose
        self.log = RunLog(run_dir)
        self._began = time.time()
        self._clock = time.monotonic()
        self.screen = Screen(out or Console(), self._line)
        self._err = err or sys.stderr
        self._threads: list[threading.Thread] = []

    def environment(self) -> Mapping[str, str]:
        """What the processes are to know: who shows their lines, and how wide they may be."""
        known = {CONSOLE: "terminal" if self.screen.live else "lines", "PYTHONUNBUFFERED": "1"}
        known[LOG_FILE] = str(self.log.path.resolve())
        if self.screen.live:
            known["COLUMNS"] = str(self.screen.console.width)
        return known

    def follow(self, out: IO[bytes], err: IO[bytes]) -> None:
        """Begins."""
        self.log.begin()
        self.screen.redraw()
        for stream, work in ((out, self._out), (err, self._tell)):
            thread = threading.Thread(target=self._pump, args=(stream, work), name="relay", daemon=True)
            thread.start()
            self._threads.append(thread)

    def say(self, text: str) -> None:
        """A line of this process itself, on stderr."""
        self._tell(f"srum-ds: {text}")

    def close(self) -> None:
        """Ends when all is shown that was printed; a process that still holds a stream is not waited for."""
        deadline = time.monotonic() + 5
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.screen.close()

    def _pump(self, stream: IO[bytes], work: Callable[[str], None]) -> None:
        lines = LauncherLines()
        # A stream that is closed meanwhile has nothing more to say.
        with suppress(OSError, ValueError):
            for raw in iter(stream.readline, b""):
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                self.log.line(line.removeprefix(LOG_ONLY))
                if not line.startswith(LOG_ONLY) and (self.verbose or not lines.hides(line)):
                    work(line)

    def _out(self, line: str) -> None:
        self.screen.message(line)

    def _tell(self, line: str) -> None:
        self.screen.beside(self._err, line)

    def _line(self, width: int) -> str | None:
        """The status line: as rank 0 says, and until it has said anything, that the ranks start."""
        beat = heartbeats.read(self.run_dir / heartbeats.FOLDER).get(0)
        status = read_status(self.run_dir)
        if status is None or status.time < self._began or beat is None:
            return f"starting the ranks {duration(time.monotonic() - self._clock)}"[: width - 1]
        if status.over:
            return None
        seconds = beat.seconds + max(0.0, time.time() - beat.time)
        return status_line(status, beat.phase, seconds, width)
