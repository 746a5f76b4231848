"""The fused kernels compile for a GPU, though none is here: Triton brings its compiler along, torch its tracer."""

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
    assert len([line for line in compiled if line["numbers"] == "fp32"]) == 19
    # Those with numbers among their parameters once more, as torch.compile may call them; it widens no arithmetic.
    assert {line["kernel"] for line in compiled if line["numbers"] == "fp64"} == {
        "adamw._step",
        "norm._forward",
        "norm._backward",
        "qk._forward",
        "qk._backward",
        "velocity._losses_and_slopes",
    }
    assert [line for line in compiled if line["wide_operations"]] == []
    assert [line for line in compiled if line["spilled_bytes"]] == []
    assert max(line["registers"] for line in compiled) <= 128


def test_torch_compile_traces_every_kernel_without_a_break() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.trace_kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["problem"] for line in found if line["problem"]] == []
    launched = {
        (line["kernel"], line["with_gradient"]): line["calls"].count("triton_kernel_wrapper_mutation") for line in found
    }
    # Queries and keys have two groups of rows; the velocity loss has its gradient from the first pass.
    assert launched == {
        ("rms_norm", False): 1,
        ("rms_norm", True): 2,
        ("add_rms_norm", False): 1,
        ("add_rms_norm", True): 2,
        ("qk_norm_rotary", False): 2,
        ("qk_norm_rotary", True): 4,
        ("swiglu", False): 1,
        ("swiglu", True): 2,
        ("velocity_loss", False): 1,
        ("velocity_loss", True): 1,
    }
