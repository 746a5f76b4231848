"""The documented ways to start a run, and what stands of a job at a moment: its processes by role, its words."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from tests.chaos import hook
from tests.support.launching import TOOLS, environment, free_port, variables_of_ranks
from tests.support.paths import ROOT
from tests.support.ranks import TRAIN, become, server

SITE = Path(__file__).parent / "site"
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

RANKS = "ranks"
"""Ranks without a launcher, as Slurm's srun starts them; forked from a process that has the libraries."""
COMMAND = "srum-ds train"
SHELL = "bash launch/train.sh"
DEEPSPEED = "deepspeed launch/train.sh"
EVALUATION = "srum-ds eval"
LAUNCHED = (COMMAND, SHELL, DEEPSPEED)


@dataclass
class Job:
    """A job that was started: ``poll`` gives the statuses of what was started (negative after a signal)."""

    door: str
    name: str
    log: Path
    poll: Callable[[], list[int | None]]
    own: list[int]
    began: float = field(default_factory=time.monotonic)
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def statuses(self) -> list[int | None]:
        """The statuses of what was started; None of what runs."""
        return self.poll()

    def has_ended(self) -> bool:
        """Whether everything that was started has ended; what it started in turn may still be there."""
        return all(status is not None for status in self.poll())

    def look(self) -> None:
        """Notes the processes that belong to the job now: whoever loses its parent is found no more."""
        for pid in [*self.own, *list(self.seen)]:
            with suppress(psutil.Error):
                top = psutil.Process(pid)
                for process in [top, *top.children(recursive=True)]:
                    self.seen.setdefault(process.pid, process)

    def left(self) -> list[psutil.Process]:
        """Processes of the job that run (or are stopped)."""
        found = []
        for process in self.seen.values():
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def processes(self, role: str) -> list[psutil.Process]:
        """The processes of a role.

        ``rank``; ``node``, DeepSpeed's launcher on a node; ``front``, what was started; ``child``, a helper of that.
        """
        self.look()
        if role == "child":
            return [process for process in self.left() if process.pid not in self.own and not _is_python_s(process)]
        if role == "front" or (role == "rank" and self.door == RANKS):
            return [process for process in self.left() if process.pid in self.own]
        found = []
        for process in self.left():
            with suppress(psutil.Error):
                words = process.cmdline()
                if role == "node" and "deepspeed.launcher.launch" in words:
                    found.append(process)
                if role == "rank" and self.name in " ".join(words) and "RANK" in process.environ():
                    found.append(process)
        return sorted(found, key=_rank_of) if role == "rank" else found

    def kill(self) -> None:
        """Ends everything of the job."""
        self.look()
        for process in self.left():
            with suppress(psutil.Error):
                process.kill()
        end = time.monotonic() + 20
        while (self.left() or not self.has_ended()) and time.monotonic() < end:
            time.sleep(0.02)


def start(door: str, ranks: int, words: Sequence[str], name: str, log: Path, more: Mapping[str, str]) -> Job:
    """Starts a run by a door. name: in the words of this job alone. more: variables on top of the usual ones."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), str(SITE), *_entry_points(log.parent.parent)])
    variables = environment(PYTHONPATH=path, **more)
    variables.pop("SRUM_DS_SUPERVISED", None)
    if door == RANKS:
        return _forked(ranks, words, name, log, variables)
    command = {
        COMMAND: [str(TOOLS / "srum-ds"), "train", *words, f"deepspeed.ranks={ranks}"],
        SHELL: ["bash", TRAIN, *words],
        DEEPSPEED: [str(TOOLS / "deepspeed"), "--num_gpus", str(ranks), "--master_port", free_port(), TRAIN, *words],
        EVALUATION: [str(TOOLS / "srum-ds"), "eval", *words],
    }[door]
    if door == SHELL:
        variables["NUM_RANKS"] = str(ranks)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_default_signals,
        )
    return Job(door, name, log, lambda: [process.poll()], [process.pid])


def _forked(ranks: int, words: Sequence[str], name: str, log: Path, variables: Mapping[str, str]) -> Job:
    log.touch()
    processes: list[BaseProcess] = []
    for own in variables_of_ranks(ranks):
        process = server().Process(target=_rank, args=({**variables, **own}, [TRAIN, *words], str(log)))
        process.start()
        processes.append(process)
    own_pids = [process.pid for process in processes if process.pid is not None]
    return Job(RANKS, name, log, lambda: [process.exitcode for process in processes], own_pids)


def _rank(variables: dict[str, str], argv: list[str], log: str) -> None:
    become(variables, log)
    os.setsid()
    _default_signals()
    hook.install()
    sys.argv = argv
    runpy.run_path(str(ROOT / argv[0]), run_name="__main__")


def _default_signals() -> None:
    """As from a terminal: whoever runs the campaign may have its own signals ignored."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_python_s(process: psutil.Process) -> bool:
    """Whether it is the process with which Python's multiprocessing clears up: it does none of the work."""
    with suppress(psutil.Error):
        return any("resource_tracker" in word for word in process.cmdline())
    return True


def _rank_of(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.environ().get("RANK", "0"))
    return 0


def _entry_points(folder: Path) -> list[str]:
    """A folder that registers what attaches to DeepSpeed's launchers, where the installed package is older."""
    if any(point.value.startswith("srum_ds.") for point in importlib.metadata.entry_points(group="torch.backends")):
        return []
    info = folder / "site" / "srum_ds_hook-0.dist-info"
    if not info.exists():
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: srum-ds-hook\nVersion: 0\n")
        (info / "entry_points.txt").write_text("[torch.backends]\nsrum_ds_hook = srum_ds.common.front_end:attach\n")
    return [str(info.parent)]
