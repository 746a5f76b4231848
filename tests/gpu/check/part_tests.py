"""The tests that a GPU changes: tests/gpu, and the kernels' own, which run them compiled there."""

from __future__ import annotations

import subprocess
import sys

from srum_ds.common.environment import ROOT
from tests.gpu.check.measuring import Figures, Where


def run(figures: Figures, where: Where) -> None:
    paths = ["tests/gpu"] if where.rehearse else ["tests/gpu", "tests/unit/kernels"]
    # Most of the time is the compiler's: some thirty kernels, each for the shapes of its tests.
    spread = ["-n0"] if where.rehearse else ["-n4", "--dist=load"]
    words = [sys.executable, "-m", "pytest", "-q", *spread, "-p", "no:cacheprovider", *paths]
    done = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.stdout + done.stderr)
    figures["summary"] = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
    figures["failed"] = [line[:300] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode:
        raise AssertionError(f"pytest ended with {done.returncode}")
