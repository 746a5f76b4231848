"""Starts the DeepSpeed launcher for ``srum-ds train``, ``rollout`` and ``rescore``, with the environment it wants.

Everything after this is the same path as calling the DeepSpeed launcher by hand: this module only fills in what one
would have to type and export. ``python -m srum_ds.commands.launcher`` compiles DeepSpeed's communication op ahead of
time (`make setup`).
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from srum_ds.common.compiled_ops import ops_environment
from srum_ds.common.errors import UserError
from srum_ds.common.supervise import SUPERVISED, wait_for
from srum_ds.config import ROOT, Config, check_world, find_path
from srum_ds.monitoring.blocks import CALLER_PATH
from srum_ds.monitoring.relay import Relay

TRAIN_SCRIPT = Path("launch/train.sh")
WORKER = "srum_ds.rollouts.worker"
# Any of these says itself how many ranks start, and where.
PLACEMENT_FLAGS = ("--num_gpus", "--num_accelerators", "--num_nodes", "--include", "-i", "--exclude", "-e")
# In a run's folder: what only a finished run has. It is moved there whole.
FINISHED = Path("export")


def build_command(
    cfg: Config,
    recipe: Path | str,
    overrides: Sequence[str] = (),
    launcher_args: Sequence[str] = (),
) -> list[str]:
    """The whole ``deepspeed [flags] launch/train.sh RECIPE key=value ...`` line.

    ``launcher_args`` are the launcher's own flags and win over what is filled in otherwise: the
    number of ranks (``deepspeed.ranks``) and a free port for the ranks to meet at.

    Raises UserError when the launcher, the script or ``deepspeed.config`` is not there.
    """
    script = find_path(TRAIN_SCRIPT)
    if not script.is_file():
        raise UserError(f"no {TRAIN_SCRIPT} here or in {ROOT}: start from a clone of the repository.")
    return [*_launcher(cfg, launcher_args), str(script), str(recipe), *overrides]


def build_module_command(
    cfg: Config, module: str, words: Sequence[str], launcher_args: Sequence[str] = ()
) -> list[str]:
    """The whole ``deepspeed [flags] --module MODULE WORD ...`` line; see ``build_command``."""
    return [*_launcher(cfg, launcher_args), "--module", module, *words]


def _launcher(cfg: Config, launcher_args: Sequence[str]) -> list[str]:
    """The launcher and its flags."""
    launcher = Path(sys.executable).with_name("deepspeed")
    if not launcher.exists():
        raise UserError(f"no DeepSpeed launcher at {launcher}: run `make setup`, or `pip install deepspeed` there.")
    if not find_path(cfg.deepspeed.config).is_file():
        raise UserError(
            f"deepspeed.config={cfg.deepspeed.config}: no such file. Give DeepSpeed's JSON settings, "
            "such as ds_configs/zero3.json."
        )
    flags = [flag.split("=")[0] for flag in launcher_args]
    command = [str(launcher), "--no_local_rank"]
    if not any(flag in PLACEMENT_FLAGS for flag in flags):
        command += ["--num_gpus", str(cfg.deepspeed.ranks)]
    if "--master_port" not in flags:
        command += ["--master_port", str(free_port())]
    return [*command, *launcher_args]


def build_environment(base: Mapping[str, str], ranks: int, cuda: bool) -> dict[str, str]:
    """``base`` and what the ranks need on top; but for PATH, whatever ``base`` says already stays.

    Threads are shared out over the ranks of this machine, compiled ops live in the virtual
    environment, and without a GPU DeepSpeed is told to use the CPU. With one, torch's allocator is told to grow its
    segments: each step holds the whole model for a while and lets it go, which would leave holes.
    """
    environment = dict(base) | ops_environment(base)
    # For commands that a run names at its end: whether the user's own PATH finds them.
    environment.setdefault(CALLER_PATH, base.get("PATH", ""))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    if not cuda:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    elif "PYTORCH_CUDA_ALLOC_CONF" not in environment:
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    return environment


def free_port() -> int:
    """A TCP port of this machine that nothing listens at."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_cuda() -> bool:
    """Whether torch sees a GPU (imports torch, which takes a second or two)."""
    import torch

    return torch.cuda.is_available()


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    run_dir: Path | None = None,
    verbose: bool = False,
) -> int:
    """Runs the launcher to its end and returns the job's exit status (128 + n after signal n).

    Signals that ask to stop go to the ranks, which then save and stop together; a second one ends them. The launcher
    gets a session of its own, so that Ctrl-C reaches it this way alone. run_dir: of a training run; its status is 0
    only where a finished export stands there, and what it prints goes to its ``run.log`` too, the launcher's own lines
    only there unless ``verbose``.
    """
    known = dict(environment) | {SUPERVISED: "1"}
    if run_dir is None:
        process = subprocess.Popen(list(command), env=known, start_new_session=True)
        return wait_for(process.pid, process.poll, lambda: None)
    relay = Relay(run_dir, verbose)
    known |= relay.environment()
    piped = subprocess.Popen(
        list(command), env=known, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert piped.stdout is not None and piped.stderr is not None
    relay.follow(piped.stdout, piped.stderr)
    try:
        return wait_for(piped.pid, piped.poll, lambda: run_dir, FINISHED, relay.say)
    finally:
        relay.close()


def run_worker(cfg: Config, words: Sequence[str], launcher_args: str, dry_run: bool) -> int:
    """Runs ``rollouts.worker`` with ``words`` and returns its exit status.

    One rank runs in this process where a launcher has started it, or where one rank is all; else the launcher starts
    them. ``dry_run`` prints the launcher's command line instead. Raises UserError for ranks that do not divide a
    step's prompts, and as ``build_command``.
    """
    if not dry_run and ("RANK" in os.environ or (cfg.deepspeed.ranks == 1 and not launcher_args)):
        from srum_ds.rollouts.worker import main

        return main(words)
    command = build_module_command(cfg, WORKER, words, shlex.split(launcher_args))
    if not launcher_args:
        # Nobody else says how many ranks there are, so a bad number can be told before they start.
        check_world(cfg, cfg.deepspeed.ranks)
    if dry_run:
        print(shlex.join(command))
        return 0
    return run_command(command, build_environment(os.environ, cfg.deepspeed.ranks, has_cuda()))


def build_communication_op() -> None:
    """Compiles DeepSpeed's shared-memory communication op, which CPU ranks load at their start.

    Takes about half a minute the first time. Does nothing where there is a GPU (the ranks then talk
    through NCCL) and where the op does not exist (only Linux has it; elsewhere gloo does its work).

    Raises UserError when the C++ compiler or Python's headers are missing, or the op does not compile.
    """
    if has_cuda():
        print("A GPU is here: DeepSpeed's CPU communication op is not needed.")
        return
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"no C++ compiler ('{compiler}') on the path, which DeepSpeed needs on a machine without a "
            "GPU: install g++ (Debian: apt-get install g++), or name yours in CXX."
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise UserError(
            f"no Python.h in {headers}, which DeepSpeed's CPU communication op is compiled with: install "
            "Python's headers (Debian: apt-get install python3-dev)."
        )
    os.environ.update(build_environment(os.environ, ranks=1, cuda=False))
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    if not builder.is_compatible():
        print("DeepSpeed has no shared-memory communication op for this machine: the ranks use gloo.")
        return
    try:
        builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"DeepSpeed's communication op does not compile: {error}") from error


if __name__ == "__main__":
    from srum_ds.common.errors import guarded

    sys.exit(guarded(build_communication_op))
