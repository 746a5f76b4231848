"""The console script as a user meets it: help, messages, exit statuses, files."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import srum_ds.commands.launcher as launcher
from tests.support.launching import command

COMMANDS = ["train", "doctor", "init", "eval", "ablate", "compare", "calibrate", "rollout", "rescore", "replay"]
COMMANDS += ["generate", "ask", "inspect", "check-adapter", "shards", "config"]
SLOW_IMPORTS = ("torch", "deepspeed", "transformers", "diffusers", "scipy", "omegaconf")


def test_help_lists_the_commands_and_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom srum_ds.commands.main import main\nstatus = main(['--help'])\n"
        f"slow = [name for name in {SLOW_IMPORTS!r} if name in sys.modules]\n"
        "sys.exit(f'imported {slow}' if slow else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


def test_users_error_is_a_message_and_status_2() -> None:
    done = command("config", "show", "launch/recipes/tiny.yaml", "train.stepz=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("srum-ds: unknown key 'train.stepz' on the command line.")
    assert "'train.steps'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["trian"], ["train", "--fast"], ["ask", "--model", "x"], ["shards", "check"]])
def test_wrong_arguments_are_status_2(words: list[str]) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize("command", ["show", "schema"])
def test_output_into_a_closed_pipe_is_no_error(command: str) -> None:
    # One fits the output buffer, so that the pipe breaks at the end; the other does not.
    code = f"import sys; from srum_ds.commands.main import main; sys.exit(main(['config', '{command}']))"
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


# Stands for `deepspeed`: front end -> per-node launcher -> rank, each waiting for the next. The rank
# takes SIGTERM as a request to save and end well, as the training loop does.
RANK = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "saved").write_text("")
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "started").write_text("")
time.sleep(60)
"""
NEXT = """
import os, subprocess, sys
environment = os.environ | ({"RANK": "0"} if len(sys.argv) == 4 else {})
sys.exit(subprocess.call([sys.executable, "-c"] + sys.argv[1:], env=environment))
"""


@pytest.mark.parametrize(
    "status, number",
    [(0, signal.SIGTERM), (3, signal.SIGINT), (75, signal.SIGHUP), (75, signal.SIGUSR1)],
)
def test_stops_reach_the_ranks_and_their_status_comes_back(tmp_path: Path, status: int, number: int) -> None:
    command = [sys.executable, "-c", NEXT, NEXT, RANK, str(tmp_path), str(status)]
    code = (
        "import os, sys; from srum_ds.commands.launcher import run_command; "
        f"sys.exit(run_command({command!r}, os.environ))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        # Asked before there is a rank, it ends at once: nothing has begun.
        deadline = time.monotonic() + 240
        while not (tmp_path / "started").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=30) == status
    finally:
        process.kill()
    assert (tmp_path / "saved").exists()


def test_status_of_a_launcher_that_a_signal_ended() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launcher.run_command([sys.executable, "-c", code], os.environ) == 128 + signal.SIGKILL
