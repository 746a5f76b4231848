"""A rank that stops, hangs or leaves ends the other one, by name and with the stacks of both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from srum_ds.common.errors import HUNG
from tests.support.paths import ROOT
from tests.support.ranks import start_ranks
from tests.support.runs import short_run, write_prompts

RANK = """
import os, sys, time
from pathlib import Path
from srum_ds.common.errors import guarded
from srum_ds.common.phases import PHASES
from srum_ds.config.limits import LimitsConfig
from srum_ds.monitoring.watchdog import watched

def work():
    run, rank, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with watched(run, rank, LimitsConfig(grace_seconds=2, first_seconds=40, train=2)) as dog:
        PHASES.enter("data", 1)
        PHASES.enter("judge")
        dog.beat()
        (run / f"ready{rank}").touch()
        if what == "leave":
            sys.exit(0)
        while what == "hang":
            time.sleep(0.1)
        PHASES.enter("train")
        while what == "wait":
            time.sleep(0.1)

sys.exit(guarded(work))
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def start(run: Path, rank: int, what: str, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(run), str(rank), what],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    deadline = time.monotonic() + 30
    while not (run / f"ready{rank}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_a_stopped_rank_is_named(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    other = start(tmp_path, 1, "hang", started)
    other.send_signal(signal.SIGSTOP)
    first = start(tmp_path, 0, "wait", started)
    _, said = first.communicate(timeout=30)
    assert first.returncode == HUNG
    assert f"rank 1 (process {other.pid}" in said and "has stopped in phase judge of step 1" in said
    assert "Traceback" not in said
    assert other.wait(timeout=30) == HUNG
    for rank in (0, 1):
        assert "most recent call first" in (tmp_path / "crash" / f"rank_{rank}.txt").read_text()


def test_a_rank_that_leaves_is_named(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    """Status 0 in the middle of a run is no end: the rank itself says so."""
    other = start(tmp_path, 1, "leave", started)
    _, said_by_it = other.communicate(timeout=30)
    assert other.returncode == 1
    assert "rank 1 failed in phase judge of step 1: SystemExit: 0" in said_by_it and "Traceback" not in said_by_it
    first = start(tmp_path, 0, "wait", started)
    _, said = first.communicate(timeout=30)
    assert first.returncode == HUNG
    assert "rank 1 (process" in said and "has ended with status 1 in phase judge of step 1" in said


def test_a_stop_before_the_first_step(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    rank = start(tmp_path, 0, "hang", started)
    rank.send_signal(signal.SIGUSR1)
    assert rank.wait(timeout=30) == 75


HELPER = "import time; from srum_ds.common.stopping import end_with_parent; end_with_parent(0.1); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {HELPER!r}])
time.sleep(2)
print(child.pid, flush=True)
time.sleep(60)
"""


# The helper of a pool, whose parent ends while it still imports what it needs.
YOUNG = """
import multiprocessing, time
from srum_ds.common.stopping import end_with_parent

def work():
    time.sleep(2)
    end_with_parent(0.1)
    time.sleep(60)

if __name__ == "__main__":
    helper = multiprocessing.get_context("spawn").Process(target=work)
    helper.start()
    print(helper.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("program", [PARENT, YOUNG], ids=["working", "starting"])
def test_a_helper_ends_with_a_killed_parent(program: str, tmp_path: Path) -> None:
    file = tmp_path / "parent.py"
    file.write_text(program)
    parent = subprocess.Popen(
        [sys.executable, str(file)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    helper = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    # Not read to its end: the helper holds it too.
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_stopped_rank_ends_a_rollout(tmp_path: Path) -> None:
    """Two ranks draw ahead of training; one is stopped in its second step, while the other waits for it."""
    out = tmp_path / "rollouts"
    recipe = short_run(write_prompts(tmp_path / "prompts", 8), tmp_path / "run", "train.steps=400")
    short = ["limits.save=4", "limits.rollout=30", "limits.judge=30", "limits.init=120"]
    ranks = start_ranks(2, ["rollout", str(out), *recipe, *short], "srum_ds/rollouts/worker.py")
    try:
        index = out / "index.jsonl"
        while not (index.exists() and index.read_text().count("\n") >= 2):
            assert ranks.running(), ranks.printed[-3000:]
            time.sleep(0.05)
        stopped = ranks.processes[1].pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        statuses = ranks.wait(60)
        assert time.monotonic() - began < 40
    finally:
        ranks.kill()
    said = " ".join(ranks.printed.split())
    assert statuses == [HUNG, HUNG]
    assert "rank 0 has been in phase save of step" in said and f"rank 1 (process {stopped}" in said
    assert "has stopped in phase" in said and "Traceback" not in said
    for rank in (0, 1):
        assert "most recent call first" in (out / "crash" / f"rank_{rank}.txt").read_text()
