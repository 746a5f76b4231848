"""Runs parts one after another, each in a process of its own, and goes on whatever becomes of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.environment import ROOT
from tests.gpu.check.parts import Part

LEAST_SECONDS = 5.0
"""With less left of the total, a part is not begun."""

ERROR_LINES = 12


def run_parts(
    parts: Sequence[Part], out: Path, rehearse: bool, total_seconds: float, patience: float = 1.0
) -> list[dict[str, Any]]:
    """One line a part, in order: part, seconds, ok, device, figures, and where it failed the error's last lines.

    Each is printed and appended to ``out/parts.jsonl`` when its part ends; what parts print goes to ``out/log.txt``.
    patience: factor of every part's limit.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total_seconds
    lines: list[dict[str, Any]] = []
    with (out / "parts.jsonl").open("w", encoding="utf-8") as kept, (out / "log.txt").open("wb") as log:
        for part in parts:
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                line = _line(part, 0.0, False, {}, rehearse, ["not begun: the time of all parts was used up"])
            else:
                line = run_part(part, out, log, rehearse, min(part.seconds * patience, left))
            lines.append(line)
            text = json.dumps(line)
            print(text, flush=True)
            kept.write(text + "\n")
            kept.flush()
    return lines


def run_part(part: Part, out: Path, log: Any, rehearse: bool, seconds: float) -> dict[str, Any]:
    """Runs one part and, after so many seconds, ends it with all that it started; its line."""
    log.write(f"\n==== {part.name}\n".encode())
    log.flush()
    begin = log.tell()
    found = out / f"{part.name}.partial"
    found.unlink(missing_ok=True)
    words = [sys.executable, "-m", "tests.gpu.check.child", part.target, str(found)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*words, "--rehearse"] if rehearse else words,
        cwd=ROOT,
        env=environment(rehearse),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A group of its own, so that what it started ends with it.
        start_new_session=True,
    )
    problem = ""
    try:
        status = process.wait(timeout=seconds)
        if status:
            problem = f"exit status {status}"
    except subprocess.TimeoutExpired:
        problem = f"ended after {seconds:.0f} seconds, its limit"
    finally:
        _end(process)
    took = time.monotonic() - started
    figures = _figures(found)
    found.unlink(missing_ok=True)
    error = [problem, *_last_lines(Path(log.name), begin)] if problem else []
    return _line(part, took, not problem, figures, rehearse, error)


def environment(rehearse: bool) -> dict[str, str]:
    """The variables of a part: no launcher's, the repository importable, in a rehearsal kernels interpreted."""
    of_a_rank = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    made = {name: value for name, value in os.environ.items() if name not in of_a_rank}
    made["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [made.get("PYTHONPATH")])])
    made["PYTHONUNBUFFERED"] = "1"
    made.pop("TRITON_INTERPRET", None)
    if rehearse:
        made |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return made


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _figures(path: Path) -> dict[str, Any]:
    """What a part noted before it ended; of a line that was being written nothing."""
    found: dict[str, Any] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found |= json.loads(line)
            except ValueError:
                continue
    return found


def _last_lines(path: Path, begin: int) -> list[str]:
    with path.open("rb") as log:
        log.seek(begin)
        said = log.read().decode("utf-8", "replace")
    return [line for line in said.splitlines() if line.strip()][-ERROR_LINES:]


def _line(
    part: Part, seconds: float, ok: bool, figures: dict[str, Any], rehearse: bool, error: list[str]
) -> dict[str, Any]:
    made: dict[str, Any] = {"part": part.name, "seconds": round(seconds, 1), "ok": ok}
    if rehearse:
        made["rehearsal"] = True
    made |= {"device": figures.pop("device", None), "figures": figures}
    return made | ({"error": error} if error else {})
