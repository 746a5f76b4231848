"""Faults inside a rank's process: calls of the file system that fail, and limits of the system.

``site/sitecustomize.py`` installs them in ranks that a launcher starts, ``doors`` in forked ones. Only the standard
library is imported here: this runs before anything else of a process.
"""

from __future__ import annotations

import builtins
import fnmatch
import io
import json
import os
import resource
from typing import Any

VARIABLE = "CHAOS_HOOK"
"""Holds the faults of a job as JSON: {"ranks": [0], "read": {...}, "write": {...}, "file_bytes": n}."""


def install() -> None:
    """Installs the faults that this process's environment asks for; nothing in processes that are no rank."""
    rank = os.environ.get("RANK")
    text = os.environ.get(VARIABLE)
    if rank is None or not text:
        return
    wanted = json.loads(text)
    if int(rank) not in wanted["ranks"]:
        return
    if "file_bytes" in wanted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["file_bytes"], wanted["file_bytes"]))
    if "read" in wanted:
        _failing_reads(_Counted(wanted["read"]))
    if "write" in wanted:
        _failing_writes(wanted["write"]["call"], _Counted(wanted["write"]))


class _Counted:
    """Raises OSError(errno) at the ``nth`` call about a file whose name fits ``name``, and at each one after it."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.name: str = wanted["name"]
        self.errno: int = wanted["errno"]
        self.left: int = wanted["nth"]

    def see(self, path: Any) -> None:
        """Notes a call."""
        if isinstance(path, bytes) or not isinstance(path, (str, os.PathLike)):
            return
        if fnmatch.fnmatch(os.path.basename(os.fspath(path)), self.name):
            self.left -= 1
            if self.left <= 0:
                raise OSError(self.errno, os.strerror(self.errno), os.fspath(path))


def _failing_reads(fault: _Counted) -> None:
    before = io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            fault.see(file)
        return before(file, mode, *rest, **named)

    io.open = opened
    builtins.open = opened


def _failing_writes(call: str, fault: _Counted) -> None:
    """call: ``replace`` and ``rename`` (by the target's name), ``fsync`` (by any name: it has none), or ``open``."""
    if call == "open":
        before_open = io.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if set(mode) & set("wax+"):
                fault.see(file)
            return before_open(file, mode, *rest, **named)

        io.open = opened
        builtins.open = opened
        return
    before = getattr(os, call)

    def failing(*words: Any, **named: Any) -> Any:
        fault.see(words[1] if call in ("replace", "rename") else fault.name)
        return before(*words, **named)

    setattr(os, call, failing)
