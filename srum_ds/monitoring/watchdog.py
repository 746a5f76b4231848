"""Ends a rank that is too long in a phase, with its stack in ``crash/``, and says which rank the job waits for.

A thread of each rank writes its heartbeat once a second (``common.heartbeats``) and looks at its own phase. Where the
interpreter itself hangs, so that no thread runs, ``faulthandler`` ends the process a little later.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TextIO

from srum_ds.common import foreign, heartbeats
from srum_ds.common.errors import HUNG, STOPPED, WRONG_INPUT, Crash, UserError, concealed
from srum_ds.common.heartbeats import Cause, Heartbeat, blame, is_gone
from srum_ds.common.phases import PHASES, Phases, Stand, limit
from srum_ds.common.stopping import handle_stops
from srum_ds.config.limits import LimitsConfig

CRASH = "crash"
_ALARM = ".ended"
_BEAT = 1.0
# A rank whose file has not changed for so long gives no sign.
_SILENT = 3.5
# The interpreter's thread comes first; this is for an interpreter that hangs.
_LATER = 20.0
# For an export, which is a save, and for what a step is made of beside its phases.
_SETTING_OF = {"export": "save", "data": "rollout", "ahead": "rollout"}


class Watchdog:
    """Watches one rank of a run from ``start`` to ``stop``."""

    def __init__(self, run_dir: Path, rank: int, settings: LimitsConfig, phases: Phases = PHASES) -> None:
        self.run_dir = run_dir
        self.rank = rank
        self.settings = settings
        self.phases = phases
        self.beats = 0
        self._done = threading.Event()
        self._writing = threading.Lock()
        self._stacks: TextIO | None = None
        self._alarm_before: str | None = None

    def start(self) -> None:
        """Begins; the run's folder is there and is this job's."""
        self.phases.begin()
        self._alarm_before = self._alarm()
        self._open()
        self.beat()
        self.phases.on_change = self._arm
        # Said before it begins: code that ends the process leaves no time to say it after.
        foreign.on_enter = self.beat
        self._arm(self.phases.stand)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self, status: int) -> None:
        """Ends, and tells the others of this rank's exit status."""
        self._done.set()
        self.phases.on_change = foreign.on_enter = None
        faulthandler.cancel_dump_traceback_later()
        self.beat(status)
        if self._stacks is not None:
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()
            self._stacks = None
            with suppress(OSError):
                # Nothing is left where nothing has crashed.
                if self.stacks.stat().st_size == 0:
                    self.stacks.unlink()
                    self.stacks.parent.rmdir()

    def leave_nothing(self) -> None:
        """Takes this rank's word away after a good end, where a folder is to hold its results alone."""
        with suppress(OSError):
            folder = self.run_dir / heartbeats.FOLDER
            (folder / f"rank_{self.rank}.json").unlink()
            folder.rmdir()

    @property
    def stacks(self) -> Path:
        """Where this rank's stacks go; each crash adds to it."""
        return self.run_dir / CRASH / f"rank_{self.rank}.txt"

    def limit_of(self, stand: Stand) -> float:
        """Seconds that this rank may be where it stands."""
        own = getattr(self.settings, _SETTING_OF.get(stand.phase, stand.phase), None)
        known = self.phases.longest.get(stand.phase)
        return limit(known, own, self.settings.grace_seconds, self.settings.first_seconds)

    def beat(self, status: int | None = None) -> None:
        """Writes this rank's heartbeat."""
        with self._writing:
            self.beats += 1
            heartbeats.write(self.run_dir / heartbeats.FOLDER, self.word(status))

    def word(self, status: int | None) -> Heartbeat:
        """What this rank says of itself now."""
        stand = self.phases.stand
        return Heartbeat(
            rank=self.rank,
            pid=os.getpid(),
            host=socket.gethostname(),
            phase=stand.phase,
            step=stand.step,
            entered=stand.entered,
            seconds=round(time.monotonic() - stand.began, 3),
            beats=self.beats,
            time=time.time(),
            status=status,
            code=concealed(foreign.running()),
        )

    def explain(self, error: BaseException) -> Crash:
        """An error that is nobody's message as one paragraph; its stack is written to ``crash/``.

        Where another rank has ended first and says why itself (a wrong input, a request to stop), it has that status.
        """
        self.note(error)
        stand = self.phases.stand
        said = str(error).strip().splitlines() or [""]
        cause = self._blamed() if "DistBackendError" in type(error).__name__ or _is_lost_peer(said) else None
        here = f"in phase {stand.phase} of step {stand.step}"
        if cause is not None and cause.status in (WRONG_INPUT, STOPPED):
            return Crash(f"rank {self.rank} ends {here}: {cause.text}, and says why itself.", cause.status)
        what = f"{type(error).__name__}: {said[0][:300]}" if cause is None else f"it needs another one; {cause.text}"
        return Crash(
            f"rank {self.rank} failed {here}: {what}. Its stack stands in {self.stacks}; the same command goes on from "
            "the last checkpoint."
        )

    def note(self, error: BaseException) -> None:
        """Writes the stack of an error to ``crash/``."""
        if self._stacks is not None:
            self._head("failed")
            self._stacks.write(concealed("".join(traceback.format_exception(error))))

    # ---- the thread

    def _watch(self) -> None:
        while not self._done.wait(_BEAT):
            self._open()
            self.beat()
            stand = self.phases.stand
            spent = time.monotonic() - stand.began
            if spent > self.limit_of(stand):
                self._end(stand, spent)
            elif self._alarm() != self._alarm_before:
                self._leave("another rank has ended the job")

    def _end(self, stand: Stand, spent: float) -> None:
        cause = self._blamed()
        if self._done.is_set() or self.phases.stand is not stand or (cause is not None and cause.lives):
            # It came out of it while the others were asked, or waits for one that has limits of its own.
            return
        code = f", in {concealed(foreign.running())}," if foreign.running() else ""
        self._say(
            f"rank {self.rank} has been in phase {stand.phase} of step {stand.step}{code} for {spent:.0f} s, over its "
            f"limit of {self.limit_of(stand):.0f} s (limits.*)"
            + ("; no rank is further behind" if cause is None else f"; {cause.text}")
            + f". The job ends; stacks of all ranks: {self.run_dir / CRASH}. The same command goes on from the last "
            "checkpoint."
        )
        with suppress(OSError):
            (self.run_dir / CRASH / _ALARM).write_text(f"{os.getpid()} {time.time()}\n")
        self._wake_others()
        self._leave("over its limit")

    def _leave(self, why: str) -> None:
        if self._stacks is not None:
            self._head(why)
            faulthandler.dump_traceback(self._stacks, all_threads=True)
        self.beat(HUNG)
        sys.stderr.flush()
        os._exit(HUNG)

    def _blamed(self) -> Cause | None:
        folder = self.run_dir / heartbeats.FOLDER
        before = heartbeats.read(folder)
        time.sleep(_SILENT)
        self.beat()
        now = heartbeats.read(folder)
        return blame(self.rank, before, now, [rank for rank, beat in now.items() if is_gone(beat)])

    def _wake_others(self) -> None:
        """Has the ranks of this machine write their stacks, stopped ones and those that hang in C too."""
        for rank, beat in heartbeats.read(self.run_dir / heartbeats.FOLDER).items():
            if rank != self.rank and beat.host == socket.gethostname() and not is_gone(beat):
                with suppress(OSError):
                    os.kill(beat.pid, signal.SIGUSR2)
                    os.kill(beat.pid, signal.SIGCONT)

    def _alarm(self) -> str | None:
        try:
            return (self.run_dir / CRASH / _ALARM).read_text()
        except OSError:
            return None

    def _open(self) -> None:
        """Makes the two folders and opens the file of stacks, as soon as rank 0 has made the run's folder."""
        for name in (heartbeats.FOLDER, CRASH) if self._stacks is None else ():
            with suppress(OSError):
                (self.run_dir / name).mkdir(exist_ok=True)
        if self._stacks is None:
            with suppress(OSError):
                self._stacks = open(self.stacks, "a", buffering=1)  # noqa: SIM115 - the signal's handler writes there
                faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)

    def _arm(self, stand: Stand) -> None:
        if self._stacks is not None:
            faulthandler.dump_traceback_later(self.limit_of(stand) + _LATER, exit=True, file=self._stacks)

    def _head(self, why: str) -> None:
        stand = self.phases.stand
        if self._stacks is not None:
            now = datetime.now().isoformat(timespec="seconds")
            print(f"\n==== {now} rank {self.rank}, phase {stand.phase}, step {stand.step}: {why}", file=self._stacks)
            self._stacks.flush()

    def _say(self, text: str) -> None:
        print(f"\nsrum-ds: {text}", file=sys.stderr, flush=True)


