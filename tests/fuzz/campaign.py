"""Handing many inputs to targets, in this process or in several, and what became of them.

It is a module of its own because the processes import what they run by its name.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import Maker
from tests.fuzz.targets import TARGETS

CHUNK = 500
SHOWN = 400


@dataclass
class Result:
    """What became of a target's inputs. escapes: by what was raised where, how often, and the shortest input."""

    inputs: int = 0
    read: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_input: str = ""
    escapes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def note(self, escape: str, shown: str, times: int = 1) -> None:
        """Counts an escape."""
        count, shortest = self.escapes.get(escape, (0, shown))
        self.escapes[escape] = (count + times, min(shortest, shown, key=len))

    def add(self, other: Result) -> None:
        """Takes another part of the same target in."""
        self.inputs += other.inputs
        self.read += other.read
        self.seconds += other.seconds
        if other.slowest > self.slowest:
            self.slowest, self.slowest_input = other.slowest, other.slowest_input
        for escape, (count, shown) in other.escapes.items():
            self.note(escape, shown, count)


def run_chunk(work: tuple[str, int, int, int]) -> tuple[str, Result]:
    """Inputs ``first`` to ``last`` - 1 of a target."""
    name, seed, first, last = work
    target, result = TARGETS[name], Result()
    warnings.simplefilter("ignore")
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as folder:
        for number in range(first, last):
            case = target.make(Maker(random.Random(f"{seed} {name} {number}")))
            start = time.process_time()
            try:
                result.read += target.accepts(case, Path(folder))
            except (Exception, RecursionError) as error:
                result.note(where(error), f"#{number}: {error!r:.200} <- {case!r}")
            took = time.process_time() - start
            result.inputs += 1
            result.seconds += took
            if took > result.slowest:
                result.slowest, result.slowest_input = took, f"#{number}: {case!r}"[:SHOWN]
            if took > target.seconds:
                result.note(f"took more than {target.seconds} s", f"#{number}: {case!r}")
    return name, result


def where(error: BaseException) -> str:
    """The kind of an error and the line of ours that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/srum_ds/" in frame.filename] or list(frames)
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno} ({frames[-1].name})"


def chunks(names: list[str], inputs: int, seed: int) -> Iterator[tuple[str, int, int, int]]:
    """The work by shares, all targets' turns mixed, so that a run that is stopped has seen each."""
    total = sum(TARGETS[name].share for name in names)
    # Rounded up: at least as many inputs as were asked for.
    counts = {name: int(inputs * TARGETS[name].share / total) + 1 for name in names}
    starts = [(first / counts[name], name, first) for name in names for first in range(0, counts[name], CHUNK)]
    for _, name, first in sorted(starts):
        yield name, seed, first, min(first + CHUNK, counts[name])


def run(
    names: list[str], inputs: int, seed: int, workers: int, seconds: float = math.inf, told: bool = False
) -> dict[str, Result]:
    """All of it, in this process or in several, or what is done within ``seconds``. told: prints each tenth."""
    results = {name: Result() for name in names}
    work = list(chunks(names, inputs, seed))
    end = time.monotonic() + seconds
    pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else None
    with pool or nullcontext():
        parts = map(run_chunk, work) if pool is None else pool.imap_unordered(run_chunk, work)
        for number, (name, part) in enumerate(parts, 1):
            results[name].add(part)
            if told and number * 10 // len(work) > (number - 1) * 10 // len(work):
                print(
                    f"{100 * number // len(work)} %: {sum(result.inputs for result in results.values())} inputs",
                    flush=True,
                )
            if time.monotonic() > end:
                break
    return results


def record(results: dict[str, Result], seed: int, wall: float) -> dict[str, Any]:
    """The run as JSON."""
    return {
        "seed": seed,
        "inputs": sum(result.inputs for result in results.values()),
        "escapes": sum(count for result in results.values() for count, _ in result.escapes.values()),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(sum(result.seconds for result in results.values()), 1),
        "targets": {
            name: {
                "inputs": result.inputs,
                "read": result.read,
                "refused": result.inputs - result.read,
                "escapes": {escape: list(said) for escape, said in result.escapes.items()},
                "mean_ms": round(1000 * result.seconds / max(result.inputs, 1), 3),
                "slowest_ms": round(1000 * result.slowest, 1),
            }
            for name, result in results.items()
        },
    }
