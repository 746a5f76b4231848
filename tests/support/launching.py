"""Starting commands and ranks as a user does, for tests/integration; every port is asked of the system."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.support.paths import ROOT

TOOLS = Path(sys.executable).parent
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(**changes: str) -> dict[str, str]:
    """This process's variables for one that is no rank yet: one thread, our tools first, compiled ops found."""
    clean = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
    fixed = {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{TOOLS}{os.pathsep}{clean.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
    }
    if not torch.cuda.is_available():
        fixed["DS_ACCELERATOR"] = "cpu"
    return {"TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions")} | clean | fixed | changes


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def variables_of_ranks(ranks: int) -> list[dict[str, str]]:
    """What a launcher tells each of the ranks that it starts on one machine."""
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def command(*words: str, timeout: float = 600, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`srum-ds WORDS` in a process of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from srum_ds.commands.main import main; sys.exit(main())", *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def launch(ranks: int, words: list[str], script: str = "launch/train.sh", **changes: str) -> subprocess.Popen[str]:
    """The documented command, or another script under the launcher, in a process group of its own."""
    launcher = [str(TOOLS / "deepspeed"), "--num_gpus", str(ranks), "--master_port", free_port()]
    return subprocess.Popen(
        [*launcher, script, *words],
        cwd=ROOT,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a process says until it ends; it must end well."""
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-4000:]
    return output


def kill_launched_after(process: subprocess.Popen[str], run_dir: Path, lines: int, file: str = "metrics.jsonl") -> None:
    """kill -9 of the launcher and every rank once ``file`` (a line a step) has so many lines."""
    deadline = time.time() + 240
    path = run_dir / file
    while time.time() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0][-4000:]
    os.killpg(process.pid, signal.SIGKILL)
    for line in subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines():
        if f"run.dir={run_dir}" in line:
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass
    process.communicate()
