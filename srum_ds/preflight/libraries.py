"""Looks at what takes long to import: the libraries themselves, and the devices that torch sees (`srum-ds doctor`)."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator

from srum_ds.preflight.findings import Finding, error, not_checked, ok, warning

LIBRARIES = ("torch", "deepspeed", "transformers", "diffusers")
SLOW_SECONDS = 60.0
"""Together: beyond, every rank waits for the disk that the libraries stand on."""


def look_at_imports() -> Iterator[Finding]:
    """Whether the libraries can be imported, and how long that takes."""
    seconds = {}
    failed = False
    for name in LIBRARIES:
        begin = time.perf_counter()
        try:
            # The engine room alone imports DeepSpeed, with its accelerator chosen.
            importlib.import_module("srum_ds.engine" if name == "deepspeed" else name)
        except Exception as problem:
            failed = True
            yield error("imports", f"{name} cannot be imported ({_first_line(problem)}): install it anew (make setup)")
        seconds[name] = time.perf_counter() - begin
    said = ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items())
    figures = {f"{name}_seconds": taken for name, taken in seconds.items()}
    if sum(seconds.values()) > SLOW_SECONDS:
        text = f"{said}: slow; put the environment on a local disk of each node"
        yield warning("imports", text).with_figures(figures)
    elif not failed:
        yield ok("imports", said).with_figures(figures)


def look_at_accelerators() -> Iterator[Finding]:
    """The devices that torch sees; on each GPU a product in bf16 is computed."""
    try:
        import torch
    except Exception as problem:
        # A library of another build raises whatever suits it.
        yield not_checked("accelerators", f"torch cannot be imported ({_first_line(problem)})")
        return
    if not torch.cuda.is_available():
        files = [name for name in _devices() if name.startswith("nvidia") and name[6:].isdigit()]
        if files and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
            yield error(
                "accelerators",
                f"{len(files)} GPU(s) in /dev, but torch {torch.__version__} (CUDA {torch.version.cuda}) sees none: "
                "install a build of torch that this driver can run, or a newer driver (nvidia-smi)",
            )
        else:
            yield not_checked("accelerators", "no accelerator: runs use the CPU")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        device = torch.device("cuda", number)
        one = torch.ones(256, 256, device=device, dtype=torch.bfloat16)
        right = bool((one @ one == 256).all())
        said = f"{facts.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, compute {facts.major}.{facts.minor}"
        if not right:
            yield error("accelerators", f"cuda:{number}: {said}: a product in bf16 is wrong; do not use this GPU")
        elif facts.major < 8:
            yield warning("accelerators", f"cuda:{number}: {said}: has no bf16 of its own; set train.precision=fp32")
        elif free < total * 0.9:
            yield warning("accelerators", f"cuda:{number}: {said}: something else holds memory there (nvidia-smi)")
        else:
            yield ok("accelerators", f"cuda:{number}: {said}")


def _devices() -> list[str]:
    try:
        return sorted(os.listdir("/dev"))
    except OSError:
        return []


def alone() -> Iterator[Finding]:
    """What one process cannot look at."""
    cure = "srum-ds doctor --ranks 2, or under your launcher (docs/doctor.md)"
    for part in ("all-reduce", "all-gather", "clocks", "ranks"):
        yield not_checked(part, f"one rank alone has nobody to talk to: {cure}")


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
