"""This process's anonymous memory: what it holds itself, mapped files apart."""

from __future__ import annotations

import ctypes
import gc
import threading
from pathlib import Path
from types import TracebackType

_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """RssAnon. (maxrss would count the pages of mapped checkpoint files, which cost nothing.)"""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no RssAnon")


class Peak:
    """Samples anonymous memory in a thread: ``before`` at entry, ``highest`` inside, ``after`` at exit."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Peak:
        gc.collect()
        # Pages that malloc keeps from earlier work would hide as much of what follows.
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self.highest = anonymous_bytes()
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(self.seconds):
            self.highest = max(self.highest, anonymous_bytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.after = anonymous_bytes()
        self.highest = max(self.highest, self.after)

    def figures(self) -> dict[str, int]:
        """Bytes above ``before``: the peak and what stayed."""
        return {"peak": self.highest - self.before, "stayed": self.after - self.before}
