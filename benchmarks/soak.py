"""What a long run leaves behind: memory, descriptors, /dev/shm, temporary files and time a step, watched for an hour.

python benchmarks/soak.py [--minutes 60] [--ranks 2] [--json benchmarks/soak.json] [key=value ...]

Trains the tiny recipe in tiny steps (4 pictures, a grid of samples every 5 steps, a checkpoint every 20) until the
time is up, then stops the run by SIGTERM, as a user would. Every ten seconds the processes of the job are looked at.
The first fifth of the samples is warm-up. Of the others the first and the last third are compared: the figure is what
grew between their medians over 1,000 steps; of memory, which goes up and down with every phase, between their lowest
tenths. In /dev/shm the job's own files count, those that a rank has mapped. Exit status 1 where one grew by more than
its limit (LIMITS), the run did not end with 75, or left something in /dev/shm.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

SETTINGS = (
    "train.steps=1000000 train.save_every=20 train.keep_checkpoints=2 rollout.prompts_per_step=2 "
    "rollout.images_per_prompt=2 rollout.micro_batch_prompts=1 rollout.num_timesteps=3 train.timesteps_per_image=1 "
    "log.image_every=5"
).split()

# How much each may grow over 1,000 steps. Memory: a run of 100,000 steps then takes 1 GB more at most.
LIMITS = {
    "memory_mb": 10.0,
    "descriptors": 1.0,
    "threads": 1.0,
    "shm_files": 1.0,
    "shm_mb": 1.0,
    "temporary_files": 1.0,
    "temporary_mb": 1.0,
    "cpu_seconds_a_step": 0.1,
}
EVERY = 10.0
WARM_UP = 0.2


class Sample(NamedTuple):
    """What one look at the job found; every figure is a sum over its ranks but ``step``."""

    seconds: float
    step: int
    memory_mb: float
    descriptors: int
    threads: int
    shm_files: int
    shm_mb: float
    temporary_files: int
    temporary_mb: float
    cpu_seconds: float


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), args.minutes, args.ranks, overrides)
    text = json.dumps({"command": shlex.join(["python", *sys.argv]), **report}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 1 if report["failed"] else 0


def soak(folder: Path, minutes: float, ranks: int, overrides: list[str]) -> dict[str, object]:
    """Trains for that long and says what grew. RuntimeError where the run ends before, with its last lines."""
    run_dir, temporary = folder / "run", folder / "tmp"
    temporary.mkdir()
    command = [str(Path(sys.executable).parent / "srum-ds"), "train", "launch/recipes/tiny.yaml", f"run.dir={run_dir}"]
    command += [f"deepspeed.ranks={ranks}", *SETTINGS, *overrides]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    mapped: set[Path] = set()
    samples: list[Sample] = []
    with open(folder / "log", "wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        begin = time.monotonic()
        while time.monotonic() - begin < minutes * 60:
            time.sleep(EVERY)
            if job.poll() is not None:
                raise RuntimeError((folder / "log").read_text()[-3000:])
            found = look(job.pid, run_dir, temporary, mapped, time.monotonic() - begin)
            if found is not None:
                samples.append(found)
        job.send_signal(signal.SIGTERM)
        status = job.wait(300)
    left = sorted(str(path) for path in mapped if path.exists())
    grew = growth(samples)
    failed = [f"{name} grew by {grew[name]:.3g} over 1,000 steps" for name in LIMITS if grew[name] > LIMITS[name]]
    failed += [f"the run ended with {status}, expected 75"] if status != 75 else []
    failed += [f"left in /dev/shm: {left}"] if left else []
    return {
        "failed": failed,
        "minutes": minutes,
        "ranks": ranks,
        "steps": samples[-1].step,
        "grew_over_1000_steps": {name: round(value, 4) for name, value in grew.items()},
        "limits": LIMITS,
        "first": samples[int(len(samples) * WARM_UP)]._asdict(),
        "last": samples[-1]._asdict(),
        "samples": len(samples),
        "step_and_memory_mb": [[s.step, round(s.memory_mb, 1)] for s in samples[:: max(1, len(samples) // 60)]],
        "environment": json.loads((run_dir / "environment.json").read_text()),
    }


def look(pid: int, run_dir: Path, temporary: Path, mapped: set[Path], seconds: float) -> Sample | None:
    """One look at the ranks below a process; None before the first step, and where one ends meanwhile.

    mapped: takes the files in /dev/shm that a rank has mapped, by whatever look.
    """
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists() or not metrics.stat().st_size:
        return None
    memory = descriptors = threads = 0
    cpu = 0.0
    try:
        for process in psutil.Process(pid).children(recursive=True):
            if "RANK" not in process.environ():
                continue
            with process.oneshot():
                # Its own pages: what it shares with other processes cannot leak from it alone.
                memory += process.memory_full_info().uss
                descriptors += process.num_fds()
                threads += process.num_threads()
                times = process.cpu_times()
                cpu += times.user + times.system
                mapped |= shared_files(process.pid)
        shm = [path for path in mapped if path.exists()]
        files = [path for path in temporary.rglob("*") if path.is_file()]
        sizes = [sum(path.stat().st_size for path in paths) / 1e6 for paths in (shm, files)]
    except (psutil.Error, FileNotFoundError):
        return None
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    return Sample(seconds, step, memory / 1e6, descriptors, threads, len(shm), sizes[0], len(files), sizes[1], cpu)


def shared_files(pid: int) -> set[Path]:
    """The files in /dev/shm that a process has mapped, also where they have no name any more."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    names = {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line}
    return {Path(name.removesuffix(" (deleted)")) for name in names}


def growth(samples: list[Sample]) -> dict[str, float]:
    """What each figure grew by over 1,000 steps: medians of the last third less those of the first, after warm-up.

    ValueError for samples of fewer than six moments or of no step between the thirds.
    """
    kept = samples[int(len(samples) * WARM_UP) :]
    third = len(kept) // 3
    if third < 2:
        raise ValueError(f"{len(samples)} looks at the job are too few: let it run longer")
    first, last = kept[:third], kept[-third:]
    between = statistics.median(s.step for s in last) - statistics.median(s.step for s in first)
    if between <= 0:
        raise ValueError("the job took no step between the first looks and the last: let it run longer")
    grew = {
        name: (statistics.median(getattr(s, name) for s in last) - statistics.median(getattr(s, name) for s in first))
        * (1000 / between)
        for name in LIMITS
        if name != "cpu_seconds_a_step"
    }
    lowest = [statistics.quantiles([s.memory_mb for s in part], n=10)[0] for part in (first, last)]
    grew["memory_mb"] = (lowest[1] - lowest[0]) * (1000 / between)
    grew["cpu_seconds_a_step"] = (_cpu_a_step(last) - _cpu_a_step(first)) * (1000 / between)
    return grew


def _cpu_a_step(samples: list[Sample]) -> float:
    """CPU seconds a step of all ranks together: other work on the machine stretches a step's time, but hardly these."""
    steps = samples[-1].step - samples[0].step
    if steps <= 0:
        raise ValueError("the job took no step within a third of the looks: let it run longer")
    return (samples[-1].cpu_seconds - samples[0].cpu_seconds) / steps


if __name__ == "__main__":
    sys.exit(main())
