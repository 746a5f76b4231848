"""What a rank says of an error that is nobody's message, and with which status it ends."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from srum_ds.common import heartbeats
from srum_ds.common.errors import STOPPED, WRONG_INPUT, guarded
from srum_ds.common.heartbeats import Heartbeat
from srum_ds.config.limits import LimitsConfig
from srum_ds.monitoring import watchdog
from srum_ds.monitoring.watchdog import watched


def end_after(peer: int | None, run: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The status of rank 0 whose peer, rank 1, has ended with this status and closed its connections."""
    monkeypatch.setattr(watchdog, "_SILENT", 0.01)
    gone = Heartbeat(1, os.getpid(), socket.gethostname(), "init", 0, 0, 1.0, 5, time.time(), peer)

    def work() -> None:
        with watched(run, 0, LimitsConfig()):
            heartbeats.write(run / heartbeats.FOLDER, gone)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:535] Connection closed by peer [127.0.0.1]:5")

    return guarded(work)


@pytest.mark.parametrize("status", [WRONG_INPUT, STOPPED])
def test_a_rank_ends_as_the_one_that_it_needs_and_that_says_why(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rank's disk does not answer: the whole job ends with 2, whichever rank the launcher asks."""
    assert end_after(status, tmp_path, monkeypatch) == status
    said = capsys.readouterr().err
    assert f"rank 1 (process {os.getpid()}" in said and f"with status {status}" in said and "says why itself" in said
    assert "Traceback" not in said and "failed" not in said
    assert heartbeats.read(tmp_path / heartbeats.FOLDER)[0].status == status


def test_a_rank_that_lost_another_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_after(1, tmp_path, monkeypatch) == 1
    assert "rank 0 failed in phase init of step 0: it needs another one; rank 1" in capsys.readouterr().err
