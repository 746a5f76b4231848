"""Says where a result was made: commit, versions, hardware. Runs and evaluations keep it beside their numbers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from srum_ds.common.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "srum-ds",
    "torch",
    "deepspeed",
    "transformers",
    "diffusers",
    "safetensors",
    "webdataset",
    "omegaconf",
    "tensorboard",
    "numpy",
    "scipy",
    "pillow",
)


def environment(world_size: int, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Commit, versions, hardware and world size of this process, with the caller's ``extra`` fields.

    ``commit`` is null outside a clone of the project; ``modified`` says whether tracked files differ
    from it. ``memory_bytes`` is the machine's, ``cores`` what this process may use.
    """
    commit, modified = git_state(ROOT)
    return {
        "commit": commit,
        "modified": modified,
        "versions": {"python": platform.python_version(), **package_versions()},
        "system": platform.platform(),
        "hardware": {
            "cpu": cpu_model(),
            "cores": usable_cores(),
            "memory_bytes": memory_bytes(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        **(extra or {}),
    }


def write_environment(run_dir: Path, world_size: int, **extra: Any) -> dict[str, Any]:
    """Writes ``environment.json`` into the run's folder and returns its content."""
    content = environment(world_size, extra)
    write_atomic(run_dir / "environment.json", json.dumps(content, indent=2) + "\n")
    return content


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ) of the clone whose top ``folder`` is; (None, None) if none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # A package installed inside somebody's repository is not a clone of this project.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that results depend on; null where one is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