def _is_lost_peer(said: list[str]) -> bool:
    """Whether an error is that of a collective whose other end went away."""
    text = said[0].lower()
    return any(word in text for word in ("gloo", "nccl", "connection closed", "connection reset", "timed out waiting"))


@contextmanager
def watched(run_dir: Path, rank: int, settings: LimitsConfig) -> Iterator[Watchdog]:
    """Watches this rank inside the block; an error that is nobody's message leaves it as a ``Crash``.

    Asked to stop, the process ends with status 75 at once; ``Job`` takes the signals over once there are steps.
    """
    dog = Watchdog(run_dir, rank, settings)

    def stop_at_once(number: int, frame: FrameType | None) -> None:
        heartbeats.write(run_dir / heartbeats.FOLDER, dog.word(STOPPED))
        os._exit(STOPPED)

    dog.start()
    before = handle_stops(stop_at_once)
    try:
        yield dog
    except UserError as error:
        if isinstance(error, foreign.ForeignError) and error.__cause__ is not None:
            dog.note(error.__cause__)
        dog.stop(2)
        raise
    except (Exception, SystemExit) as error:
        # Whoever ends the process inside a run, with status 0 at that, has not finished it.
        crash = dog.explain(error)
        dog.stop(crash.status)
        raise crash from error
    except BaseException:
        dog.stop(1)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
