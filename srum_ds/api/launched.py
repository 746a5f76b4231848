"""A run of several ranks from Python: `srum-ds train` in a process of its own, whose steps are followed in its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import STOPPED, STOPPED_BY_WATCH, WRONG_INPUT, Crash, UserError
from srum_ds.common.texts import parse_json
from srum_ds.config import ROOT, Config, save_config
from srum_ds.monitoring.records import METRICS

_POLL = 0.2
_LAST_LINES = 20
OnStep = Callable[[Mapping[str, Any]], bool]


def run_launched(cfg: Config, on_step: OnStep) -> int:
    """Trains with ``deepspeed.ranks`` ranks; returns the exit status, of 0 and those of a run that stopped.

    on_step: called here with each new line of ``metrics.jsonl``; the run is asked to stop where it says so, and so it
    is by Ctrl-C. What the ranks print is printed. Raises UserError with what the command says is wrong, and Crash where
    it fails otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="srum-ds-") as scratch:
        recipe = Path(scratch) / "config.yaml"
        save_config(cfg, recipe)
        command = [sys.executable, "-m", "srum_ds", "train", str(recipe)]
        return follow(command, Path(cfg.run.dir) / METRICS, on_step)


def follow(command: Sequence[str], metrics: Path, on_step: OnStep) -> int:
    """``run_launched`` of any command that writes its steps to the file ``metrics``."""
    place = metrics.stat().st_size if metrics.exists() else 0
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        list(command),
        env=dict(os.environ) | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Ctrl-C comes to it from here alone.
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    printer = threading.Thread(target=_print, args=(process, last), name="launched", daemon=True)
    printer.start()
    while True:
        try:
            ended = _has_ended(process)
            place, records = _new_lines(metrics, place)
            if any([on_step(record) for record in records]) and not ended:
                process.send_signal(signal.SIGTERM)
            if ended:
                break
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    printer.join()
    status = process.returncode
    if status in (0, STOPPED, STOPPED_BY_WATCH):
        return status
    said = [line for line in last if line.startswith("srum-ds: ")]
    if status == WRONG_INPUT and said:
        raise UserError(said[-1].removeprefix("srum-ds: "))
    raise Crash("\n".join([f"the run ended with status {status}; it said last:", *last]), status)


def _has_ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(_POLL)
    except subprocess.TimeoutExpired:
        return False
    return True


def _new_lines(path: Path, place: int) -> tuple[int, list[dict[str, Any]]]:
    """Where the file was read to, and the whole lines behind ``place``; a run that goes on may have cut it shorter."""
    if not path.exists():
        return place, []
    size = path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(min(place, size))
        whole = stream.read().rpartition(b"\n")[0]
    if not whole:
        return min(place, size), []
    return min(place, size) + len(whole) + 1, [parse_json(line) for line in whole.split(b"\n")]


def _print(process: subprocess.Popen[str], last: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        last.append(line.rstrip("\n"))
        print(line, end="", flush=True)
