"""What a user sees of what the processes of a run print, and what stands in run.log alone."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

from rich.console import Console

from srum_ds.common import heartbeats
from srum_ds.common.heartbeats import Heartbeat
from srum_ds.monitoring.console import CONSOLE, LOG_ONLY
from srum_ds.monitoring.relay import LauncherLines, Relay
from srum_ds.monitoring.status import Status, write_status

LAUNCHERS = """\
[2026-11-26 18:00:01,123] [WARNING] [real_accelerator.py:209:get_accelerator] Setting accelerator to CPU.
[2026-11-26 18:00:01,124] [INFO] [real_accelerator.py:260:get_accelerator] Setting ds_accelerator to cpu (auto detect)
[2026-11-26 18:00:02,100] [INFO] [launch.py:162:main] dist_world_size=2
[2026-11-26 18:00:09,100] [INFO] [launch.py:351:main] Process 4711 exits successfully.
[2026-11-26 18:00:09,100] [ERROR] [launch.py:325:sigkill_handler] ['python', 'train.sh'] exits with return code = 75
[W1126 18:00:03.123456789 socket.cpp:752] [c10d] The client socket has failed to connect
[rank1]:[W1126 18:00:03.123456789 ProcessGroupGloo.cpp:752] Warning: unused
[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1
/venv/lib/python3.11/site-packages/torch/x.py:12: UserWarning: something in a library
  warnings.warn("something in a library")
Loading extension module deepspeed_shm_comm...
DeepSpeed deepspeed.ops.comm.deepspeed_shm_comm_op built successfully
"""
OURS = """\
runs/tiny starts: 120 steps on 2 rank(s), fp32
  model      srum_ds/assets/tiny_bagel (bagel)
step 1/120  ETA 5:56  16 images/s
srum-ds: judge.external=mine.py:f: KeyError: 'x'
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/torch/x.py", line 12, in f
[2026-11-26 18:00:09,100] [ERROR] [launch.py:325:sigkill_handler] ['python', 'train.sh'] exits with return code = -11
[2026-11-26 18:00:09,100] [ERROR] [engine.py:1:f] something broke
what my own judge prints
"""


def relayed(tmp_path: Path, out: str, err: str = "", verbose: bool = False, terminal: bool = False) -> tuple[str, str]:
    """What the user sees on both streams."""
    seen, told = io.StringIO(), io.StringIO()
    console = Console(file=seen, force_terminal=terminal, width=80)
    relay = Relay(tmp_path, verbose, console, told)
    streams = []
    for text in (out, err):
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        streams.append(open(reader, "rb"))
    relay.follow(*streams)
    relay.close()
    for stream in streams:
        stream.close()
    return seen.getvalue(), told.getvalue()


def logged(tmp_path: Path) -> list[str]:
    """The log's lines without their times and the heading."""
    return [line[9:] for line in (tmp_path / "run.log").read_text().splitlines()][1:]


def test_the_launchers_lines_are_hidden_and_stand_in_the_log(tmp_path: Path) -> None:
    seen, told = relayed(tmp_path, LAUNCHERS + OURS)
    assert seen == OURS and told == ""
    assert logged(tmp_path) == (LAUNCHERS + OURS).splitlines()


def test_verbose_shows_everything(tmp_path: Path) -> None:
    assert relayed(tmp_path, LAUNCHERS + OURS, verbose=True)[0] == LAUNCHERS + OURS


def test_what_a_run_says_on_stderr_is_seen_there(tmp_path: Path) -> None:
    seen, told = relayed(tmp_path, "step 1\n", LAUNCHERS + OURS)
    assert (seen, told) == ("step 1\n", OURS)
    assert set(logged(tmp_path)) == set((LAUNCHERS + OURS).splitlines()) | {"step 1"}


def test_a_warning_of_our_own_code_is_shown() -> None:
    lines = LauncherLines()
    assert not lines.hides("/home/me/srum_ds/job.py:3: UserWarning: mine")
    assert not lines.hides("  indented text that follows nothing")


def test_a_second_call_appends_to_the_log(tmp_path: Path) -> None:
    relayed(tmp_path, "first\n")
    relayed(tmp_path, "second\n")
    text = (tmp_path / "run.log").read_text()
    assert text.index("first") < text.index("second") and text.count("----") == 4


def test_on_a_terminal_the_line_shows_where_rank_0_is_and_its_lines_on_steps_are_logged_alone(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    relay = Relay(tmp_path, False, console, io.StringIO())
    assert relay.environment()[CONSOLE] == "terminal" and relay.environment()["COLUMNS"] == "80"
    assert relay._line(80) == "starting the ranks 0:00"
    # What an earlier call left there says nothing of this one.
    (tmp_path / "status.json").write_text(json.dumps({"step": 9, "figures": {}, "time": time.time() - 100}))
    assert relay._line(80) == "starting the ranks 0:00"
    (tmp_path / heartbeats.FOLDER).mkdir()
    beat = Heartbeat(0, 1, "host", "train", 38, 3, 0.5, 9, time.time())
    heartbeats.write(tmp_path / heartbeats.FOLDER, beat)
    write_status(tmp_path, Status(37, 120, "", None, 192.0, 28.1, {"reward": (0.4, 0.2)}))
    assert relay._line(80) == "step 37/120  training  ETA 3:12  28.1 images/s  reward +0.400 (base +0.200)"
    write_status(tmp_path, Status(120, 120, over=True))
    assert relay._line(80) is None
    seen, _ = relayed(tmp_path, f"{LOG_ONLY}step 37/120  ETA 3:12\nsaved\n", terminal=True)
    assert "saved\n" in seen and LOG_ONLY not in seen and "step 37/120  ETA 3:12\n" not in seen
    assert "step 37/120  ETA 3:12" in logged(tmp_path)


def test_a_disk_that_refuses_the_log_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    assert relayed(tmp_path, OURS)[0] == OURS
