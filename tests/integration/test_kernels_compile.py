"""The fused kernels compile for a GPU, though none is here: Triton brings its whole compiler along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

HOPPER = 90
"""Compute capability of an H100."""


def test_every_kernel_compiles_and_spills_no_registers(tmp_path: Path) -> None:
    # In a process of its own: in this one Triton interprets.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels", str(HOPPER)],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["kernel"] for line in compiled} == {
        "adamw._step",
        "norm._forward",
        "norm._backward",
        "qk._forward",
        "qk._backward",
        "swiglu._forward",
        "swiglu._backward",
        "velocity._losses_and_slopes",
    }
    # In either dtype, and the norm with and without its sum; the optimiser's step once.
    assert len(compiled) == 19
    assert [line for line in compiled if line["spilled_bytes"]] == []
    assert max(line["registers"] for line in compiled) <= 128
