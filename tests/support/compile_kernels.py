"""Compiles every fused kernel for GPUs, without one: `python -m tests.support.compile_kernels 80 90`.

The self-check's examples are run forward and backward with nothing launched; each kernel that would have been is
compiled down to machine code for the compute capabilities that are named. Prints a JSON line for each, with the bytes
that a thread spills. A kernel with numbers among its parameters is compiled twice, with them in float32, as a plain
call passes them, and in float64, as torch.compile may. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.knobs import nvidia
from triton.runtime.jit import JITFunction

from srum_ds.kernels.dispatch import DTYPES
from srum_ds.kernels.selfcheck import EXAMPLES, MODULES, load_kernel, run_both_ways
from srum_ds.kernels.triton.adamw import adamw_step

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
WIDE = re.compile(r"^\s*(?!ld\.|mov\.|cvt\.)([a-z][a-z0-9.]*\.f64)\b", re.MULTILINE)
"""Arithmetic of float64 in PTX; that a parameter is loaded and rounded is none."""
Launch = tuple[Any, tuple[Any, ...], dict[str, Any], int]


def launches() -> list[Launch]:
    """Each different launch of the examples: kernel, arguments, constants, warps."""
    found: dict[str, Launch] = {}

    def note(self: Any, *args: Any, grid: Any, warmup: bool, num_warps: int, **constants: Any) -> None:
        signature, fixed = described(self, args, constants)
        launch = self, args, constants, num_warps
        found[f"{self.__module__}.{self.__name__} {signature} {fixed}"] = launch

    before = JITFunction.run
    JITFunction.run = note
    try:
        for name in MODULES:
            for dtype in DTYPES:
                run_both_ways(load_kernel(name), EXAMPLES[name](dtype, torch.device("cpu")))
        flat_E = torch.zeros(5000)
        averages, copy_E = [(flat_E, 0.5), (flat_E, 0.9)], flat_E.bfloat16()
        adamw_step(flat_E, flat_E, flat_E, flat_E, 2, 1e-3, averages=averages, copy_E=copy_E)
    finally:
        JITFunction.run = before
    return list(found.values())


def described(
    kernel: Any, args: Sequence[Any], constants: dict[str, Any], number: str = "fp32"
) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of a launch's arguments by name, and its constants by name; number: the type of Python's floats."""
    names = list(kernel.arg_names)
    types = {}
    for name, x in zip(names, args, strict=False):
        types[name] = TYPES[x.dtype] if isinstance(x, Tensor) else number if isinstance(x, float) else "i32"
    return types | dict.fromkeys(constants, "constexpr"), dict(constants)


def compile_for(launch: Launch, capability: int, number: str) -> dict[str, Any]:
    """Compiles one; raises what the compiler raises."""
    kernel, args, constants, num_warps = launch
    signature, fixed = described(kernel, args, constants, number)
    # In the order of the kernel's parameters.
    signature = {name: signature[name] for name in kernel.arg_names}
    # torch's arrays begin at addresses that 16 divides.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(compiled.asm["ptx"])
        arch = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])
        assert arch is not None
        command = [nvidia.ptxas.path, "-v", f"--gpu-name={arch[1]}", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)), default=0)
    return {
        "kernel": f"{kernel.__module__.rsplit('.', 1)[-1]}.{kernel.__name__}",
        "types": [kind for kind in signature.values() if kind.startswith("*")],
        "numbers": number,
        "wide_operations": WIDE.findall(compiled.asm["ptx"]),
        "capability": capability,
        "warps": num_warps,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": compiled.metadata.shared,
    }


def main(capabilities: Sequence[str]) -> int:
    for launch in launches():
        numbers = ("fp32", "fp64") if any(isinstance(x, float) for x in launch[1]) else ("fp32",)
        for capability in capabilities:
            for number in numbers:
                print(json.dumps(compile_for(launch, int(capability), number)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
