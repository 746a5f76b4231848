"""Kinds of fault that strike processes: killed, asked to stop, stopped for ever or for a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random

import psutil

from tests.chaos.doors import COMMAND, DEEPSPEED, EVALUATION, LAUNCHED, RANKS, SHELL, STOPS, Job
from tests.chaos.fault import Fault
from tests.chaos.moments import EVALUATION as WITHIN
from tests.chaos.moments import EXPORT, SAVE, START, STEP, Moment
from tests.chaos.verdict import HUNG, STOPPED, Expected
from tests.chaos.workshop import BEGUN, FINISHED, FRESH, HALF, STEPS, Workshop

KILLED = -signal.SIGKILL
# As DeepSpeed's launcher and a shell say that a process was killed.
KILLED_BELOW = (247, 137)


def kill(rng: Random, shop: Workshop) -> Fault:
    """kill -9 of one rank, all ranks, a node's launcher, or what was started."""
    door, ranks = _door(rng)
    role, count = _target(rng, door, ranks)
    source, moment = _moment(rng, shop, door)
    # What is left says that a rank is gone (1), that it waited for it (77), or saved and stopped (75).
    statuses = (KILLED, *KILLED_BELOW, 1, HUNG, STOPPED)
    return Fault(
        "kill",
        f"kill -9 of {_called(role, count, ranks)}",
        Expected(statuses),
        door,
        ranks,
        source,
        moment,
        role,
        _sender(rng, signal.SIGKILL, count),
        extra_limit=8 * shop.unit,
    )


def stop(rng: Random, shop: Workshop) -> Fault:
    """SIGTERM, SIGINT, SIGHUP or SIGUSR1 to any process of a job, at any moment."""
    door, ranks = _door(rng)
    role, count = _target(rng, door, ranks)
    source, moment = _moment(rng, shop, door)
    number = rng.choice(STOPS)
    statuses = [STOPPED]
    if moment.place == START and role == "rank":
        # A rank is asked before it can listen, and nobody tells the others.
        statuses += [-number, 256 - number, 128 + number, 1, HUNG]
    return Fault(
        "stop",
        f"{number.name} to {_called(role, count, ranks)}",
        Expected(tuple(statuses)),
        door,
        ranks,
        source,
        moment,
        role,
        _sender(rng, number, count),
        extra_limit=8 * shop.unit,
    )


def freeze(rng: Random, shop: Workshop) -> Fault:
    """SIGSTOP of one of two ranks, for ever."""
    door = rng.choice([RANKS, RANKS, RANKS, COMMAND])
    source, moment = _moment(rng, shop, door)
    return Fault(
        "freeze",
        "SIGSTOP of a rank for ever",
        Expected((HUNG, 1), named=("rank",)),
        door,
        2,
        source,
        moment,
        "rank",
        _sender(rng, signal.SIGSTOP, 1),
        extra_limit=8 * shop.unit,
    )


def pause(rng: Random, shop: Workshop) -> Fault:
    """SIGSTOP of any process for a few seconds."""
    door, ranks = _door(rng)
    role, count = _target(rng, door, ranks)
    source, moment = _moment(rng, shop, door)
    seconds = rng.uniform(1, 0.6 * shop.unit)
    return Fault(
        "pause",
        f"SIGSTOP of {_called(role, count, ranks)} for {seconds:.1f} s",
        Expected(at_once=True, lost=0),
        door,
        ranks,
        source,
        moment,
        role,
        _sender(rng, signal.SIGSTOP, count, seconds),
    )


def evaluation(rng: Random, shop: Workshop) -> Fault:
    """kill -9 or a request to stop, at any moment of `srum-ds eval`."""
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    helper = rng.random() < 0.4
    role = "child" if helper and number == signal.SIGKILL else "front"
    statuses = (-number, 128 + number, STOPPED, 1, 2)
    return Fault(
        "evaluation",
        f"{number.name} to {'a helper of' if role == 'child' else ''} `srum-ds eval`".replace("  ", " "),
        Expected(statuses, named=("ended",)),
        EVALUATION,
        1,
        FINISHED,
        # A helper is there after a while, and for a while.
        Moment(WITHIN, delay=rng.uniform(0.0, (0.2 if role == "child" else 0.9) * shop.evaluation)),
        role,
        _sender(rng, number, 1),
    )


def _door(rng: Random) -> tuple[str, int]:
    door = rng.choice([RANKS] * 5 + [COMMAND, COMMAND, SHELL, DEEPSPEED, DEEPSPEED])
    return door, rng.choice([1, 2]) if door in (RANKS, COMMAND) else 2


def _target(rng: Random, door: str, ranks: int) -> tuple[str, int]:
    """(role, how many of it: 0 for all)."""
    if door not in LAUNCHED:
        return "rank", rng.choice([0, 1, 1]) if ranks > 1 else 1
    return rng.choice([("rank", 1), ("rank", 0), ("node", 1), ("node", 1), ("front", 1), ("front", 1)])


def _called(role: str, count: int, ranks: int) -> str:
    if role == "rank":
        return "all ranks" if count == 0 and ranks > 1 else "a rank"
    return {"node": "the launcher of a node", "front": "what was started"}[role]


def _moment(rng: Random, shop: Workshop, door: str) -> tuple[str, Moment]:
    """(what run there is before, the moment)."""
    place = rng.choice([START, STEP, STEP, SAVE, SAVE, EXPORT])
    source = rng.choice([FRESH, BEGUN])
    first = HALF if source == BEGUN else 0
    if place == START:
        return source, Moment(START, delay=rng.uniform(0.0, 0.4 * shop.unit if door == RANKS else shop.unit))
    if place == EXPORT:
        return source, Moment(EXPORT, delay=rng.uniform(0.0, 0.1))
    step = rng.randrange(first + 1, STEPS)
    return source, Moment(place, step, rng.uniform(0.0, 0.4 if place == STEP else 0.15))


def _sender(rng: Random, number: int, count: int, seconds: float | None = None) -> Callable[[Job, str], str]:
    """Sends a signal to ``count`` processes of the role (0: all); where ``seconds`` is given, SIGCONT after them."""
    drawn = rng.random()

    def send(job: Job, role: str) -> str:
        there = job.processes(role)
        chosen = there if count == 0 else [there[int(drawn * len(there))]] if there else []
        for process in chosen:
            with suppress(psutil.Error):
                os.kill(process.pid, number)
        if seconds is not None:
            time.sleep(seconds)
            for process in chosen:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
        return f"to {len(chosen)} of {len(there)}"

    return send
