"""Which processes above a rank are its launchers, and what they leave it when they go."""

from __future__ import annotations

import os
import signal

import pytest

from srum_ds.common import foreign, stopping
from srum_ds.common.stopping import launchers_above, still_stand

ABOVE = {
    9: (8, "python -u -m deepspeed.launcher.launch --world_info=x launch/train.sh"),
    8: (7, "python /venv/bin/deepspeed launch/train.sh"),
    7: (6, "python /venv/bin/srum-ds train"),
    6: (5, "bash"),
    5: (4, "sshd: srum-ds"),
}


def test_launchers_end_at_the_first_process_that_is_none() -> None:
    """A login shell may go while its job runs on."""
    assert launchers_above(ABOVE.get, 9) == [(9, 8), (8, 7), (7, 6)]


def test_a_process_of_its_own_has_no_launcher() -> None:
    assert launchers_above(ABOVE.get, 6 + 100) == []


def test_a_lost_parent_is_noticed() -> None:
    parent = os.getppid()
    assert still_stand([(os.getpid(), parent)])
    assert not still_stand([(os.getpid(), parent + 1)])


def test_ignored_signals_stay_ignored() -> None:
    """`nohup` has SIGHUP ignored, a shell's background SIGINT."""
    kept = {number: signal.getsignal(number) for number in stopping.STOP_SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before = stopping.handle_stops(lambda *_: None)
        assert signal.SIGHUP not in before and signal.SIGUSR1 in before
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_every_stop_signal_asks() -> None:
    kept = {number: signal.getsignal(number) for number in stopping.STOP_SIGNALS}
    try:
        for number in stopping.STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
            asked = stopping.StopSignal()
            assert not asked.asked
            signal.raise_signal(number)
            assert asked.asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_a_second_ctrl_c_of_a_notebook_interrupts_whatever_runs() -> None:
    """Code of the user's that hangs too; a run of a launcher, whose ranks it ends, takes it for the same request."""
    kept = {number: signal.getsignal(number) for number in stopping.STOP_SIGNALS}
    try:
        asked = stopping.StopSignal()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        asked.interrupts = True
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            foreign.run("judge.external=x:y", lambda: signal.raise_signal(signal.SIGINT))
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = foreign.Thread("other").submit(stopping.StopSignal)
    assert done.result(10).asked is False and signal.getsignal(signal.SIGINT) is before
