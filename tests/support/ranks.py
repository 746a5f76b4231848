"""Ranks and commands forked from a server that has imported the libraries already: a third of the time of new ones.

What the launcher itself does (``deepspeed``, ``srum-ds train``) is tested with ``launching.launch`` instead.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.launching import environment, variables_of_ranks
from tests.support.paths import ROOT

# DeepSpeed imports torch's compiler with its optimizers, and BAGEL's adapter diffusers and transformers.
PRELOADED = [
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "srum_ds.train",
    "srum_ds.models.bagel.adapter",
    "srum_ds.models.blip3o.adapter",
    "srum_ds.models.janus.adapter",
    "srum_ds.models.showo.adapter",
    "srum_ds.models.vlm_dit.adapter",
    "srum_ds.commands.main",
]
TRAIN = "launch/train.sh"
GRACE_SECONDS = 30


class Forked:
    """Processes that were started together, and what they print."""

    def __init__(self, target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
        """One process an entry of ``arguments``; each is followed by the file that takes what it prints."""
        descriptor, name = tempfile.mkstemp(prefix="printed-")
        os.close(descriptor)
        self._printed = Path(name)
        context = server()
        self.processes = [context.Process(target=target, args=(*own, name), daemon=True) for own in arguments]
        for process in self.processes:
            process.start()

    def running(self) -> bool:
        """Whether any of them has not ended yet."""
        return any(process.is_alive() for process in self.processes)

    def wait(self, timeout: float = 500) -> list[int | None]:
        """Their exit statuses; where one fails, the others are ended some time later, as the launcher does."""
        deadline = time.monotonic() + timeout
        while self.running():
            failed = [process for process in self.processes if process.exitcode]
            if failed:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.01)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """kill -9 of every one of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    @property
    def printed(self) -> str:
        """What all of them have printed so far, to either stream."""
        return self._printed.read_text(errors="replace")


def start_ranks(ranks: int, words: list[str], script: str = TRAIN) -> Forked:
    """The ranks of a script, as the launcher would start them on one machine."""
    each = [environment(**own) for own in variables_of_ranks(ranks)]
    started = [[script, f"--local_rank={rank}", *words] for rank in range(ranks)]
    return Forked(_run_script, list(zip(each, started, strict=True)))


def run_ranks(ranks: int, words: list[str], script: str = TRAIN) -> str:
    """What the ranks of a script print until they end; they must end well."""
    return _ended_well(start_ranks(ranks, words, script))


def run_alone(words: list[str], script: str) -> str:
    """The same for a script in one process that is no rank."""
    return _ended_well(Forked(_run_script, [(environment(), [script, *words])]))


def srum_ds(*words: str, cwd: Path = ROOT) -> tuple[int | None, str]:
    """`srum-ds WORDS` in a folder: its exit status and what it prints to both streams."""
    forked = Forked(_run_command, [(environment(), list(words), cwd)])
    (status,) = forked.wait()
    return status, forked.printed


def kill_after(forked: Forked, run_dir: Path, lines: int, file: str = "metrics.jsonl") -> None:
    """kill -9 of every rank once ``file`` of the run (a line a step) has so many lines."""
    path = run_dir / file
    while forked.running():
        if path.exists() and path.read_text().count("\n") >= lines:
            forked.kill()
            return
        time.sleep(0.02)
    raise AssertionError(f"ended before {file} had {lines} lines:\n{forked.printed[-4000:]}")


def _ended_well(forked: Forked) -> str:
    statuses = forked.wait()
    assert statuses == [0] * len(statuses), f"{statuses}\n{forked.printed[-6000:]}"
    return forked.printed


def server() -> Any:
    """The context whose processes are forked from one with everything imported; it starts once per test process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    # What the libraries read when they are imported.
    os.environ.update(environment())
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def become(variables: dict[str, str], printed: str, cwd: Path = ROOT) -> None:
    """Makes this forked process one with these variables, that prints to a file and stands in a folder."""
    descriptor = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    # As in a process of its own: multiprocessing has its children ignore these.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run_script(variables: dict[str, str], argv: list[str], printed: str) -> None:
    become(variables, printed)
    sys.argv = argv
    runpy.run_path(str(ROOT / argv[0]), run_name="__main__")


def _run_command(variables: dict[str, str], words: list[str], cwd: Path, printed: str) -> None:
    become(variables, printed, cwd)
    from srum_ds.commands.main import main

    sys.exit(main(words))
